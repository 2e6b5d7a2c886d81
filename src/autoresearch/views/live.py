"""What `run` shows while it works: a live line for the current trial, and a line for each verdict.

Nothing here decides or stores anything. Ideas and reasons pass through `report.one_line` before they are shown.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from autoresearch.judging.comparability import other_kernels
from autoresearch.judging.confirmation import LOOKS, pair_of
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import (
    CampaignStarted,
    Confirmation,
    Event,
    FileSaved,
    Ordered,
    ProposalRefused,
    RunEnded,
    RunStarted,
    Stopped,
    TrialProposed,
    Verdict,
)
from autoresearch.ledger.records import NEWS, Outcome, Purpose, RunEvent, Status
from autoresearch.ledger.report import Row, one_line, plain, row_of, shorten, usual_seconds
from autoresearch.views.lines import about, label, say, set_up, verdict_line

BAR = 16  # columns
MOST_LINES = 12  # of trials in flight
QUIET_SECONDS = 15.0  # between two progress lines if there is no terminal


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class Work:
    """The state behind the live line of the current trial. `since` is on the view's clock, `progress` is 0 to 1."""

    trial: int
    idea: str
    since: float
    phase: str = "starting"
    progress: float | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    lost: float = 0.0  # share of its time that it lost to other programs

    def heard(self, event: RunEvent) -> Work:
        """Return the state after one more line from the run."""
        if event.name == "curve":
            return replace(
                self,
                phase="training",
                progress=_finite(event, "progress"),
                loss=_finite(event, "loss"),
                tokens_per_second=_finite(event, "tokens_per_second"),
            )
        if event.name == "load":
            return replace(self, lost=_finite(event, "lost") or 0.0)
        if event.name == "waiting":
            return replace(self, phase="waiting for a quiet machine", lost=_finite(event, "busy") or 0.0)
        if event.name == "examined_again":
            return replace(self, phase="examining the model once more")
        phases = {"first_batch": "training", "grade_requested": "grading", "score": "judging"}
        return replace(self, phase=phases.get(event.name, self.phase))

    def numbers(self) -> str:
        percent = f" {100 * min(1.0, self.progress):3.0f}%" if self.phase == "training" and self.progress else ""
        loss = "" if self.loss is None else f"  loss {self.loss:.3f}"
        speed = "" if self.tokens_per_second is None else f"  {self.tokens_per_second:,.0f} tokens/s"
        lost = f"  {100 * self.lost:.0f}% taken by other programs" if self.lost >= 0.01 else ""
        return f"{self.phase}{percent}{loss}{speed}{lost}"


def _finite(event: RunEvent, name: str) -> float | None:
    """A number from the run, if it really is a number."""
    value = event.values.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


