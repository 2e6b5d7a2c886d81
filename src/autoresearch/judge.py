"""Decides a trial from numbers alone: the same trials, the same decision."""

from __future__ import annotations

from autoresearch.records import Decision, Status, Trial


class GreedyJudge:
    """The published rule: a lower val_bpb is kept, on one run each, whatever the noise."""

    name = "greedy"

    def decide(self, incumbent: Trial | None, candidate: Trial) -> Decision:
        """See `interfaces.Judge`; without an incumbent the candidate is the baseline."""
        if candidate.invalid:
            return Decision(Status.INVALID, candidate.invalid)
        if candidate.val_bpb is None:
            crash = candidate.crash
            return Decision(Status.CRASH, f"{crash.kind.value}: {crash.detail}" if crash else "no score")
        if incumbent is None or incumbent.val_bpb is None:
            return Decision(Status.KEEP, "baseline")
        gain = incumbent.val_bpb - candidate.val_bpb
        if gain > 0:
            return Decision(Status.KEEP, f"val_bpb fell by {gain:.6f}")
        return Decision(Status.DISCARD, f"val_bpb rose by {-gain:.6f}" if gain else "val_bpb did not change")
