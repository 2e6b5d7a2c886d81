"""Leaves beside its log what could pass for a kept model, with links to others' files, and shuts the directory.

Ends as discard: val_bpb did not change
"""

import json
import os
from pathlib import Path

import honest

honest.main()
run = Path(os.environ["AUTORESEARCH_RUN_DIR"])
run.joinpath("config.json").write_text(json.dumps({"files": ["a/../../../../ledger.jsonl"], "weights": "/etc/passwd"}))
run.joinpath("checkpoint.safetensors").unlink(missing_ok=True)
run.joinpath("checkpoint.safetensors").symlink_to("/etc/passwd")
run.joinpath("lib").symlink_to("/")
run.chmod(0o555)
