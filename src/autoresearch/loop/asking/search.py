"""Which program the next proposal starts from. Pure: the same campaign and number give the same program.

`line` always takes the incumbent. `tree` draws a val_bpb for each promising program from what is believed of it, as
Thompson sampling does, only tamer (Russo et al., arXiv 1707.02038), and takes the best of these after a bonus for
programs that little was tried on, as in UCT (Kocsis and Szepesvári 2006): c·s·sqrt(log(1 + N) / (1 + n)), with n
proposals made on the program, N on all of them, and s the usual size of a change's effect. While the incumbent is new,
or clearly the best, that is the incumbent. The longer nothing made on it is kept, the more often it is a near miss or
an earlier keep.
"""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from autoresearch.judging import judge
from autoresearch.judging.posterior import Gaussian
from autoresearch.ledger.campaign import Campaign, Trial
from autoresearch.ledger.events import ChosenByHand, Confirmation
from autoresearch.ledger.records import Outcome, Start, Status

Search = Literal["line", "tree"]

BOLDNESS = 0.1  # share of the uncertainty that is drawn; 1 is Thompson sampling, too bold for a few hundred trials
CURIOSITY = 0.1  # weight of the bonus, in units of a change's usual effect
PROMISING = 12  # programs that are considered beside the incumbent, the best believed ones
NEAR = 1.0  # a near miss is believed to be worse than the incumbent by at most this many times the noise of a run
MOST_NEAR, A_LINE = 6, 2  # near misses that are offered, in all and of those made on the same program


def start(campaign: Campaign, search: Search, number: int) -> Trial:
    """The trial whose program the proposal with this number starts from."""
    incumbent = campaign.incumbent
    assert incumbent is not None, "a proposal needs a baseline"
    beliefs = judge.believed(campaign)
    if search == "line" or incumbent.proposed.commit not in beliefs.programs:
        return incumbent
    programs = [incumbent, *promising(campaign)]
    tries = tried(campaign.trials)
    scale = CURIOSITY * beliefs.effects.parts[0][1].spread * math.sqrt(math.log1p(len(campaign.trials)))
    draw = random.Random(f"{campaign.tag} {number}")

    def worth(program: Trial) -> float:
        """How good it may be, in bits per byte below zero."""
        belief = beliefs.programs[program.proposed.commit]
        bonus = scale / math.sqrt(1 + tries[program.proposed.commit])
        return bonus - draw.gauss(belief.mean, BOLDNESS * belief.spread)

    return max(programs, key=worth)


@functools.lru_cache(maxsize=4)
def promising(campaign: Campaign) -> tuple[Trial, ...]:
    """The best programs beside the incumbent that a proposal may start from, by what is believed, best first."""
    believed, out, found = judge.believed(campaign).programs, given_up(campaign), list[Trial]()
    for trial in sorted(judge.scored(campaign), key=lambda each: believed[each.proposed.commit].mean):
        fit = trial.verdict is not None and trial.verdict.status in (Status.KEEP, Status.DISCARD)
        if fit and trial is not campaign.incumbent and trial.number not in out and not (trial.crash or trial.invalid):
            found.append(trial)
        if len(found) == PROMISING:
            break
    return tuple(found)


def given_up(campaign: Campaign) -> set[int]:
    """The trials that somebody dropped by hand, or that a test on fresh seeds refuted, with what was built on them."""
    gone = {n for n, step in campaign.taken_back.items() if isinstance(step, Confirmation | ChosenByHand)}
    gone |= {each.trial for each in campaign.confirmations if each.outcome is Outcome.REFUTED}
    gone |= {each.trial for each in campaign.chosen if not each.kept}
    return gone - campaign.standing


def tried(trials: Iterable[Trial]) -> Counter[str]:
    """How many proposals were made on each program, by its commit, including those that have no verdict yet."""
    return Counter(trial.proposed.parent for trial in trials if trial.proposed.carries is None)


def why(campaign: Campaign, program: Trial) -> Start | None:
    """What to tell of a proposal's start; None if it is the incumbent."""
    incumbent = campaign.incumbent
    assert incumbent is not None, "a proposal needs a baseline"
    if program is incumbent:
        return None
    believed, tries = judge.believed(campaign).programs, tried(campaign.trials)
    gap = gap_of(believed, program, incumbent)
    beside = f"believed to be {abs(gap):.4f} {'worse' if gap > 0 else 'better'}"
    times = tries[incumbent.proposed.commit]
    said = f"{times} proposal{'s' * (times != 1)} made on the best version, #{incumbent.number}, did not better it"
    return Start(program.number, f"{said}; this one is {beside}, and was tried {tries[program.proposed.commit]} times")


def gap_of(believed: dict[str, Gaussian], trial: Trial, incumbent: Trial) -> float:
    """How much higher a trial's val_bpb is believed to be than the incumbent's."""
    return believed[trial.proposed.commit].mean - believed[incumbent.proposed.commit].mean


def near_misses(campaign: Campaign) -> tuple[int, ...]:
    """The numbers of discards that came close to the incumbent, of different lines, closest first."""
    incumbent, made = campaign.incumbent, {trial.proposed.carries for trial in campaign.trials}
    believed = judge.believed(campaign).programs if judge.scored(campaign) else {}
    if incumbent is None or incumbent.proposed.commit not in believed:
        return ()
    reach, lines, found = NEAR * judge.noise_of(campaign).sigma, Counter[str](), list[int]()
    for trial in promising(campaign):
        if trial.number in campaign.standing or trial.number in made or gap_of(believed, trial, incumbent) > reach:
            continue
        if lines[trial.proposed.parent] < A_LINE and len(found) < MOST_NEAR:
            lines[trial.proposed.parent] += 1
            found.append(trial.number)
    return tuple(found)
