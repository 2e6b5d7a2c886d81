"""Answers with a kept model, rebuilt from its checkpoint: the part of a second examination that runs in the sandbox.

It stands alone: `examination.py` copies it there with `decoding.py`, which loads the model. Nothing in it is trusted.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    """Write the logits, float32 (N, V), that follow the token at each row's place."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    load = importlib.import_module("autoresearch_sample").load
    computing = load(Path(settings["checkpoint"]), settings["device"], cache=False).computing
    rows, places = (torch.from_numpy(np.load(f"{name}.npy").astype(np.int64)) for name in ("rows", "places"))
    with Path("logits.part").open("wb") as file, torch.inference_mode():
        for x, place in zip(*(torch.split(each, settings["batch"]) for each in (rows, places)), strict=True):
            whole = torch.cat((x, x[: settings["batch"] - len(x)])) if len(x) < settings["batch"] else x
            logits = computing.model(whole.to(computing.device))[: len(x)]
            file.write(logits[torch.arange(len(x)), place].float().cpu().numpy().tobytes())
    Path("logits.part").rename("logits")


if __name__ == "__main__":
    main()
