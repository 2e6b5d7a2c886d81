"""The benchmark of searchers: what was recorded is real, and the surrogate made of it tells programs apart."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search

    return search


def test_the_record_holds_no_path_of_a_machine() -> None:
    text = (BENCHMARKS / "search_record.jsonl").read_text()
    assert not any(word in text for word in ("/tmp", "/home", "/root", "/work"))


def test_the_surrogate_knows_good_from_bad(search: object) -> None:
    module = sys.modules["surrogate"]
    model = module.Surrogate(module.rows())
    value = {name: model.value(module.Program(*what)) for name, what in PROGRAMS.items()}
    assert value["baseline"] == pytest.approx(model.base)
    assert value["bigrams"] < value["baseline"] < value["slow head"]
    assert value["too many channels"] is None


PROGRAMS = {
    "baseline": ({}, ()),
    "bigrams": ({}, ("bigram-embedding",)),
    "slow head": ({"UNEMBEDDING_LR": 0.001}, ()),
    "too many channels": ({"VALUE_GATE_CHANNELS": 256}, ()),
}


@pytest.mark.slow
def test_a_program_is_described_by_its_constants_and_patches(search: object) -> None:
    module = sys.modules["surrogate"]
    patches = [patch for patch in module.DECK if patch.name in ("smear", "muon-eq", "plain-muon")]
    source = module.edited(patches, {"MATRIX_LR": 0.02})
    assert module.described(source) == module.Program({"MATRIX_LR": 0.02}, ("muon-eq", "plain-muon", "smear"))


@pytest.mark.slow
def test_every_searcher_can_be_driven(search: object) -> None:
    for name in sys.modules["search"].SEARCHERS:
        assert len(sys.modules["search"].campaign(name, 0, 3)) == 3
