"""Seconds of trusted grading, by a parent through shared memory and with probes, against in-process evaluation.

    python benchmarks/grading.py

The model is the shipped train.py's at the sizes of the preset `cpu`, untrained (the time does not depend on weights).
One run evaluates it both ways in turns: each time once in its own process, once graded by this one. The startup of
either side is not counted.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from autoresearch import presets, splits, trial
from autoresearch.grader import TrustedGrader
from autoresearch.records import RunRequest

REPETITIONS = 2
SCRIPT = """
import sys, time, torch, prepare, train
torch.manual_seed(prepare.SEED)
train.keep_freed_memory()
device, tokenizer = prepare.detect_device(), prepare.Tokenizer.from_directory()
model, _ = train.build(device, tokenizer.get_vocab_size())
torch.nn.init.normal_(model.head.weight, std=0.1)
with torch.inference_mode():
    model.eval()(prepare.warmup_batch(train.DEVICE_BATCH_SIZE, device)[0])
began = time.perf_counter()
if prepare.CHANNEL:
    next(prepare.make_dataloader(tokenizer, 1, prepare.MAX_SEQ_LEN, "train", device))
    began = time.perf_counter()
bpb = prepare.evaluate_bpb(model, tokenizer, train.DEVICE_BATCH_SIZE)
print("RESULT", time.perf_counter() - began, bpb)
"""


def once(files: Path, grader: TrustedGrader | None) -> tuple[float, float]:
    """Seconds and val_bpb of one evaluation, in-process where there is no grader."""
    environment, command = dict(os.environ), [sys.executable, "measured.py"]
    if grader is None:
        done = subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, check=True)
        return parse(done.stdout)
    session = grader.session(RunRequest("", "", {}, 42, 60.0, 600.0), lambda score: False)
    ours, theirs = socket.socketpair()
    environment[trial.CHANNEL] = str(theirs.fileno())
    with subprocess.Popen(
        command, cwd=files, env=environment, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True
    ) as child:
        theirs.close()
        thread = threading.Thread(target=session.serve, args=(ours,))
        thread.start()
        output = child.communicate()[0]
    thread.join()
    if session.problem:
        raise SystemExit(str(session.problem))
    return parse(output)


def parse(output: str) -> tuple[float, float]:
    line = next(line for line in output.splitlines() if line.startswith("RESULT"))
    seconds, bpb = map(float, line.split()[1:])
    return seconds, bpb


def main() -> None:
    preset = presets.presets()["cpu"]
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory, "lab")
        presets.create(files, preset)
        subprocess.run([sys.executable, "prepare.py"], cwd=files, check=True)
        shutil.copy(trial.__file__, files / trial.RUN_SIDE)
        (files / "measured.py").write_text(SCRIPT)
        grader = TrustedGrader(lambda: splits.read((files / "prepare.py").read_text()))
        pairs = [(once(files, None), once(files, grader)) for _ in range(REPETITIONS)]
    inside, outside = (statistics.median(seconds for seconds, _ in column) for column in zip(*pairs, strict=True))
    ratios = sorted(graded[0] / own[0] for own, graded in pairs)
    difference = max(abs(graded[1] - own[1]) for own, graded in pairs)
    print(
        f"in-process {inside:.2f} s, trusted {outside:.2f} s, ratio {outside / inside:.2f} ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} in {REPETITIONS} repetitions); val_bpb differs by {difference:.1e} at most"
    )


if __name__ == "__main__":
    main()
