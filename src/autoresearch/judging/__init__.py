"""Whether a trial is kept, from numbers alone: noise, posterior, confirmation, and what may be claimed or compared."""
