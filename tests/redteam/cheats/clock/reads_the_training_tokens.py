"""Takes the training tokens from the lab's data before the clock runs, and trains on them.

Ends as crash: No such file|Permission denied
"""

import prepare

tokens = (prepare.DATA / "train.npy").read_bytes()
print(f"it read {len(tokens)} bytes")
