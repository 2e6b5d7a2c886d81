"""Status, trials and rows in few words, for an agent's context window: nothing twice, nothing that is empty."""

from __future__ import annotations

from collections.abc import Mapping

from autoresearch.agents.overview import Overview
from autoresearch.judging import claims, comparability
from autoresearch.ledger import report
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import RunEnded
from autoresearch.ledger.ledger import CONTROL
from autoresearch.ledger.records import Purpose
from autoresearch.ledger.report import Row


def trimmed(found: Mapping[str, object]) -> dict[str, object]:
    """The same without what is empty or unknown. Zero and False are something."""
    return {name: value for name, value in found.items() if value is not None and value not in ("", (), [], {})}


def status(found: Overview, *, running: bool) -> dict[str, object]:
    """Where a campaign stands."""
    made, standing = found.report, found.standing
    best = made.best and trimmed(
        {
            "trial": made.best.number,
            "val_bpb": made.best.val_bpb,
            "gain": made.gain,
            "margin": made.margin,
            "certainty": made.certainty.value,
        }
    )
    return trimmed(
        {
            "tag": found.started.tag,
            "class": found.comparable and str(found.comparable),
            "running": running,
            "trials": made.trials,
            "counts": dict(made.counts),
            "proposers": dict(made.proposers),
            "baseline": made.baseline and {"trial": made.baseline.number, "val_bpb": made.baseline.val_bpb},
            "best": best,
            "noise": standing and standing.sigma,
            "claim": standing and standing.claim,
            "provisional": standing and list(standing.provisional),
            "advice": standing and standing.advice,
            "under_way": found.under_way and {"trial": found.under_way.trial, "idea": found.under_way.idea},
            "recent": [
                {"trial": each.trial, "status": each.status and each.status.value, "idea": each.idea}
                for each in found.recent
            ],
            "tokens": found.tokens or None,
            "usd": round(found.usd, 4) or None,
            "refused": found.refused or None,
        }
    )


def campaign(found: Campaign, *, is_current: bool) -> dict[str, object]:
    """One campaign of a list."""
    summary = claims.summary(found) if found.finished else None
    return {
        "tag": found.tag,
        "current": is_current,
        "kind": "control" if found.started.researcher == CONTROL else "search",
        "trials": len(found.finished),
        "kept": max(len(found.lineage) - 1, 0),
        "best": summary and summary.best and summary.best.val_bpb,
        "gain": summary and summary.gain,
        "certainty": summary.certainty.value if summary and summary.gain else None,
        "budget_seconds": found.started.budget_seconds,
        "researcher": found.started.researcher,
        "base": found.started.base[:7],
    }


def row(found: Row, finished: Trial) -> dict[str, object]:
    """One trial of a list."""
    pace = report.pace(finished)
    return trimmed(
        {
            "number": found.number,
            "val_bpb": found.val_bpb,
            "memory_gb": found.memory_gb,
            "status": found.status.value,
            "description": found.description,
            "steps": pace.steps,
            "tokens_per_second": pace.tokens_per_second,
            "disturbed": [run.disturbed for run in finished.every_run if run.disturbed],
        }
    )


def trial(campaign: Campaign, found: Trial) -> dict[str, object]:
    """One trial, without its patch, log and curve. Of a crash, the error itself comes first."""
    proposed, status, crash = found.proposed, campaign.status_of(found), found.crash
    parent = campaign.parent_of(found)
    return trimmed(
        {
            "trial": found.number,
            "idea": proposed.idea,
            "status": status and status.value,
            "error": crash and f"{crash.kind.value}: {report.last_line(crash.detail)}",
            "class": comparability.names(campaign, found),
            "reason": found.verdict.reason if found.verdict and not crash else None,
            "since": campaign.since(found),
            "val_bpb": found.val_bpb,
            "memory_gb": found.memory_gb,
            "parent": parent and parent.number,
            "started_there_because": proposed.start and proposed.start.why,
            "why": proposed.why,
            "expects": proposed.expects,
            "repairs": proposed.repairs,
            "carries": proposed.carries,
            "researcher": proposed.proposer,
            "lines_changed": proposed.lines_changed,
            "runs": [_run(run) for run in found.sealed.every_run],
            "traceback": crash and crash.detail,
        }
    )


def _run(run: RunEnded) -> dict[str, object]:
    return trimmed(
        {
            "run": run.run,
            "seed": run.seed,
            "purpose": None if run.purpose is Purpose.TRIAL else run.purpose.value,
            "val_bpb": run.score and run.score.val_bpb,
            "steps": report.pace_of(run).steps,
            "training_seconds": run.training_seconds,
            "startup_seconds": run.startup_seconds,
            "memory_gb": run.memory_gb,
            "disturbed": run.disturbed,
            "invalid": run.invalid,
        }
    )
