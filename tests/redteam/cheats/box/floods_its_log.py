"""Prints without an end; ends at 4 GB at worst.

Ends as crash: exited early: exit code
"""

for _ in range(4000):
    print("z" * 1_000_000)
