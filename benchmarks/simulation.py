"""The production scheduler in simulated time: its real driver, slots, desk, judge, ledger and git.

The clock runs like the machine's own while the driver works, so whatever the driver costs is in the result. It stands
while a run's thread or a researcher's computes: in reality they do so elsewhere, within the time that is simulated. It
jumps to the next end of a run, or the next answer, when everything waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import importlib
import itertools
import random
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoresearch.base import git
from autoresearch.executors.interface import Progress, Weigh
from autoresearch.executors.local import graded
from autoresearch.grading.grader import SelfReported
from autoresearch.judging.judge import PosteriorJudge
from autoresearch.lab import past_trials
from autoresearch.lab.settings import Config
from autoresearch.lab.workspace import Workspace
from autoresearch.ledger.events import Event, Verdict
from autoresearch.ledger.ledger import Ledger
from autoresearch.ledger.records import Place, Proposal, RunEvent, RunRequest, RunResult
from autoresearch.ledger.results_file import ResultsFile
from autoresearch.loop.driver import Driver, drive
from autoresearch.loop.loop import recorded_stop
from autoresearch.loop.parts import compose
from autoresearch.loop.parts.stages import Policy, Stages
from autoresearch.loop.slots import Slots
from autoresearch.loop.start import begin
from autoresearch.researchers.builtin.researcher import BuiltinResearcher
from autoresearch.researchers.guard.fingerprint import fingerprint
from autoresearch.researchers.interface import Brief, Kit
from surrogate import Surrogate, baseline, described

BUDGET = 300.0  # seconds of a trial's training
START = (8.0, 25.0)  # seconds before it: imports, compilation
GRADING = (8.0, 15.0)  # seconds after it
CRASHES_AFTER = 30.0  # seconds
ANSWER = (5.0, 90.0)  # seconds that a proposal takes
LOST = 0.01  # share of runs whose node is lost, at any time of theirs
SETTLED = 120.0  # real seconds in which what computes must come to its end
WORKERS = ("run", "researcher")  # names of the threads that the loop starts


class Clock:
    """Seconds since it was made: real ones, plus what was jumped over, minus those in which it stood."""

    def __init__(self) -> None:
        self._begin, self._ahead = time.monotonic(), 0.0
        self._standing: float | None = None
        self._asleep: dict[threading.Thread, float] = {}
        self._changed = threading.Condition()
        self.has_news = False  # somebody's time came

    def now(self) -> float:
        real = time.monotonic() if self._standing is None else self._standing
        return real - self._begin + self._ahead

    def sleep_until(self, at: float) -> None:
        """Wait in a worker's thread."""
        me = threading.current_thread()
        with self._changed:
            self._asleep[me] = at
            self._changed.notify_all()
            self._changed.wait_for(lambda: me not in self._asleep)

    def advance(self) -> None:
        """Let everything that computes come to its end or to sleep; if nothing has ended, jump to what is next."""
        with self._stands():
            self._settle()
        if not self.has_news:
            with self._changed:
                if self._asleep:
                    self._ahead += max(min(self._asleep.values()) - self.now(), 0.0)
        with self._stands():
            self._wake()
            self._settle()
        self.has_news = False

    def release(self) -> None:
        """Wake everybody, at the end."""
        with self._changed:
            self._asleep.clear()
            self._changed.notify_all()

    @contextlib.contextmanager
    def _stands(self) -> Iterator[None]:
        self._standing = began = time.monotonic()
        yield
        self._ahead -= time.monotonic() - began
        self._standing = None

    def _wake(self) -> None:
        with self._changed:
            for thread in [thread for thread, at in self._asleep.items() if at <= self.now()]:
                del self._asleep[thread]
            self._changed.notify_all()

    def _settle(self) -> None:
        end = time.monotonic() + SETTLED
        while any(each.name in WORKERS and each not in self._asleep for each in threading.enumerate()):
            assert time.monotonic() < end, "a worker neither ends nor sleeps"
            time.sleep(0.0005)


