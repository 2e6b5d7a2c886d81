"""Some rows of a published results.tsv, and campaigns of a few plain trials."""

from __future__ import annotations

from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import CampaignStarted, RunEnded, TrialProposed, Verdict
from autoresearch.ledger.records import Crash, Score, Status

# Lines of the results.tsv that the published project's author gave out, as they are.
PUBLISHED = """\
commit\tval_bpb\tmemory_gb\tstatus\tdescription
baseline\t0.997900\t44.0\tkeep\tbaseline
bea057b\t0.986041\t43.9\tkeep\thalve batch 524K to 262K (more steps in 5 min)
7f2a65c\t0.981773\t60.2\tkeep\tdepth 9 aspect_ratio 57 (extra layer dim ~512)
187e419\t0.982603\t60.2\tdiscard\tadd 5% warmup
4e6697f\t0.981201\t60.2\tkeep\twarmdown 0.5 to 0.7
c4ce95c\t0.981895\t60.2\tdiscard\tunembedding LR 0.004 to 0.008
e05a87d\t0.000000\t0.0\tcrash\tbatch 131K (assert fail: not divisible by device batch)
d70987b\t3.215849\t60.2\tdiscard\tweight tying (shared embed/unembed, broken)
97dda85\t0.972097\t60.2\tkeep\tinit scale 0.7 to 0.68
58b8b7a\t0.972350\t60.2\tdiscard\tinit scale 0.68 to 0.66 (0.68 better)
"""


def trial(number: int, idea: str, val_bpb: float | None, status: Status, crash: Crash | None = None) -> Trial:
    proposed = TrialProposed(number, "t", "a" * 40, f"{number:x}" * 40, idea, "builtin", "f", 1)
    score = None if val_bpb is None else Score(val_bpb, 1.0, 1, 1)
    numbers: dict[str, float] = {}
    run = RunEnded(
        number, 0, 42, "c", score, crash, 0, 60.0, 4.0, 50.0, 1.26, numbers, {}, {}, "run.log", "curve.jsonl"
    )
    return Trial(proposed, (run,), Verdict(number, status, "", val_bpb, run.memory_gb, "a" * 40))


def campaign(*trials: Trial) -> Campaign:
    return Campaign(CampaignStarted("t", "a" * 40, "builtin", "greedy", "local", "none", {}, 60.0), trials)
