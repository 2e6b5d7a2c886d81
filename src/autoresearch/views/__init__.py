"""What a person sees: the terminal and the chart; views only read."""
