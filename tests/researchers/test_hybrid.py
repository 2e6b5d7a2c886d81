"""The hybrid researcher: who proposes when, what the knobs are tuned in, and that it all comes from the ledger."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

import pytest

from autoresearch.base.errors import NoProposal, UserError
from autoresearch.ledger.events import ProposalRefused
from autoresearch.ledger.records import CrashKind, Proposal, Scalar
from autoresearch.researchers.guard.rules import broken_rule
from autoresearch.researchers.interface import Archive, Brief, Failure, Kit
from autoresearch.researchers.llm.hybrid import MOST_TRIALS, TRIALS_PER_KNOB, HybridResearcher
from autoresearch.researchers.simple.scripted import ScriptedResearcher
from autoresearch.researchers.source.constants import find
from campaigns import after, begun
from model_server import Say, model_server

SOURCE = "DEPTH = 4\nprint(DEPTH)\n"
GATED = "GATE = 0.5\nWIDTH = 64\n" + SOURCE + "print(GATE, WIDTH)\n"
GATE = ["GATE", 0.01, 10.0, True]
WIDTH = ["WIDTH", 16, 256, False]


def idea(knobs: object, text: str = GATED) -> Proposal:
    note: dict[str, Scalar] = {} if knobs is None else {"knobs": knobs if isinstance(knobs, str) else json.dumps(knobs)}
    return Proposal("a gate", {"train.py": text}, note)


class Lab:
    """A campaign that grows, with the files that each of its trials ran with."""

    def __init__(self) -> None:
        self.files: dict[int, Mapping[str, str]] = {0: {"train.py": SOURCE}}
        self.brief = self._with_archive(begun({"train.py": SOURCE}))

    def tried(self, proposal: Proposal, val_bpb: float | None) -> Proposal:
        self.files[len(self.brief.campaign.trials)] = {**self.brief.files, **proposal.files}
        self.brief = self._with_archive(after(self.brief, proposal, val_bpb))
        return proposal

    def _with_archive(self, brief: Brief) -> Brief:
        return dataclasses.replace(brief, archive=Archive(files=lambda trial: self.files.get(trial, {})))


def model(*proposals: Proposal) -> HybridResearcher:
    return HybridResearcher(
        inner=ScriptedResearcher([*proposals, Proposal("the model's turn", {"train.py": "x = 1\n"})])
    )


def model_after(lab: Lab) -> HybridResearcher:
    """A hybrid whose model has only one thing to say, whenever it is asked."""
    turn = Proposal("the model's turn", {"train.py": "x = 1\n"})
    return HybridResearcher(inner=ScriptedResearcher([turn] * (len(lab.brief.campaign.trials) + 1)))


def value(proposal: Proposal, name: str) -> float:
    found = find(proposal.files["train.py"])[name].value
    assert isinstance(found, int | float)
    return found


def test_the_model_proposes_first() -> None:
    assert model(idea([GATE])).propose(Lab().brief).idea == "a gate"


@pytest.mark.parametrize("val_bpb", [0.9, 1.001], ids=["kept", "near miss"])
def test_the_knobs_of_a_good_idea_are_tuned_a_few_trials_each(val_bpb: float) -> None:
    lab = Lab()
    lab.tried(idea([GATE, WIDTH]), val_bpb)
    for _ in range(2 * TRIALS_PER_KNOB):
        proposal = lab.tried(model_after(lab).propose(lab.brief), 2.0)
        assert proposal.note["tunes"] == 1
        assert json.loads(str(proposal.note["values"])) == {
            "GATE": value(proposal, "GATE"),
            "WIDTH": value(proposal, "WIDTH"),
        }
        assert 0.01 <= value(proposal, "GATE") <= 10
        assert 16 <= value(proposal, "WIDTH") <= 256
        assert isinstance(value(proposal, "WIDTH"), int)
        assert proposal.idea.startswith("tune GATE 0.5 to ")
    assert model_after(lab).propose(lab.brief).idea == "the model's turn"


@pytest.mark.parametrize("val_bpb", [None, 1.2], ids=["crash", "clearly worse"])
def test_the_knobs_of_a_bad_idea_are_not_tuned(val_bpb: float | None) -> None:
    lab = Lab()
    lab.tried(idea([GATE]), val_bpb)
    assert model_after(lab).propose(lab.brief).idea == "the model's turn"


def test_a_tuning_has_an_end_however_many_knobs() -> None:
    lab, names = Lab(), [f"K{number}" for number in range(8)]
    text = "".join(f"{name} = 0.5\nprint({name})\n" for name in names)
    lab.tried(idea([[name, 0.1, 1.0, False] for name in names], text), 0.9)
    for _ in range(MOST_TRIALS):
        assert "tunes" in lab.tried(model_after(lab).propose(lab.brief), 2.0).note
    assert model_after(lab).propose(lab.brief).idea == "the model's turn"


def test_tuning_goes_on_from_a_better_value() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), 0.9)
    first = lab.tried(model_after(lab).propose(lab.brief), 0.8)
    assert f"tune GATE {value(first, 'GATE'):g} to " in model_after(lab).propose(lab.brief).idea


def test_a_near_miss_that_is_tuned_into_a_keep_is_tuned_on_the_incumbent() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), 1.001)
    kept = lab.tried(model_after(lab).propose(lab.brief), 0.99)
    assert lab.brief.files == kept.files
    assert model_after(lab).propose(lab.brief).idea.startswith(f"tune GATE {value(kept, 'GATE'):g} to ")


def test_tuning_finds_a_better_value_than_the_model_guessed() -> None:
    lab = Lab()

    def bpb(gate: float) -> float:
        return 0.8 + abs(math.log10(gate) - 0.5) / 20

    lab.tried(idea([GATE]), bpb(0.5))
    for _ in range(TRIALS_PER_KNOB):
        proposal = model_after(lab).propose(lab.brief)
        lab.tried(proposal, bpb(value(proposal, "GATE")))
    assert min(trial.val_bpb or 9 for trial in lab.brief.campaign.trials) < bpb(0.5)


def test_the_same_brief_gives_the_same_values_to_a_fresh_researcher() -> None:
    lab = Lab()
    lab.tried(idea([GATE, WIDTH]), 0.9)
    for score in (0.95, None, 0.85):
        proposal = model_after(lab).propose(lab.brief)
        assert proposal == model_after(lab).propose(lab.brief)
        lab.tried(proposal, score)


def test_a_refused_value_is_not_proposed_again() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), 0.9)
    seen = []
    for _ in range(3):
        seen.append(value(model_after(lab).propose(lab.brief), "GATE"))
        refused = (*lab.brief.campaign.refused, ProposalRefused("t", "tune", "no"))
        campaign = dataclasses.replace(lab.brief.campaign, refused=refused)
        lab.brief = dataclasses.replace(lab.brief, campaign=campaign, refusal="no")
    assert len(set(seen)) == 3


def test_what_is_tuned_passes_the_guard() -> None:
    lab = Lab()
    lab.tried(idea([["GATE", 0.5, 0.6, False]]), 0.9)
    proposal = model_after(lab).propose(lab.brief)
    tried = {trial.proposed.fingerprint: str(trial.number) for trial in lab.brief.campaign.trials}
    assert broken_rule(proposal, lab.brief.files, tried.get, ("train.py",)) is None


@pytest.mark.parametrize(
    "knobs",
    [None, "{", "[1]", '[["GATE", "a", 1, true]]', [["GONE", 0.1, 1.0, False]], [["DEPTH", 4.1, 4.9, False]], []],
)
def test_knobs_that_cannot_be_tuned_leave_the_turn_to_the_model(knobs: object) -> None:
    lab = Lab()
    lab.tried(idea(knobs), 0.9)
    assert model_after(lab).propose(lab.brief).idea == "the model's turn"


def test_knobs_that_are_gone_from_the_file_leave_the_turn_to_the_model() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), 0.9)
    lab.brief = dataclasses.replace(lab.brief, files={"train.py": SOURCE})
    assert model_after(lab).propose(lab.brief).idea == "the model's turn"


def test_a_crashed_idea_is_mended_before_anything_else_and_a_crashed_value_is_not() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), 0.9)
    lab.tried(model_after(lab).propose(lab.brief), None)

    def crash(trial: int) -> Brief:
        failure = Failure(trial, "x", CrashKind.PYTHON_ERROR, "x", "", {}, 1, 2)
        return dataclasses.replace(lab.brief, failure=failure)

    assert "tunes" in model_after(lab).propose(crash(2)).note
    assert model_after(lab).propose(crash(1)).idea == "the model's turn"


def test_a_repair_inherits_the_knobs_of_what_it_repairs() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), None)
    lab.tried(idea(None, GATED + "print(1)\n"), 0.9)
    trials = lab.brief.campaign.trials
    mended = dataclasses.replace(trials[2], proposed=dataclasses.replace(trials[2].proposed, repairs=1))
    campaign = dataclasses.replace(lab.brief.campaign, trials=(*trials[:2], mended))
    assert model_after(lab).propose(dataclasses.replace(lab.brief, campaign=campaign)).note["tunes"] == 2


def test_while_the_models_trial_runs_the_one_before_is_tuned() -> None:
    lab = Lab()
    lab.tried(idea([GATE]), 0.9)
    lab.tried(idea([WIDTH], GATED + "print(1)\n"), 0.8)
    trials = lab.brief.campaign.trials
    running = dataclasses.replace(trials[2], verdict=None, runs=())
    campaign = dataclasses.replace(lab.brief.campaign, trials=(*trials[:2], running))
    assert model_after(lab).propose(dataclasses.replace(lab.brief, campaign=campaign)).note["tunes"] == 1


def test_that_the_model_had_no_answer_is_passed_on() -> None:
    def fails(brief: Brief) -> Proposal:
        raise NoProposal("down")

    with pytest.raises(NoProposal, match="down"):
        HybridResearcher(inner=ScriptedResearcher([fails])).propose(Lab().brief)


def test_a_real_models_knobs_come_back_from_the_ledger(tmp_path: object) -> None:
    reply = (
        "idea: a gate\nknob: GATE from 0.01 to 10 log\n"
        "<<<<<<< SEARCH\nDEPTH = 4\n=======\nGATE = 0.5\nDEPTH = 4 + int(GATE)\n>>>>>>> REPLACE\n"
    )
    lab = Lab()
    with model_server(Say(reply)) as server:
        kit = Kit(base_url=f"{server.url}/v1", transcripts=tmp_path)  # type: ignore[arg-type]
        researcher = HybridResearcher("openai:local", kit)
        lab.tried(researcher.propose(lab.brief), 0.9)
        assert researcher.propose(lab.brief).note["tunes"] == 1
    assert len(server.heard) == 1
    assert "knob: NAME from LOW to HIGH" in server.heard[0].text


def test_a_hybrid_without_a_model_is_one_sentence() -> None:
    with pytest.raises(UserError, match="needs a model"):
        HybridResearcher()