class SimulatedSlots(Slots):
    """The loop's slots, whose waiting moves the clock. `working` has the driver's own time between two waits, in real
    seconds: those that passed, and those of a processor, git's included."""

    def __init__(self, stages: Stages, clock: Clock) -> None:
        super().__init__(stages)
        self._clock, self._since = clock, own_time()
        self.working: list[tuple[float, float]] = []

    def wait(self, seconds: float) -> None:
        now, before = own_time(), self._since
        self.working.append((now[0] - before[0], now[1] - before[1]))
        self._clock.advance()
        self._since = own_time()


def own_time() -> tuple[float, float]:
    """Seconds on the machine's clock, and of the processor by this thread and by processes that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), time.thread_time() + children.ru_utime + children.ru_stime


@dataclass
class SimulatedExecutor:
    """Gives each program the surrogate's val_bpb with the noise of a run, after the time that a run takes.

    `spans` are the beginnings and ends of the runs, in the clock's seconds.
    """

    clock: Clock
    model: Surrogate
    root: Path
    seed: int
    name: str = "simulated"
    sandbox: str = "none"
    grader: SelfReported = field(default_factory=SelfReported)
    lost: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)

    def run(self, request: RunRequest, progress: Progress, weigh: Weigh) -> RunResult:
        began, draw = self.clock.now(), random.Random(f"{self.seed} {request.run_id} {request.seed}")
        value = self.model.value(described(request.files["train.py"].decode()))
        start, grading = draw.uniform(*START), draw.uniform(*GRADING)
        whole = start + BUDGET + grading if value is not None else CRASHES_AFTER
        is_lost = draw.random() < LOST  # its node, on the way
        end = began + (draw.uniform(0, whole) if is_lost else whole)
        self.clock.sleep_until(end)
        self.clock.has_news = True
        self.spans.append((began, end))
        self.lost += is_lost
        score = value and value * (1 + draw.gauss(0, self.model.sigma))
        result = self._result(request, None if is_lost else score, start, end - began)
        result = replace(result, grading=graded(self.grader.session(request, lambda score: False), result))
        return replace(result, lost="its node was lost" if is_lost else None)

    def _result(self, request: RunRequest, score: float | None, start: float, whole: float) -> RunResult:
        events = (
            RunEvent("first_batch", start, {}),
            RunEvent("grade_requested", start + BUDGET, {}),
            RunEvent("score", whole, {"split": "val", "val_bpb": score, "nats": score, "tokens": 1, "bytes": 1}),
        )
        return RunResult(
            exit_code=1 if score is None else 0,
            wall_seconds=whole,
            events=() if score is None else events,
            log_tail="RuntimeError: this change was recorded as a crash" if score is None else "",
            log_path=str(self.root / f".autoresearch/trials/{request.run_id}/run.log"),
            curve_path=str(self.root / f".autoresearch/trials/{request.run_id}/curve.jsonl"),
        )

    def end_leftovers(self) -> int:
        self.clock.release()
        return 0

    def close(self) -> None:
        """There is nothing to give back."""

    def busy_share(self, seconds: float) -> float:
        return 0.0


class TimedResearcher:
    """A researcher whose answers take their time, asked several questions side by side."""

    name = "builtin"
    side_by_side = True

    def __init__(self, clock: Clock, seed: int, write: Callable[[Brief], Proposal]) -> None:
        self._clock, self._draw, self._write = clock, random.Random(f"answers {seed}"), write
        self._lock = threading.Lock()

    def propose(self, brief: Brief) -> Proposal:
        asked = self._clock.now()
        with self._lock:
            proposal = self._write(brief)
            seconds = self._draw.uniform(*ANSWER)
        self._clock.sleep_until(asked + seconds)
        self._clock.has_news = True
        return proposal


class Unlike:
    """The built-in researcher, which proposes nothing twice, whether or not the ledger has it yet."""

    def __init__(self, seed: int) -> None:
        self._builtin, self._made = BuiltinResearcher(kit=Kit(seed=seed)), set[str]()  # by fingerprints

    def __call__(self, brief: Brief) -> Proposal:
        for refusal in itertools.chain([brief.refusal], itertools.repeat("it is being tried")):
            proposal = self._builtin.propose(dataclasses.replace(brief, refusal=refusal))
            mark = fingerprint({**brief.files, **proposal.files})
            if mark not in self._made:
                self._made.add(mark)
                break
        return proposal


# ---------------------------------------------------------------- a campaign


@dataclass(frozen=True)
class Way:
    """How a campaign is driven."""

    slots: int
    search: str = "line"
    ahead: int = 0


@dataclass
class Course:
    """What a campaign came to: the noise-free val_bpb of its incumbents, each with the second and the number of
    verdicts at which it became that; the share of the slots that was busy; and the driver's own work."""

    way: Way
    seed: int
    base: float
    steps: list[tuple[float, int, float]] = field(default_factory=list)
    seconds: float = 0.0  # of the whole search
    trials: int = 0
    busy: float = 0.0
    lost: int = 0
    own_ms: float = 0.0  # real milliseconds that the driver works for a trial
    processor_ms: float = 0.0  # those of a processor in it, git's included
    elsewhere: int = 0  # trials that did not start from the incumbent

    def gain(self, trials: int | None = None) -> float:
        """The relative gain after so many verdicts, or at the end."""
        known = [value for _, number, value in self.steps if trials is None or number <= trials]
        return 1 - known[-1] / self.base

    def area(self, trials: int) -> float:
        """The relative gain on average over so many verdicts."""
        return statistics.fmean(self.gain(number) for number in range(1, trials + 1))

    def after(self, trials: int) -> float:
        """The second at which so many trials after the baseline had their verdicts."""
        return next(at for at, number, _ in self.steps if number >= trials)

    def until(self, gain: float) -> float:
        """The second at which the gain was reached; infinite if it never was."""
        return next((at for at, _, value in self.steps if 1 - value / self.base >= gain), float("inf"))


