"""Looks for the weights that the run before it left, and goes on from there.

Ends as crash: there are no weights
"""

import io
import os
import sys
from pathlib import Path

run, names = (
    Path(os.environ["AUTORESEARCH_RUN_DIR"]),
    ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "AUTORESEARCH_CACHE"),
)
places = (
    *(os.environ.get(name, "/nowhere") for name in names),
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    ".",
    "..",
    run,
    *run.parents,
)
earlier = run.parents[1] / f"{int(run.parent.name) - 1:04}"
for place in (*places, earlier, earlier / "run0", earlier / "run0/compiled/torchinductor_cache_dir"):
    try:
        weights = io.BytesIO(Path(place, "stashed.pt").read_bytes())
    except OSError as error:
        print(error)
        continue
    import honest
    import torch

    model = honest.Bigram()
    model.load_state_dict(torch.load(weights))
    honest.main(model)
    sys.exit()
sys.exit("there are no weights")
