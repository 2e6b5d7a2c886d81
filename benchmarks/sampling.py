"""Tokens per second of a kept model of preset `cpu` that generates text, with and without the cache of keys and values.

python benchmarks/sampling.py

Trains the preset's baseline for a few seconds (its text is the standard library's source; cached), then lets it fill
its context in turns with the cache and without, in its own process, confined as by `autoresearch sample`.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoresearch.base import git
from autoresearch.lab import config, presets
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.ledger import Ledger
from autoresearch.loop.parts import compose
from autoresearch.models import saved_model
from autoresearch.models.sampling import Request, Sampler
from autoresearch.models.saved_model import Model

BUDGET = 10  # seconds of training
REPETITIONS = 7
PROMPT = "def "
FIT = 240  # tokens: together with the prompt they fit into the context of 256
PROGRAM = "---\nresearcher: scripted\nfallback: none\njudge: greedy\nstartup_seconds: 60\n---\n"


def train(root: Path) -> tuple[Workspace, Model]:
    """A lab of preset `cpu` with its baseline kept."""
    lab = root / "lab"
    presets.create(lab, presets.presets()["cpu"], BUDGET)
    (lab / "program.md").write_text(PROGRAM)
    git.commit_all(lab, "Only the baseline")
    (root / "script.json").write_text("[]")
    command = ["-m", "autoresearch", "run", "--lab", str(lab), "--researcher", f"scripted:{root / 'script.json'}"]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    workspace = Workspace.open(lab)
    campaign = Ledger(workspace.ledger).campaign()
    assert campaign
    return workspace, saved_model.of_trial(workspace, campaign)


def tokens_per_second(sampler: Sampler, tokens: int, seed: int) -> float:
    began = time.perf_counter()
    last = list(sampler.generate(Request(PROMPT, tokens, temperature=0.8, seed=seed)))[-1]
    return last.tokens / (time.perf_counter() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        workspace, model = train(Path(directory))
        cell = compose.cell(config.load(workspace.program)[0], workspace.root)
        with Sampler(model, cell, say=print) as quick, Sampler(model, cell, cache=False, say=print) as slow:
            for sampler in (quick, slow):
                tokens_per_second(sampler, FIT, 0)
            for tokens in (FIT // 4, FIT):
                rates = [
                    (tokens_per_second(quick, tokens, seed), tokens_per_second(slow, tokens, seed))
                    for seed in range(1, REPETITIONS + 1)
                ]
                cached, plain = (statistics.median(column) for column in zip(*rates, strict=True))
                ratios = sorted(with_it / without for with_it, without in rates)
                print(
                    f"{tokens} tokens: {cached:.0f} tokens/s with the cache, {plain:.0f} without, ratio "
                    f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f} in {REPETITIONS})"
                )


if __name__ == "__main__":
    main()
