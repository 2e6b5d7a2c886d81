"""Whether numbers may be compared: within a campaign, and between two of them.

A val_bpb only means something next to others of its class (`records.Comparable`). Pure: campaigns in, numbers out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from autoresearch.base.errors import UserError
from autoresearch.judging import claims
from autoresearch.judging.claims import Measured
from autoresearch.ledger.campaign import Campaign, Trial, comparable
from autoresearch.ledger.events import RunEnded
from autoresearch.ledger.records import Comparable, Scalar

WORDS = {"device": "device", "preset": "preset", "frozen": "frozen files", "data": "data"}
KERNELS = ("attention", "dtype", "compiled")  # what train.py notes of its run


@dataclass(frozen=True)
class Best:
    """A campaign's result."""

    tag: str
    measured: Measured


@dataclass(frozen=True)
class Comparison:
    """The best results of two comparable campaigns, and how far the first one's val_bpb is above the other's.

    `margin` is half the 95 % interval of the difference, from the noise that each campaign has measured. If both
    started from one commit, that is a control: its difference between the two campaigns, `drift`, comes from the
    machine and not from what was found, so that only the gains over it are compared.
    """

    comparable: Comparable
    best: Best
    against: Best
    difference: float
    margin: float
    drift: float | None = None


def class_of(campaign: Campaign) -> Comparable | None:
    """The class of all the campaign's scores. A part is unknown if it is for some runs. None before the first score.

    Raises:
        UserError: its runs are known to be of several classes, so there is no single one.
    """
    classes = campaign.classes()
    if not classes:
        return None
    for one, other in itertools.combinations(classes, 2):
        if parts := " or ".join(one.contradicting(other)):
            raise UserError(
                f"campaign {campaign.tag} has runs of [{one}] and of [{other}], and a val_bpb cannot be compared "
                f"with that of another {parts}: look at `autoresearch log --json`, and start a new campaign with "
                "`autoresearch run --tag NAME`"
            )
    device, data = _shared(each.device for each in classes), _shared(each.data for each in classes)
    return replace(classes[0], device=device, data=data)


def _shared(values: Iterable[str | None]) -> str | None:
    """The value that all share; None if it is unknown for some."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def check(campaign: Campaign, device: str, fingerprints: Mapping[str, Scalar]) -> None:
    """Raise a UserError if a run on this device and text could not be compared with the campaign's earlier runs.

    The rest of its class belongs to the campaign and stays the same.
    """
    here = comparable(campaign.started, device, fingerprints)
    for known in campaign.classes():
        if parts := " or ".join(known.contradicting(here)):
            raise UserError(
                f"campaign {campaign.tag} was run as [{known}] and would continue as [{here}], but a val_bpb cannot "
                f"be compared with that of another {parts}: continue it where it was started, or start a new one "
                "with `autoresearch run --tag NAME`"
            )


def text(campaign: Campaign) -> str | None:
    """The class of a campaign as text. See `class_of`."""
    found = class_of(campaign)
    return str(found) if found else None


def against(one: Campaign, other: Campaign) -> Comparison:
    """Compare the best results of two campaigns.

    Raises:
        UserError: they are not of one class (the message says how they differ), or one has no result yet.
    """
    best, rival = _best(one), _best(other)
    found, wanted = class_of(one), class_of(other)
    assert found
    assert wanted
    if unlike := found.differing(wanted):
        parts = " and ".join(f"{WORDS[part]} ({_value(found, part)}, {_value(wanted, part)})" for part in unlike)
        raise UserError(
            f"{one.tag} and {other.tag} cannot be compared because they differ in {parts}: run both on one device, "
            "with the same prepare.py"
        )
    if found.device is None:
        raise UserError(
            f"{one.tag} and {other.tag} cannot be compared: some runs are from an earlier version, which did not "
            "record their device"
        )
    drift = None
    if one.started.base == other.started.base:
        starts = [campaign.measured.val_bpb + campaign.measured.gain for campaign in (best, rival)]
        drift = starts[0] - starts[1]
    return Comparison(
        comparable=found,
        best=best,
        against=rival,
        difference=best.measured.val_bpb - rival.measured.val_bpb - (drift or 0.0),
        margin=math.hypot(best.measured.margin, rival.measured.margin),
        drift=drift,
    )


def names(campaign: Campaign, *trials: Trial) -> str | None:
    """The classes of the scored runs of these trials (default: of all) as text; None if there are none."""
    return "; ".join(map(str, campaign.classes(*trials))) or None


def _best(campaign: Campaign) -> Best:
    found = claims.of(campaign)
    if found is None or found.best is None:
        raise UserError(
            f"campaign {campaign.tag} has no score yet: continue it with `autoresearch run --tag {campaign.tag}`"
        )
    return Best(campaign.tag, found.best)


def _value(of: Comparable, part: str) -> str:
    value: str | None = getattr(of, part)
    return "unknown" if value is None else value[:7] if part in ("frozen", "data") else value


def other_kernels(run: RunEnded, baseline: RunEnded) -> str:
    """How a run's kernels and type differ from its baseline's, empty if they do not.

    That changes its speed, whatever its change is worth: for example, FlashAttention 3 was downloaded in between.
    """
    both = [(name, run.environment.get(name), baseline.environment.get(name)) for name in KERNELS]
    return ", ".join(f"{name} {new}, not {old}" for name, new, old in both if None not in (new, old) and new != old)
