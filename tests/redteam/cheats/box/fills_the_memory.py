"""Takes memory until there is none; ends at 4 GB at worst.

Ends as crash: out of memory: used .* of the 1 GiB that the sandbox allows
"""

import time

hoard = []
for _ in range(80):
    hoard.append(bytearray(b"x") * 50_000_000)
    time.sleep(0.03)
