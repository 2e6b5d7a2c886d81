"""Carries out what people tell a search while it runs, or while it rests."""

from __future__ import annotations

import dataclasses

from autoresearch.base.errors import UserError
from autoresearch.lab import inbox
from autoresearch.ledger.events import Ordered
from autoresearch.ledger.records import Order
from autoresearch.loop.parts import where
from autoresearch.loop.parts.stages import Stages
from autoresearch.loop.trial import choose

BY_HAND = {Order.KEEP: True, Order.DROP: False}  # whether the trial is kept


def obey(stages: Stages, told: Ordered) -> None:
    """Record an order, and what it means. The loop looks at the ledger for what it has to do.

    Raises:
        UserError: it cannot be obeyed, and why.
    """
    campaign = stages.campaign(told.tag)
    if told.order in BY_HAND:
        assert told.trial is not None
        if told.trial not in {trial.number for trial in campaign.trials}:
            raise UserError(f"campaign {told.tag} has no trial {told.trial}: look at `autoresearch log`")
        choose(stages, told.tag, told.trial, keep=BY_HAND[told.order], by=told.by, why=told.why)
        return
    if told.order is Order.CONFIRM and not campaign.untested:
        raise UserError("there is no keep that was not tested yet, so there is nothing to confirm")
    stages.record(dataclasses.replace(told, confirmations=len(campaign.confirmations)))


def obey_all(stages: Stages, tag: str) -> None:
    """Carry out what a search was told while no loop is at work."""
    for path, told in inbox.waiting(stages.workspace):
        if told.tag == tag:
            try:
                if told.order is Order.STOP:
                    raise UserError("no loop is at work, so there is no run to stop")
                obey(stages, told)
                inbox.obeyed(path)
            except UserError as error:
                inbox.refuse(path, str(error))


def say(stages: Stages, text: str) -> None:
    """Tell whoever looks on something that is about no trial."""
    where.tell(stages.progress)(text)
