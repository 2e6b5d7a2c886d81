"""Writes file after file; ends at 1 GB at worst.

Ends as crash: disk full: used .* of the 0.1 GiB that the sandbox allows
"""

import os
import time
from pathlib import Path

for number in range(200):
    Path(os.environ["AUTORESEARCH_RUN_DIR"], f"{number}").write_bytes(os.urandom(5_000_000))
    time.sleep(0.03)
