"""results.tsv, the published project's table of trials: written, read and told from somebody else's. Pure text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from autoresearch.base.errors import UserError
from autoresearch.ledger.records import Status
from autoresearch.ledger.report import Row, one_line, shorten

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")


def to_tsv(rows: Iterable[Row]) -> str:
    """Return results.tsv as the published project writes it."""
    return "\t".join(COLUMNS) + "\n" + lines(rows)


def lines(rows: Iterable[Row]) -> str:
    """The lines of some rows."""
    return "".join(_line(row) + "\n" for row in rows)


def _line(row: Row) -> str:
    """A line. The published table has no invalid trials: one is a discard, or a crash if it has no number."""
    description, status = one_line(row.description), row.status
    if status is Status.INVALID:
        status = Status.CRASH if row.val_bpb is None else Status.DISCARD
    numbers = f"{row.val_bpb or 0:.6f}\t{row.memory_gb or 0:.1f}"
    return f"{row.commit}\t{numbers}\t{status.value}\t{description}"


def from_tsv(text: str, name: str) -> tuple[Row, ...]:
    """Read a results.tsv, ours or one of the published project. Rows are numbered from 0, the baseline.

    A val_bpb or memory of 0 means that there is none.

    Raises:
        UserError: it is not such a table; the message names file and line.
    """
    header, *rest = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if [column.strip() for column in header.split("\t")] != list(COLUMNS):
        raise UserError(
            f"{name} is not a results.tsv: line 1 should be the header `{' '.join(COLUMNS)}` with tabs between, but "
            f"is {shorten(one_line(header), 60)!r}"
        )
    numbered = [(number, line) for number, line in enumerate(rest, start=2) if line.strip()]
    return tuple(_parse(line, f"{name} line {at}", row) for row, (at, line) in enumerate(numbered))


def _parse(line: str, where: str, number: int) -> Row:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != len(COLUMNS):
        raise UserError(
            f"{where}: expected {len(COLUMNS)} columns ({', '.join(COLUMNS)}) with tabs between, found {len(fields)}"
        )
    commit, val_bpb, memory_gb, status, description = fields
    if status not in [known.value for known in Status]:
        known = ", ".join(s.value for s in Status)
        raise UserError(f"{where}: unknown status {shorten(one_line(status), 40)!r}, expected one of {known}")
    return Row(
        number=number,
        commit=one_line(commit),
        val_bpb=_number(val_bpb, f"{where}: val_bpb"),
        memory_gb=_number(memory_gb, f"{where}: memory_gb"),
        status=Status(status),
        description=one_line(description),
    )


def _number(text: str, where: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} should be a number but is {shorten(one_line(text), 40)!r}")
    return value or None


def is_ours(text: str, commits: Collection[str]) -> bool:
    """Whether this program wrote the table: all its rows are of these commits, given by their first 7 digits.

    A table without rows is nobody's.
    """
    header, *rest = text.removeprefix("\ufeff").splitlines() or [""]
    if header.strip() and header.split("\t") != list(COLUMNS):
        return False
    return all(line.split("\t")[0] in commits for line in rest if line.strip())