def busy(spans: list[tuple[float, float]], first: float, last: float, slots: int) -> float:
    """The share of the slots' time that runs took, from the baseline's verdict until the first slot was left empty at
    the end: `last` is the last verdict, and with it everything that was in flight has landed."""
    stop = max(start for start, _ in spans) if slots > 1 else last
    within = sum(max(min(end, stop) - max(start, first), 0.0) for start, end in spans)
    return within / (slots * (stop - first))


def make_lab(root: Path) -> Path:
    """A lab with the surrogate's baseline."""
    root.mkdir(parents=True)
    train, prepare = baseline()
    files = {"train.py": train, "prepare.py": prepare, "program.md": "---\n---\nLower it.\n"}
    for name, text in (*files.items(), (".gitignore", ".autoresearch/\nresults.tsv\n")):
        (root / name).write_text(text, encoding="utf-8")
    git.init(root)
    git.commit_all(root, "A lab")
    return root


def stages(
    root: Path, way: Way, executor: SimulatedExecutor, researcher: TimedResearcher, announce: Callable[[Event], None]
) -> Stages:
    """What the production scheduler needs, with a simulated executor and researcher."""
    workspace, settings = Workspace.open(root), Config()
    ledger = Ledger(workspace.ledger)
    return Stages(
        workspace=workspace,
        results=ResultsFile(workspace.results),
        ledger=ledger,
        researcher=researcher,
        fallback=None,
        executor=executor,
        judge=PosteriorJudge(compose.terms(settings)),
        policy=Policy(ahead=way.ahead, search=way.search, longest_pause_seconds=0.0, max_disturbance=1.0),  # type: ignore[arg-type]
        archive=past_trials.of_lab(workspace, ledger, ("train.py",)),
        editable=("train.py",),
        budget_seconds=BUDGET,
        deadline_seconds=10 * BUDGET,
        startup_seconds=BUDGET,
        min_free_gb=0.0,
        prune=False,
        device="simulated",
        preset=None,
        program=lambda: "Lower it.",
        guidance=lambda: "",
        redact=lambda text: text,
        prepare=lambda files: None,
        examine=lambda trial, poll: None,
        announce=announce,
        progress=lambda trial, event: None,
        places=lambda: tuple(Place(node="simulated", share=share) for share in range(way.slots)),
        clock=executor.clock.now,
    )


