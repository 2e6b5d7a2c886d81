"""What a person sees: the terminal, the live lines and the chart. Views only read: they decide and store nothing."""
