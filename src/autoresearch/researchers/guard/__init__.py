"""Whether a proposal may run: allowed files, valid syntax, a real change, not tried before."""