def campaign(
    root: Path,
    way: Way,
    seed: int,
    model: Surrogate,
    enough: Callable[[Course], bool],
    write: Callable[[Brief], Proposal] | None = None,
) -> Course:
    """Drive a campaign of a lab, new or continued, until `enough` of its course so far. The built-in researcher writes
    the proposals, or `write`."""
    clock, course, values = Clock(), Course(way, seed, model.base), dict[str, float]()

    def announce(event: Event) -> None:
        if isinstance(event, Verdict):
            course.trials += 1
            if event.incumbent not in values:
                text = parts.workspace.files(event.incumbent)["train.py"].decode()
                values[event.incumbent] = model.value(described(text)) or model.base
            course.steps.append((clock.now(), course.trials - 1, values[event.incumbent]))

    executor = SimulatedExecutor(clock, model, root, seed)
    parts = stages(root, way, executor, TimedResearcher(clock, seed, write or Unlike(seed)), announce)
    with recorded_stop(parts, "t"):
        begin(parts, "t")
        slots = SimulatedSlots(parts, clock)
        with slots:
            told = lambda made: "enough" if enough(course) else None  # noqa: E731
            drive(Driver(parts, "t", slots, told, lambda: True, confirming=False), slots)
    course.busy, course.seconds = busy(executor.spans, course.steps[0][0], course.steps[-1][0], way.slots), clock.now()
    own, processor = (1000 * sum(each) / max(course.trials, 1) for each in zip(*slots.working, strict=True))
    course.lost, course.own_ms, course.processor_ms = executor.lost, own, processor
    course.elsewhere = sum(trial.proposed.start is not None for trial in parts.campaign("t").trials)
    return course


# ---------------------------------------------------------------- without the scheduler


def naive(slots: int, seed: int, model: Surrogate, enough: Callable[[Course], bool]) -> Course:
    """So many workers, each of which changes the newest incumbent, runs that, and makes it the incumbent if its one
    score is lower; nothing is carried over, and no slot works while its worker thinks."""
    campaigns = importlib.import_module("campaigns")  # of tests/
    luck, answers = random.Random(f"luck {seed}"), random.Random(f"answers {seed}")
    brief = campaigns.begun({"train.py": baseline()[0]}, model.base * (1 + luck.gauss(0, model.sigma)))
    course, write = Course(Way(slots, "naive"), seed, model.base), Unlike(seed)
    ran: dict[int, dict[str, str]] = {0: dict(brief.files)}
    course.steps.append((0.0, 0, model.base))
    flying: list[tuple[float, int, Proposal, dict[str, str], str]] = []
    count = itertools.count()
    archive = dataclasses.replace(brief.archive, files=lambda trial: ran.get(trial, {}))

    def begin_one(now: float) -> None:
        own = dataclasses.replace(brief, archive=archive, frozen={"prepare.py": baseline()[1]}, trial=len(ran))
        proposal, parent = write(own), own.campaign.incumbent
        assert parent is not None
        files = {**own.files, **proposal.files}
        seconds = answers.uniform(*ANSWER) + luck.uniform(*START) + BUDGET + luck.uniform(*GRADING)
        heapq.heappush(flying, (now + seconds, next(count), proposal, files, parent.proposed.commit))

    for _ in range(slots):
        begin_one(0.0)
    while not enough(course):
        now, _, proposal, files, parent = heapq.heappop(flying)
        value = model.value(described(files["train.py"]))
        ran[len(ran)] = files
        brief = campaigns.after(brief, proposal, value and value * (1 + luck.gauss(0, model.sigma)))
        *before, last = brief.campaign.trials
        last = dataclasses.replace(last, proposed=dataclasses.replace(last.proposed, parent=parent))
        brief = dataclasses.replace(brief, campaign=dataclasses.replace(brief.campaign, trials=(*before, last)))
        incumbent = brief.campaign.incumbent
        assert incumbent is not None
        brief = dataclasses.replace(brief, files=ran[incumbent.number])
        best = model.value(described(ran[incumbent.number]["train.py"])) or model.base
        course.trials += 1
        course.steps.append((now, course.trials, best))
        begin_one(now)
    course.seconds = course.steps[-1][0]
    return course
