"""Seconds of trusted grading, by a parent through shared memory and with probes, against in-process evaluation.

python benchmarks/grading.py [--preset NAME] [--pairs N]

The model is the shipped train.py's at the sizes of a preset (`cpu`), untrained, since the time does not depend on
weights, on the best device. The text is the standard library's. Each pair is two runs right after each other, one that
evaluates in its own process and one that this process grades; each is first in every second pair. Start-up is not
counted, nor is a first pair that warms up.
"""

import argparse
import dataclasses
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

from autoresearch.executors import hardware
from autoresearch.grading import protocol, splits
from autoresearch.grading.grader import TrustedGrader
from autoresearch.lab import presets
from autoresearch.ledger.records import RunRequest

GOAL = 1.3  # times the in-process evaluation
PAIRS = 5
SCRIPT = """
import sys, time, torch, prepare, train
torch.manual_seed(prepare.SEED)
train.keep_freed_memory()
device, tokenizer = prepare.detect_device(), prepare.Tokenizer.from_directory()
model, _ = train.build(device, tokenizer.get_vocab_size())
torch.nn.init.normal_(model.head.weight, std=0.1)
with torch.inference_mode():
    model.eval()(prepare.warmup_batch(prepare.grading_rows(train.DEVICE_BATCH_SIZE), device)[0])
if prepare.CHANNEL:
    next(prepare.make_dataloader(tokenizer, 1, prepare.MAX_SEQ_LEN, "train", device))
train.synchronize(device)
began = time.perf_counter()
bpb = prepare.evaluate_bpb(model, tokenizer, train.DEVICE_BATCH_SIZE)
print("RESULT", time.perf_counter() - began, bpb)
"""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Seconds and val_bpb of one evaluation, and how its logits traveled."""

    seconds: float
    val_bpb: float
    by: str


def inside(files: Path) -> Evaluation:
    """An evaluation in the run's own process."""
    command = [sys.executable, "measured.py"]
    done = subprocess.run(command, cwd=files, capture_output=True, text=True, check=True)
    return parse(done.stdout, "nothing")


def outside(files: Path, grader: TrustedGrader) -> Evaluation:
    """One graded by this process."""
    session = grader.session(RunRequest("", "", {}, 42, 60.0, 600.0), lambda score: False)
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "measured.py"],
        cwd=files,
        env={**os.environ, protocol.CHANNEL: str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        theirs.close()
        thread = threading.Thread(target=session.serve, args=(ours,))
        thread.start()
        output = child.communicate()[0]
    thread.join()
    ours.close()
    if session.problem or not session.scoring:
        raise SystemExit(f"the grading failed: {session.problem}\n{output}")
    stayed = session.scoring.logits is not session.scoring.memory
    return parse(output, "the GPU's memory" if stayed else "the host's memory")


def parse(output: str, by: str) -> Evaluation:
    line = next(line for line in output.splitlines() if line.startswith("RESULT"))
    seconds, bpb = map(float, line.split()[1:])
    return Evaluation(seconds, bpb, by)


def pairs(files: Path, count: int) -> list[tuple[Evaluation, Evaluation]]:
    """Evaluations inside and outside, each first in every second pair, after one pair to warm up."""
    grader, found = TrustedGrader(lambda: splits.read((files / "prepare.py").read_text())), []
    for number in range(count + 1):
        if number % 2:
            own = inside(files)
            found.append((own, outside(files, grader)))
        else:
            graded = outside(files, grader)
            found.append((inside(files), graded))
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="trusted grading against in-process evaluation")
    parser.add_argument("--preset", choices=presets.presets(), default="cpu")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    chosen = parser.parse_args()
    preset = presets.presets()[chosen.preset]
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory, "lab")
        presets.create(files, dataclasses.replace(preset, prepare={**preset.prepare, "SOURCE": "stdlib"}))
        subprocess.run([sys.executable, "prepare.py"], cwd=files, check=True)
        shutil.copy(protocol.__file__, files / protocol.RUN_SIDE)
        (files / "measured.py").write_text(SCRIPT)
        found = pairs(files, chosen.pairs)
    device = hardware.device()
    print(f"{device.kind}: {device.name}, {os.cpu_count()} cores, {platform.machine()}, PyTorch {torch.__version__}")
    own, graded = (statistics.median(each.seconds for each in column) for column in zip(*found, strict=True))
    ratios = sorted(there.seconds / here.seconds for here, there in found)
    ratio, difference = statistics.median(ratios), max(abs(there.val_bpb - here.val_bpb) for here, there in found)
    print(
        f"preset {chosen.preset}, logits by {found[0][1].by}: in-process {own:.2f} s, trusted {graded:.2f} s; ratio "
        f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(found)} pairs), the goal is at most {GOAL}: "
        f"{'met' if ratio <= GOAL else 'missed'}; val_bpb differs by {difference:.1e} at most"
    )


if __name__ == "__main__":
    main()
