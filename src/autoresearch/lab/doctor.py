"""Checks of this machine and, inside a lab, of the lab. Each says what to do if it fails."""

from __future__ import annotations

import functools
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from autoresearch.base import git, variables
from autoresearch.base.errors import UserError
from autoresearch.executors import hardware
from autoresearch.executors.hardware import GIBIBYTE
from autoresearch.executors.sandbox import bubblewrap, sandboxes
from autoresearch.grading import splits
from autoresearch.lab import config
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.researchers.guard import rules

MIN_MEMORY_GB = 4
MIN_DISK_GB = 5
CONFINED = {
    "bubblewrap": "a run sees only its own files and processes, and no network",
    "landlock": "a run opens only its own files and no TCP, but shares /proc and can reach named Unix sockets",
    "none": "a run has your rights, so only let researchers that you trust edit train.py",
}


@dataclass(frozen=True)
class Check:
    """One line of the doctor. `ok` is None for a warning. `remedy` says what to do if it is not True."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def examine(directory: Path, researcher: Callable[[Config], str] | None = None) -> Iterator[Check]:
    """Every check, in order, as it is made: of the machine, and in a lab of the lab. None of them raises.

    `researcher` says in words whether the lab's researcher can be asked, or raises a UserError.
    """
    last = None
    for name, check in CHECKS.items():
        yield (last := _made(name, functools.partial(check, directory)))
    if last is None or not last.ok:
        return
    workspace = Workspace(directory)
    try:
        settings, _ = config.load(workspace.program)
    except UserError as error:
        yield Check("program.md", False, str(error))
        return
    yield Check("program.md", True, f"{len(settings.model_fields_set)} settings")
    for name, test in LAB_CHECKS.items():
        yield _made(name, functools.partial(test, workspace, settings))
    if researcher:
        yield _made("researcher", lambda: Check("researcher", True, researcher(settings)))


def _made(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except UserError as error:
        return Check(name, False, str(error))
    # a broken driver or package can raise anything, and that is what the doctor should show
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}", "reinstall with `pip install autoresearch`")


def _python(directory: Path) -> Check:
    return Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch(directory: Path) -> Check:
    import torch

    device = hardware.device()
    preset = hardware.preset_for(device)
    return Check("torch", True, f"{torch.__version__}, {device.kind}: {device.name}; preset `{preset}` fits")


def _memory(directory: Path) -> Check:
    import torch

    free = {"of the machine": psutil.virtual_memory().available / GIBIBYTE}
    if torch.cuda.is_available():
        free["of the GPU"] = torch.cuda.mem_get_info()[0] / GIBIBYTE
    found = ", ".join(f"{gigabytes:.1f} GiB free {where}" for where, gigabytes in free.items())
    remedy = "close other programs, or lower DEVICE_BATCH_SIZE in train.py"
    return Check("memory", min(free.values()) >= MIN_MEMORY_GB, found, remedy)


def _disk(directory: Path) -> Check:
    cache = variables.cache_directory()
    places = {"here": directory, "cache": next(path for path in (cache, *cache.parents) if path.exists())}
    free = {name: shutil.disk_usage(path).free / GIBIBYTE for name, path in places.items()}
    found = ", ".join(f"{gigabytes:.1f} GiB free {name}" for name, gigabytes in free.items())
    return Check("disk", min(free.values()) >= MIN_DISK_GB, found, "free some space: data and checkpoints need it")


def _git(directory: Path) -> Check:
    try:
        return Check("git", True, git.version())
    except UserError as error:
        return Check("git", False, "not found", str(error))


def _sandbox(directory: Path) -> Check:
    best = sandboxes.choose()
    why = sandboxes.failure(bubblewrap.Bubblewrap.name)
    return Check("sandbox", True if why is None else None, f"{best.name}: {CONFINED[best.name]}", sandboxes.remedy())


IN_SANDBOX_SECONDS = 120.0  # imports torch and, on a GPU, compiles
IN_SANDBOX = """
import torch
x = torch.zeros(8, device={kind!r})
if x.is_cuda:
    torch.compile(lambda x: x + 1)(x)
