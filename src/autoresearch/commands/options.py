"""Options that several commands share, and printing JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

Lab = Annotated[Path, typer.Option("--lab", help="The lab's directory.", show_default="this directory")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs and agents.")]
Tag = Annotated[str | None, typer.Option(help="Which campaign (default: the latest).")]
HERE = Path()


def print_json(value: object) -> None:
    """Print records and plain data as JSON."""
    print(json.dumps(value, default=dataclasses.asdict, indent=2))  # JSON cannot represent records
