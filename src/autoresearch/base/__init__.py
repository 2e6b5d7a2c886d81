"""What every room may use: errors, whole-file writes, git, processes, the registry. Nothing here knows about trials."""
