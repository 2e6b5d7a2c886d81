"""What is left to use: a kept trial saved as a model, sampled from in a sandbox, and served."""