print("works")
"""


def _device_in_sandbox(directory: Path) -> Check:
    """A run needs the device inside the sandbox; on a GPU it needs a compiler there, too."""
    kind, best = hardware.device().kind, sandboxes.choose()
    said = sandboxes.output(best.name, IN_SANDBOX.format(kind=kind), IN_SANDBOX_SECONDS)
    remedy = (
        "let the sandbox see the driver's files, or set `sandbox: none` in program.md; without a compiler it is slow"
    )
    return Check(
        "device in sandbox", said == "works", f"{kind} in {best.name}: {(said or 'silent').splitlines()[-1]}", remedy
    )


def _attention(directory: Path) -> Check:
    """A real forward and backward pass: a kernel that imports does not always run."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    device = torch.device(hardware.device().kind)
    start = time.perf_counter()
    q, k, v = (torch.randn(2, 4, 256, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    loss = F.scaled_dot_product_attention(q, k, v, is_causal=True).float().square().mean()
    torch.autograd.backward(loss)
    finite = all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (q, k, v))
    seconds = time.perf_counter() - start
    remedy = "install a torch build that fits this device's driver"
    return Check("attention", finite, f"bf16 forward and backward on {device} in {seconds:.2f} s", remedy)


def _lab(directory: Path) -> Check:
    try:
        return Check("lab", True, str(Workspace.open(directory).root))
    except UserError as error:
        return Check("lab", None, "not in a lab", str(error))


def _writable(workspace: Workspace, settings: Config) -> Check:
    try:
        with tempfile.TemporaryFile(dir=workspace.root):
            return Check("writable", True, str(workspace.root))
    except OSError as error:
        remedy = "what only looks works; to run trials, copy the lab to where you can write"
        return Check("writable", False, f"nothing can be written in {workspace.root} ({error.strerror})", remedy)


def _editable(workspace: Workspace, settings: Config) -> Check:
    head = workspace.head()
    files = workspace.files(head) if head else {}
    for path in settings.editable:
        if path not in files:
            return Check("editable", False, f"{path} is not in the last commit", f"`git add {path}` and commit it")
        if problem := rules.syntax_problem(path, files[path].decode(errors="replace")):
            return Check("editable", False, problem, "fix it and commit it: the search starts from it")
    return Check("editable", True, ", ".join(settings.editable))


def _preset(workspace: Workspace, settings: Config) -> Check:
    fitting = hardware.preset_for(hardware.device())
    if settings.preset in (None, fitting):
        return Check("preset", True, settings.preset or "none is named")
    remedy = "a run may be too slow or not fit; `autoresearch doctor --fit` measures it and sets the sizes"
    return Check("preset", None, f"{settings.preset}, and {fitting} fits this machine", remedy)


def _data(workspace: Workspace, settings: Config) -> Check:
    prepare_py = (workspace.root / "prepare.py").read_text(encoding="utf-8")
    if not splits.can_be_graded(prepare_py):
        return Check("data", None, "this lab's prepare.py does not say", "its scores will be self-reported")
    try:
        found = splits.reading(prepare_py)
    except UserError as error:
        return Check("data", None, f"not ready ({error})", "`autoresearch prepare`; `run` does it, too")
    return Check("data", True, f"prepared: {found.vocabulary:,} tokens in the vocabulary, context {found.context:,}")


LAB_CHECKS: dict[str, Callable[[Workspace, Config], Check]] = {
    "writable": _writable,
    "editable": _editable,
    "preset": _preset,
    "data": _data,
}
CHECKS: dict[str, Callable[[Path], Check]] = {
    "python": _python,
    "torch": _torch,
    "memory": _memory,
    "disk": _disk,
    "git": _git,
    "sandbox": _sandbox,
    "device in sandbox": _device_in_sandbox,
    "attention": _attention,
    "lab": _lab,
}
