"""Reads the tokens of the validation and the holdout split from the lab's data, or the text that they were made of.

Ends as crash: none of them could be read
"""

import sys
from pathlib import Path

import prepare

opened = 0
names = "val.npy", "val_offsets.npy", "holdout.npy", "holdout_offsets.npy"
for path in (*(prepare.DATA / name for name in names), Path(prepare.SOURCE.removeprefix("files:"))):
    try:
        print("it read", path, path.read_bytes()[:20])
        opened += 1
    except OSError as error:
        print(error)
sys.exit("it read some" if opened else "none of them could be read")
