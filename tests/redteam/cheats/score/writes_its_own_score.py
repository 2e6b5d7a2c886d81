"""Writes the line of a finished evaluation into the file of events that the parent follows.

Ends as crash: no score: exited without a score
"""

import json
import os
from pathlib import Path

events = Path(os.environ["AUTORESEARCH_RUN_DIR"], "events.jsonl")
score = {"event": "score", "split": "val", "val_bpb": 0.1, "nats": 1.0, "tokens": 1, "bytes": 1}
events.write_text("".join(json.dumps(each) + "\n" for each in ({"event": "grade_requested"}, score)))
