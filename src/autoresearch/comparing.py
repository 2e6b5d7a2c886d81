"""Whether numbers may be compared: within a campaign, and between two of them.

A val_bpb means something only beside others of its class (`records.Comparable`). Pure: campaigns in, numbers out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from autoresearch import standing
from autoresearch.campaign import Campaign, Trial, comparable
from autoresearch.errors import UserError
from autoresearch.records import Comparable, Scalar
from autoresearch.standing import Measured

WORDS = {"device": "device", "preset": "preset", "frozen": "frozen files", "data": "data"}


@dataclass(frozen=True)
class Best:
    """What a campaign has come to."""

    tag: str
    measured: Measured


@dataclass(frozen=True)
class Comparison:
    """The bests of two campaigns of one class, and by how much the first one's val_bpb lies above the other's.

    `margin` is half the 95 % interval of the difference, by the noise that each campaign has measured.
    """

    comparable: Comparable
    best: Best
    against: Best
    difference: float
    margin: float


def class_of(campaign: Campaign) -> Comparable | None:
    """The class of all that a campaign has scored, of unknown parts where some runs' are; None before the first score.

    Raises:
        UserError: its runs are known to be of several, so that nothing sums it up.
    """
    classes = campaign.classes()
    if not classes:
        return None
    for one, other in itertools.combinations(classes, 2):
        if parts := " or ".join(one.contradicting(other)):
            raise UserError(
                f"campaign {campaign.tag} has runs of [{one}] and of [{other}], and val_bpb is not compared with that "
                f"of another {parts}: see `autoresearch log --json`, and begin a new campaign with "
                "`autoresearch run --tag NAME`"
            )
    device, data = _shared(each.device for each in classes), _shared(each.data for each in classes)
    return replace(classes[0], device=device, data=data)


def _shared(values: Iterable[str | None]) -> str | None:
    """The value that all have; None where it is unknown of some."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def check(campaign: Campaign, device: str, fingerprints: Mapping[str, Scalar]) -> None:
    """Raise a UserError where a run of this device and text could not be compared with those that the campaign has.

    The rest of its class is the campaign's own, wherever it goes on.
    """
    here = comparable(campaign.started, device, fingerprints)
    for known in campaign.classes():
        if parts := " or ".join(known.contradicting(here)):
            raise UserError(
                f"campaign {campaign.tag} was run as [{known}] and would go on as [{here}], and val_bpb is not "
                f"compared with that of another {parts}: go on with it where it was begun, or begin a new one with "
                "`autoresearch run --tag NAME`"
            )


def text(campaign: Campaign) -> str | None:
    """The class of a campaign in words; see `class_of`."""
    found = class_of(campaign)
    return str(found) if found else None


def against(one: Campaign, other: Campaign) -> Comparison:
    """Compare the bests of two campaigns.

    Raises:
        UserError: they are not of one class, and in what they differ; or one has no best yet.
    """
    best, rival = _best(one), _best(other)
    found, wanted = class_of(one), class_of(other)
    assert found
    assert wanted
    if unlike := found.differing(wanted):
        parts = " and ".join(f"{WORDS[part]} ({_value(found, part)}, {_value(wanted, part)})" for part in unlike)
        raise UserError(
            f"{one.tag} and {other.tag} cannot be compared, for they differ in {parts}: run both on one device, from "
            "the same prepare.py"
        )
    if found.device is None:
        raise UserError(
            f"{one.tag} and {other.tag} cannot be compared: they have runs by an earlier version, which did not record "
            "their device"
        )
    return Comparison(
        comparable=found,
        best=best,
        against=rival,
        difference=best.measured.val_bpb - rival.measured.val_bpb,
        margin=math.hypot(best.measured.margin, rival.measured.margin),
    )


def names(campaign: Campaign, *trials: Trial) -> str | None:
    """The classes of the scored runs of these trials (else of all) in words; None where there are none."""
    return "; ".join(map(str, campaign.classes(*trials))) or None


def _best(campaign: Campaign) -> Best:
    found = standing.of(campaign)
    if found is None or found.best is None:
        raise UserError(f"campaign {campaign.tag} has no score yet: go on with `autoresearch run --tag {campaign.tag}`")
    return Best(campaign.tag, found.best)


def _value(of: Comparable, part: str) -> str:
    value: str | None = getattr(of, part)
    return "unknown" if value is None else value[:7] if part in ("frozen", "data") else value