class LiveView:
    """What `run` shows while it works: on a terminal one live line with verdicts above it, elsewhere plain lines.

    `campaign` is what the ledger held before, so that a continued campaign is compared with its incumbent. `then` says
    what to do next after it stopped.
    """

    def __init__(
        self,
        console: Console,
        campaign: Campaign | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        then: str = "",
    ) -> None:
        self._console = console
        self._clock = clock
        self._then = then
        self._on_terminal = console.is_terminal and not console.is_dumb_terminal
        self._live: Live | None = None
        self._works: dict[int, Work] = {}  # of each trial that has a run in flight
        self._lock = threading.RLock()  # runs side by side report from their own threads
        self._spoke = -math.inf
        self._trials = {trial.number: trial for trial in campaign.trials} if campaign else {}
        incumbent = campaign.incumbent if campaign else None
        self._best = incumbent.val_bpb if incumbent else None
        self._kept = {trial.number: trial.val_bpb for trial in campaign.kept} if campaign else {}
        self._paired: int | None = None  # the seed of the pair that is running
        self._refused = ""  # the researcher whose last proposal failed
        self._away = ""  # the one that another stands in for

    def __enter__(self) -> LiveView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def progress(self, trial: int, run_event: RunEvent) -> None:
        """Receive one line of the current run; called several times a second. News of machines are of no trial."""
        if run_event.name == NEWS:
            self._tell(Text(one_line(str(run_event.values["text"])), "yellow"))
            return
        with self._lock:
            work = self._works[trial] = (self._works.get(trial) or self._begin(trial)).heard(run_event)
        if not self._on_terminal and self._clock() - self._spoke >= QUIET_SECONDS:
            elapsed = _clock(self._clock() - work.since)
            self._tell(Text(f"#{trial:<3} {work.numbers()}  {elapsed}"))

    def event(self, event: Event) -> None:
        """Show one event of the ledger as it is recorded."""
        with self._lock:
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case CampaignStarted():
                self._tell(label("campaign", f"autoresearch/{event.tag}", "bold"), label("set-up", set_up(event)))
                self._trials, self._best = {}, None
            case TrialProposed():
                self._trials[event.trial] = Trial(event)
                self._say_who(event)
            case ProposalRefused():
                self._refused = event.researcher
                self._refuse(event)
            case RunStarted():
                self._start(event)
            case RunEnded():
                self._end(event)
            case Verdict():
                self._decide(event)
            case Confirmation():
                style = {Outcome.CONFIRMED: "green", Outcome.REFUTED: "red"}.get(event.outcome, "yellow")
                self._works.clear()
                self._tell(label("", f"#{event.trial} {event.reason}", style))
                self._best = self._kept.get(event.incumbent, self._best)
            case FileSaved():
                self._tell(label("saved", event.words, "yellow"))
            case Ordered():
                self._tell(label("ordered", one_line(event.words), "bold"))
            case Stopped():
                self._works.clear()
                self._tell(label("stopped", event.reason, "bold"))
                if self._then:
                    self._tell(label("next", self._then))

    def _refuse(self, event: ProposalRefused) -> None:
        """One line: why a proposal did not become a trial."""
        head = f"{event.researcher} failed" if event.failed else f"refused: {one_line(event.idea or 'no proposal')}"
        said = f"{head} ({shorten(one_line(event.reason), 200)})"
        self._tell(Text(shorten(said, self._console.width) if self._on_terminal else said, "yellow"))

    def _say_who(self, event: TrialProposed) -> None:
        """Say so if another researcher stands in for one that failed or does not answer, and when that one is back."""
        if event.researcher == self._away:
            self._tell(Text(f"{event.proposer} proposes again", "green"))
            self._away = ""
        elif self._refused and self._refused not in (event.researcher, self._away):
            self._tell(Text(f"{event.proposer} takes over until {self._refused} proposes again", "yellow"))
            self._away = self._refused
        self._refused = ""

    def _begin(self, trial: int) -> Work:
        known = self._trials.get(trial)
        return Work(trial, one_line(known.proposed.idea) if known else "", self._clock())

    def _start(self, event: RunStarted) -> None:
        again = "" if event.purpose is Purpose.TRIAL else f" again, to {event.purpose.value}"
        if event.purpose is Purpose.CONFIRM:
            self._say_pair(event.seed)
        work = self._begin(event.trial)
        self._works[event.trial] = replace(work, idea=f"{again.strip()}: {work.idea}" if again else work.idea)
        if not self._on_terminal:
            self._tell(Text(f"#{event.trial:<3} starts{again}, seed {event.seed}: {work.idea}"))
        elif self._live is None:
            # Not before the first run: until then prepare.py writes its own lines to the terminal.
            self._live = Live(console=self._console, get_renderable=self._line, transient=True, refresh_per_second=4)
            self._live.start()

    def _say_pair(self, seed: int) -> None:
        """Once for each pair of runs of a confirmation: how long it may still take."""
        pair, most = pair_of(seed), LOOKS[-1]
        if seed == self._paired:
            return
        self._paired = seed
        usual = usual_seconds(self._trials.values())
        rest = f", at most {about(2 * (most - pair + 1) * usual)} more" if usual else ""
        self._tell(Text(f"confirming on fresh seeds: pair {pair} of at most {most}{rest}", "dim"))

    def _end(self, event: RunEnded) -> None:
        known = self._trials.get(event.trial)
        if known:
            self._trials[event.trial] = known.having(event)
        if event.disturbed:
            what = "it is made again" if event.set_aside else "it is judged all the same, since the machine stays busy"
            self._tell(Text(f"#{event.trial} was disturbed: {event.disturbed}; {what}", "yellow"))
        baseline = self._trials[min(self._trials)] if self._trials else None
        if known and baseline and baseline.runs and (other := other_kernels(event, baseline.runs[0])):
            self._tell(Text(f"#{event.trial} ran with {one_line(other)} as the baseline: speeds differ", "yellow"))
        if work := self._works.get(event.trial):
            self._works[event.trial] = replace(work, phase="judging")
        if event.purpose is not Purpose.TRIAL:
            self._works.pop(event.trial, None)

    def _decide(self, event: Verdict) -> None:
        self._works.pop(event.trial, None)
        known = self._trials.get(event.trial)
        if known:
            row = row_of(replace(known, verdict=event))
        else:
            row = Row(event.trial, "", event.val_bpb, event.memory_gb, event.status, one_line(event.reason))
        gain = None if self._best is None or row.val_bpb is None else self._best - row.val_bpb
        gain = event.estimate.gain if event.estimate else gain
        self._tell(verdict_line(row, gain))
        if event.estimate:
            self._tell(Text(f"     {one_line(event.reason)}", "dim"))
        if known and event.status is Status.CRASH:
            self._tell_frame(known)
        if event.status is Status.KEEP:
            self._best = self._kept[event.trial] = event.val_bpb

    def _tell_frame(self, trial: Trial) -> None:
        """The line of code where it crashed, if the traceback shows it."""
        frames = [line for line in plain(trial.crash.detail if trial.crash else "").splitlines() if 'File "' in line]
        if frames:
            self._tell(Text(f"     {one_line(frames[-1])}", "red"))

    def _tell(self, *lines: Text) -> None:
        self._spoke = self._clock()
        if self._live:
            self._live.refresh()  # otherwise the old line would be drawn once more
        say(self._console, *lines)

    def _line(self) -> Text:
        """The live lines, one for each trial that has a run in flight, each cut to the terminal's width."""
        frame = Spinner("line" if self._console.options.ascii_only else "dots", style="cyan").render(time.monotonic())
        assert isinstance(frame, Text)
        with self._lock:
            works = list(self._works.values())[:MOST_LINES]
        if not works:
            return Text.assemble(frame, (" preparing the next trial", "dim"))
        return Text("\n").join(self._work_line(frame, work) for work in works)

    def _work_line(self, frame: Text, work: Work) -> Text:
        ascii_only = self._console.options.ascii_only
        line = Text.assemble(
            *(frame, " ", (f"#{work.trial}", "bold"), " ", *bar(work.progress or 0.0, ascii_only=ascii_only), " "),
            *((_clock(self._clock() - work.since), "cyan"), " ", work.numbers(), "  ", (work.idea, "dim")),
        )
        line.truncate(self._console.width, overflow="crop" if ascii_only else "ellipsis")
        return line


def bar(share: float, *, ascii_only: bool) -> tuple[tuple[str, str], tuple[str, str]]:
    """A bar that shows a share of the whole, also without color."""
    done = round(min(1.0, share) * BAR)
    full, rest = "#-" if ascii_only else "━─"
    return (full * done, "cyan"), (rest * (BAR - done), "dim")
