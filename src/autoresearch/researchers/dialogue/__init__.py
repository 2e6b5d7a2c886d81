"""How a language model is asked and understood."""
