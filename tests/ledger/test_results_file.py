from __future__ import annotations

from pathlib import Path

from autoresearch.ledger.records import Status
from autoresearch.ledger.report import Row
from autoresearch.ledger.results_file import ResultsFile
from autoresearch.ledger.results_tsv import from_tsv, to_tsv

ROWS = tuple(Row(n, f"{n:07x}", 1.5 + n, 1.0, Status.DISCARD, f"idea {n}") for n in range(4))


def known() -> set[str]:
    return {row.commit for row in ROWS}


def test_the_file_always_has_the_rows_and_remembers_only_its_own_text(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    results = ResultsFile(path)
    for rows in (ROWS[:1], ROWS[:2], ROWS, ROWS[:2], ROWS[1:], ()):
        assert results.write(rows, known) is None
        assert path.read_text() == to_tsv(rows)
    path.unlink()
    assert results.write(ROWS, known) is None
    assert from_tsv(path.read_text(), "it") == ROWS


def test_a_file_that_somebody_changed_is_saved_aside_however_much_was_written_before(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    results = ResultsFile(path)
    results.write(ROWS[:2], known)
    with path.open("a") as file:
        file.write("mine\tand nobody else's\n")
    saved = results.write(ROWS, known)
    assert saved == tmp_path / "results.saved-1.tsv"
    assert "mine" in saved.read_text()
    assert path.read_text() == to_tsv(ROWS)


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    ResultsFile(path).write(ROWS, known)
    path.write_text(path.read_text().rpartition("\n0000003")[0] + "\n")
    assert ResultsFile(path).write(ROWS, known) is None
    assert path.read_text() == to_tsv(ROWS)
