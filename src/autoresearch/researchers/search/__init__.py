"""What the built-in researcher searches with: known patches, constants, moves and what became of them."""
