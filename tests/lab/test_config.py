from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autoresearch.base import variables
from autoresearch.base.errors import UserError
from autoresearch.lab import config
from autoresearch.lab.settings import Config


def load(tmp_path: Path, text: str) -> tuple[Config, str]:
    path = tmp_path / "program.md"
    path.write_text(text)
    return config.load(path)


def test_front_matter_is_the_configuration_and_the_rest_is_prose(tmp_path: Path) -> None:
    settings, prose = load(tmp_path, "---\nresearcher: scripted:x.json\nallowance_seconds: 9\n---\n# Goal\nLower it.\n")
    assert (settings.researcher, settings.allowance_seconds) == ("scripted:x.json", 9)
    assert prose == "# Goal\nLower it."
    assert settings.interpreter == Path(sys.executable)


def test_the_shipped_program_md_is_valid() -> None:
    settings, prose = config.load(Path(config.__file__).parent / "template" / "program.md")
    assert settings == Config()
    assert "val_bpb" in prose


def test_all_unknown_keys_are_named_at_once_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, "---\nresercher: x\njugde: y\n---\n")
    assert "`resercher` (nearest: `researcher`)" in str(caught.value)
    assert "`jugde` (nearest: `judge`)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no front matter", "has no front matter"),
        ("---\nresearcher: builtin\n", "has no front matter"),
        ("---\na: [1\n---\n", "is not YAML in line"),
        ("---\n- a\n---\n", "must be lines like"),
        ("---\nallowance_seconds: 0\n---\n", "`allowance_seconds`: it should be greater than 0, but is '0'"),
        ("---\neditable: []\n---\n", "`editable` is empty: name at least one"),
        ("---\nadvance:\n---\n", "`advance` has no value"),
        ("---\nadvance: true\n---\n", "`advance` should not be true"),
        ("---\neditable: train.py\n---\n", "`editable` should be a list, like `[train.py]`"),
        ("---\neditable: [train.py, prepare.py]\n---\n", "`editable`: prepare.py stays frozen"),
        ("---\neditable: [../other.py]\n---\n", "`editable`: ../other.py is not a file of the lab"),
        ("---\npreset: h200\n---\n", "`preset`: there is no preset h200"),
        ("---\nadvance: 0.7\njudge: greedy\nadvance: 0.8\n---\n", "sets something twice: `advance` in lines 2 and 4"),
        ("---\nadvance: high\n---\n", "but is 'high'"),
        ("---\nsandbox: docker\n---\n", "`sandbox`: it should be 'auto', 'bubblewrap', 'landlock' or 'none', but is"),
    ],
)
def test_a_broken_program_md_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=r"program\.md") as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", ["\ufeff", "\n\n", "\ufeff\n \n"])
def test_a_byte_order_mark_and_blank_lines_before_the_front_matter_are_fine(tmp_path: Path, before: str) -> None:
    settings, prose = load(tmp_path, f"{before}---\njudge: greedy\n---\nLower it.\n")
    assert (settings.judge, prose) == ("greedy", "Lower it.")


def test_a_run_sees_no_key_of_the_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables.NETWORK_NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("https_proxy", "http://me:password@proxy")
    seen = variables.for_run()
    assert not {"OPENAI_API_KEY", "https_proxy"} & set(seen)
    assert variables.for_prepare() == {**seen, "https_proxy": "http://me:password@proxy"}
    assert seen["OMP_NUM_THREADS"] == "2"
