"""The researchers that ask a language model, and the conversation with it."""
