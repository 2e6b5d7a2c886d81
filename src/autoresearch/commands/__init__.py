"""What a person types: one module for each family of commands.

A command reads its options, calls a room below and prints; it decides nothing.
"""
