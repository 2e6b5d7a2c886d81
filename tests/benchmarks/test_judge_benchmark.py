"""The benchmark of the judge: worlds are what they are said to be, and every rule plays as the judge does."""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

from autoresearch.lab.settings import Config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import judge

    return judge


def world(benchmark: ModuleType, name: str = "exponential", level: float = 1.0, number: int = 1) -> object:
    setting = benchmark.Setting(name, benchmark.MIXTURES[name], level)
    gains = tuple(setting.effects(number, 60))
    return benchmark.World(number, gains, level * benchmark.UNIT, benchmark.luck())


def test_the_median_effect_that_is_not_nil_is_the_unit_in_every_mixture(benchmark: ModuleType) -> None:
    for name, draw in benchmark.MIXTURES.items():
        effects = benchmark.Setting(name, draw, 1.0).effects(3, 4000)
        assert statistics.median(abs(each) for each in effects if each) == pytest.approx(benchmark.UNIT, rel=0.1)


def test_mixtures_have_the_shares_that_the_issue_names(benchmark: ModuleType) -> None:
    draw, rng = benchmark.MIXTURES["exponential"], random.Random(1)
    drawn = [draw(rng) for _ in range(20_000)]
    assert sum(each > 0 for each in drawn) / len(drawn) == pytest.approx(0.15, abs=0.01)
    assert sum(each == 0 for each in drawn) / len(drawn) == pytest.approx(0.35, abs=0.01)


def test_luck_is_standardized_and_comes_from_the_replicates_on_record(benchmark: ModuleType) -> None:
    luck = benchmark.luck()
    assert len(luck) == 16
    assert statistics.fmean(luck) == pytest.approx(0.0)
    assert statistics.pstdev(luck) == pytest.approx(1.0)
    here = world(benchmark, level=2.0)
    drawn = [here.noise(trial, run) for trial in range(1500) for run in range(2)]  # type: ignore[attr-defined]
    assert statistics.stdev(drawn) == pytest.approx(2 * benchmark.UNIT, rel=0.05)
    assert len(set(drawn)) == len(drawn)


def test_every_rule_plays_all_of_its_runs_and_no_more(benchmark: ModuleType) -> None:
    here = world(benchmark)
    for name, judge in benchmark.rules(
        benchmark.Setting("exponential", benchmark.MIXTURES["exponential"], 1.0), [Config()]
    ).items():
        search = benchmark.Search(here, judge, 40)
        played = search.play()
        assert 0 <= search.left <= 3, name
        assert sum(len(trial.runs) for trial in search.campaign.trials) == 40 - search.left
        assert played.gain == pytest.approx(benchmark_gain(search))
        assert played.reruns >= 0


def benchmark_gain(search: object) -> float:
    """The sum of the true gains of the keeps that the incumbent is made of."""
    campaign, gains = search.campaign, search.world.gains  # type: ignore[attr-defined]
    return sum(gains[trial.number - 1] for trial in campaign.lineage[1:])


def test_a_search_without_noise_finds_every_gain(benchmark: ModuleType) -> None:
    here = benchmark.World(1, tuple(0.001 * (-1) ** n for n in range(60)), 1e-9, benchmark.luck())
    greedy = benchmark.rules(benchmark.Setting("exponential", benchmark.MIXTURES["exponential"], 1.0), [])["greedy"]
    assert benchmark.Search(here, greedy, 41).play().gain == pytest.approx(0.020)


def test_the_same_world_is_played_the_same(benchmark: ModuleType) -> None:
    task = ("exponential", 1.0, 2, (Config(),), benchmark.PUBLISHED)
    assert benchmark.play(task) == benchmark.play(task)


def test_a_published_log_gives_a_mixture(benchmark: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "results.tsv"
    log.write_text("commit\tval_bpb\tstatus\na\t1.0\tkeep\nb\t0.99\tkeep\nc\t0.9901\tdiscard\nd\t0\tcrash\n")
    draw, rng = benchmark.published(log), random.Random(1)
    assert {round(draw(rng), 4) for _ in range(50)} == {0.01, 0.0}


def test_the_table_compares_each_rule_with_greedy(benchmark: ModuleType) -> None:
    task = ("exponential", 1.0, 2, (Config(advance=0.8),), benchmark.PUBLISHED)
    lines = list(benchmark.table("exponential", 1.0, [benchmark.play(task)[2]] * 2))
    assert [line.split(" | ")[2] for line in lines] == ["greedy", "2 sigma", "strict", "posterior 0.8", "oracle"]
    assert all(line.count("|") == benchmark.HEAD.splitlines()[0].count("|") for line in lines)


def test_without_a_published_log_it_says_so_and_goes_on(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["judge.py", "--mixtures", "published", "--published", str(tmp_path / "none.tsv"), "--campaigns", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    assert "no mixture is fitted" in capsys.readouterr().err
