"""Real trials of the shipped train.py that fail as runs do on a device: on the CPU, and with `-m gpu` on a GPU.

A GPU's other tests: tests/grading/test_device_memory.py (logits that stay there), tests/lab/test_loader.py (pinned
buffers).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from autoresearch.executors.sandbox import usage
from autoresearch.lab import presets
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.campaign import Campaign
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Status
from sampling_lab import BATCH, SETTINGS, TINY
from texts import documents, write_jsonl

TOO_MUCH = "torch.empty(2**48, device=model.embedding.weight.device)"
TRAINED = "    model.eval()\n    val_bpb ="
IDEAS = {
    "out of memory in training": ("    steps, seconds = train(", f"    {TOO_MUCH}\n    steps, seconds = train("),
    "out of memory in grading": (
        TRAINED,
        f"    model.register_forward_pre_hook(lambda *given: {TOO_MUCH})\n{TRAINED}",
    ),
    "not a number": (TRAINED, f"    torch.nn.init.constant_(model.head.weight, float('nan'))\n{TRAINED}"),
    "nothing": (TRAINED, f"    print('the same')\n{TRAINED}"),
}


@dataclass(frozen=True)
class DeviceLab:
    root: Path
    environment: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "autoresearch", *words, "--lab", str(self.root)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=self.environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def call(self, *words: str) -> str:
        with self.start(*words) as process:
            said: str = process.communicate(timeout=250)[0]
        assert process.returncode == 0, said
        return said

    @property
    def campaign(self) -> Campaign:
        found = Ledger(Workspace.open(self.root).ledger).campaign()
        assert found is not None
        return found


def make(root: Path, device: str, script: list[dict[str, object]]) -> DeviceLab:
    source = write_jsonl(root / "texts.jsonl", documents(3000))
    settings = {"SOURCE": f"files:{source}", **SETTINGS, "TIME_BUDGET": 3 if device == "cuda" else 1}
    preset = presets.Preset("tiny", "a test", settings, {**TINY, **BATCH}, 60)
    presets.create(root / "lab", preset)
    (root / "script.json").write_text(json.dumps(script))
    front = f"---\nresearcher: scripted:{root / 'script.json'}\njudge: greedy\nmin_free_gb: 0\nfallback: none\n---\n"
    (root / "lab" / "program.md").write_text(front)
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return DeviceLab(root / "lab", {**os.environ, **hidden, "AUTORESEARCH_CACHE": str(root / "cache")})


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DeviceLab:
    script = [{"idea": idea, "edits": [["train.py", old, new]]} for idea, (old, new) in IDEAS.items()]
    made = make(tmp_path_factory.mktemp("device"), request.param, script)
    made.call("run", "--tag", "t")
    return made


def test_what_fails_on_a_device_is_a_trial_like_any_other_and_the_next_one_runs(lab: DeviceLab) -> None:
    found = {trial.proposed.idea: trial.verdict for trial in lab.campaign.finished}
    assert list(found) == ["baseline", *IDEAS]
    for idea in ("out of memory in training", "out of memory in grading"):
        assert found[idea].status is Status.CRASH
        assert "out of memory" in found[idea].reason, found[idea].reason
    assert found["not a number"].status in (Status.CRASH, Status.INVALID)
    assert "finite" in found["not a number"].reason
    assert found["nothing"].val_bpb is not None


def test_nothing_is_left_on_the_device(lab: DeviceLab) -> None:
    for log in lab.root.glob(".autoresearch/trials/*/run*/run.log"):
        assert "still allocated" not in log.read_text(errors="replace")


def test_a_kept_model_writes_with_its_cache_and_without(lab: DeviceLab) -> None:
    """The same text is only written in float32 (tests/models): here two tokens may be equally likely up to rounding."""
    words = ("sample", "The", "--max-tokens", "8", "--tag", "t")
    for said in (lab.call(*words), lab.call(*words, "--no-cache")):
        assert said.startswith("The")
        assert "the cache of keys and values" not in said


@pytest.mark.gpu
def test_two_labs_share_a_card(tmp_path: Path) -> None:
    labs = [make(tmp_path / name, "cuda", []) for name in ("one", "two")]
    for process in [each.start("run", "--tag", "t") for each in labs]:
        with process:
            said = process.communicate(timeout=280)[0]
            assert process.returncode == 0, said
    assert all(each.campaign.trials[0].runs[0].score for each in labs)


@pytest.mark.gpu
def test_what_a_process_holds_on_a_card_is_seen_until_it_ends() -> None:
    script = (
        "import torch; x = torch.empty(2**28, dtype=torch.uint8, device='cuda'); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        process, seen = psutil.Process(child.pid), usage.gpu_memory()
        if child.pid not in seen:
            pytest.skip("the driver counts processes of another namespace: this is a container")
        assert seen[child.pid] >= 2**28
        child.communicate("\n")
    assert usage.left_on_gpu([process]) == 0
