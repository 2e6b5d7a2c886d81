"""The command line as a person uses it, in this process."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import toy_lab
from autoresearch import __main__

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process; gives its exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autoresearch", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as end:
                __main__.main()
        finally:
            signal.signal(signal.SIGINT, handler)  # a program that ends ignores Ctrl-C; this process continues
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def script(lab: Path, *xs: float) -> str:
    """A scripted researcher's name, for a script that lies beside the lab."""
    path = lab.parent / "script.json"
    lines = [{"idea": f"X to {x}", "files": {"train.py": toy_lab.train_with(x)}} for x in xs]
    path.write_text(json.dumps(lines))
    return f"scripted:{path}"


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    sentences = [line for line in err.splitlines() if line]
    assert code == 1
    assert len(sentences) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
