"""The settings that the front matter of program.md may have, each with its default and its effect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autoresearch.lab import presets

FROZEN = ("prepare.py", "program.md")  # what grades a trial, or rules it


class Config(BaseModel):
    """What the user sets. docs/settings.md is written from this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # ---------------------------------------------------------------- who proposes
    researcher: str = Field(
        default="builtin", description="who proposes changes: a name, and after a colon its argument"
    )
    model: str | None = Field(default=None, description="the language model of `llm`, if the researcher names none")
    base_url: str | None = Field(default=None, description="the address of its server, if it is not the provider's own")
    fallback: Literal["builtin", "none"] = Field(
        default="builtin", description="who takes over while the researcher does not answer; `none`: the loop waits"
    )
    ahead: int = Field(default=0, ge=0, le=1, description="proposals that are asked for while a run trains")
    search: Literal["line", "tree"] = Field(
        default="line",
        description="what a proposal starts from; `line`: the best version; `tree`: on a plateau also other programs",
    )
    repairs: int = Field(default=2, ge=0, description="how often a crash is returned to be fixed")
    propose_seconds: float = Field(default=900, gt=0, description="the longest that a proposal may take")
    max_tokens: int | None = Field(default=None, gt=0, description="tokens that the researcher may use in a campaign")
    max_usd: float | None = Field(default=None, gt=0, description="dollars that it may spend in a campaign")
    max_tokens_per_trial: int | None = Field(default=None, gt=0, description="tokens that it may use for one proposal")
    max_usd_per_trial: float | None = Field(default=None, gt=0, description="dollars that it may spend on one proposal")
    papers: tuple[Path, ...] = Field(
        default=(), description="folders of your own notes and papers to search, next to arXiv"
    )

    # ---------------------------------------------------------------- what a trial may change, and how it runs
    editable: tuple[str, ...] = Field(
        default=("train.py",), min_length=1, description="the files that a trial may change; everything else is frozen"
    )
    preset: str | None = Field(
        default=None, description="the sizes that `new` used; val_bpb is only compared within one preset"
    )
    python: Path | None = Field(
        default=None, description="the Python that runs the lab's files, if not autoresearch's own"
    )
    executor: str = Field(
        default="local", description="where train.py runs: `local`, or `ray` for the machines of a cluster"
    )
    ray_address: str | None = Field(
        default=None,
        description="the cluster of `ray`, like `10.0.0.5:6379`, if not the one that RAY_ADDRESS names; without either "
        "it is started on this machine",
    )
    gpus_per_run: int | None = Field(
        default=None, ge=0, description="GPUs of a run in a cluster; otherwise 1 if the cluster has any"
    )
    cpus_per_run: int | None = Field(
        default=None, ge=1, description="processors of a run in a cluster; otherwise its share of the machine's"
    )
    sandbox: Literal["auto", "bubblewrap", "landlock", "none"] = Field(
        default="auto", description="what confines it; `auto` takes the best that works here"
    )
    slots: int | Literal["auto"] = Field(
        default="auto", description="runs side by side; `auto`: one for each GPU, or one if there is none"
    )
    memory_gb: float | None = Field(
        default=None, gt=0, description="memory that a run may use before it is ended, in GiB"
    )
    startup_seconds: float = Field(
        default=300,
        gt=0,
        description="limit before the first training batch: imports, compilation; not counted as training",
    )
    allowance_seconds: float = Field(
        default=300, gt=0, description="beyond budget and start-up, for grading; a run that takes longer is ended"
    )
    max_disturbance: float = Field(
        default=0.03,
        gt=0,
        le=1,
        description="share of a run's time that other programs may take; beyond that it is run again",
    )
    quiet_seconds: float = Field(
        default=600, ge=0, description="how long the loop waits for a quiet machine after three disturbed runs"
    )
    min_free_gb: float = Field(
        default=1, ge=0, description="the loop stops if the disk has less space than this, in GiB"
    )

    # ---------------------------------------------------------------- how it is graded and judged
    grading_factor: float = Field(
        default=3, ge=1, description="how many times as long per row as the baseline's a trial's exam may take"
    )
    examine_keeps: bool = Field(
        default=True, description="rebuild each keep from its checkpoint and examine it once more"
    )
    judge: str = Field(
        default="posterior", description="`posterior` keeps what is probably better; `greedy`: a lower val_bpb"
    )
    advance: float = Field(default=0.75, ge=0.5, lt=1, description="probability of being better that a keep needs")
    smallest_effect: float = Field(default=0.0002, ge=0, description="by at least so many bits per byte")
    simplicity: bool = Field(default=True, description="keep less code if it is no worse")
    soft_memory_gb: float | None = Field(
        default=None, gt=0, description="memory beyond which a trial has to gain more, in GiB"
    )
    memory_price: float = Field(
        default=0.001, ge=0, description="bits per byte that it has to gain for each GiB beyond"
    )
    baseline_seeds: int = Field(default=3, ge=1, description="runs of the baseline, which show the noise")
    max_runs: int = Field(default=3, ge=1, description="the most runs of a trial before its verdict")
    prune: bool = Field(default=True, description="end runs that are hopeless")
    confirm_every: int = Field(default=20, ge=1, description="keeps after which they are tested on fresh seeds")
    error_rate: float = Field(default=0.05, gt=0, lt=0.5, description="the error rate of that test")
    refuted: Literal["rewind", "ablate"] = Field(
        default="rewind", description="what happens to keeps that fail it; `ablate`: they are tested one by one"
    )

    @field_validator("editable")
    @classmethod
    def _leaves_the_rules_alone(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if Path(path).name in FROZEN and len(Path(path).parts) == 1:
                raise ValueError(f"{path} stays frozen: it sets the rules that a trial is judged by")
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{path} is not a file of the lab: name it relative to the lab's root")
        return paths

    @field_validator("slots")
    @classmethod
    def _is_positive(cls, slots: int | str) -> int | str:
        if isinstance(slots, int) and slots < 1:
            raise ValueError("at least one run has to be possible: set it to 1 or more, or to auto")
        return slots

    @field_validator("preset")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in presets.presets():
            known = ", ".join(presets.presets())
            raise ValueError(f"there is no preset {name}: leave it as `new` wrote it, which was one of {known}")
        return name

    @property
    def interpreter(self) -> Path:
        """The Python that runs the lab's files."""
        return self.python or Path(sys.executable)
