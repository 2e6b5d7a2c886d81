"""Where a run is carried out, and the sandbox that confines it."""
