"""How Python source is read and edited by its syntax, leaving every other byte alone."""
