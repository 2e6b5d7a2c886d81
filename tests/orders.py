"""What `autoresearch run` would ask of the machines that carry out a lab's runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoresearch.executors.interface import Equipment, Order


def order(lab: Path, equipment: Equipment, **changes: Any) -> Order:
    made = Order(
        equipment=equipment,
        runs=lab / ".autoresearch" / "trials",
        namespace=f"lab:{lab}:",
        python=Path(sys.executable),
        python_there=None,
        lab=lab.parent.name,
        slots="auto",
        address=None,
        gpus_per_run=0,
        cpus_per_run=1,
        device=None,
        sandbox=None,
        alone=False,
        tell=print,
    )
    return replace(made, **changes)
