"""Which model size suits this machine: `doctor --fit`."""
