"""The lab's prepare.py: sources, splits, downloads, tokenizer, evaluation, and what a person is told."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import safetensors.torch
import torch

from lab_files import load, write_lab
from texts import documents, write_jsonl

ROWS = 1024 // 32  # that the prepared lab is evaluated on
Prepare = Callable[..., ModuleType]


def write_parquet(path: Path, texts: list[str], column: str = "text") -> Path:
    pq.write_table(pa.table({column: texts}), path, row_group_size=50)
    return path


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Makes a lab's prepare.py with constants replaced, not yet run, and loads it; its cache is in tmp_path."""
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "cache"))

    def make(source: Path | str, **constants: Any) -> ModuleType:
        source = f"files:{source}" if isinstance(source, Path) else source
        settings = {"SOURCE": source, "VOCAB_SIZE": 300, "MAX_SEQ_LEN": 32, "EVAL_TOKENS": 2048, **constants}
        return load(write_lab(tmp_path / "lab", prepare=settings) / "prepare.py")

    return make


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A prepared lab that tests only read."""
    root = tmp_path_factory.mktemp("prepared")
    source = write_jsonl(root / "texts.jsonl", documents(1200))
    settings = {"SOURCE": f"files:{source}", "VOCAB_SIZE": 300, "MAX_SEQ_LEN": 32, "EVAL_TOKENS": 1024}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTORESEARCH_CACHE", str(root / "cache"))
        module = load(write_lab(root / "lab", prepare=settings) / "prepare.py")
    module.main()
    return module


def meta(module: ModuleType) -> dict[str, Any]:
    return dict(json.loads((module.DATA / "meta.json").read_text()))


def stored(module: ModuleType, split: str) -> list[str]:
    """The documents of a split, decoded from its token files."""
    tokens = np.load(module.DATA / f"{split}.npy", allow_pickle=False)
    offsets = np.load(module.DATA / f"{split}_offsets.npy", allow_pickle=False)
    tokenizer = module.Tokenizer.from_directory()
    assert (tokens[offsets[:-1]] == tokenizer.get_bos_token_id()).all()
    return [tokenizer.decode(tokens[a + 1 : b].tolist()) for a, b in pairwise(offsets)]


def refusal(module: ModuleType) -> str:
    """What `python prepare.py` says before it exits with code 1."""
    with pytest.raises(module.DataError) as caught:
        module.main()
    assert isinstance(caught.value, SystemExit)
    return str(caught.value)


# ---- splits


def test_every_document_is_in_one_split_and_comes_back_whole(prepared: ModuleType) -> None:
    splits = [stored(prepared, split) for split in ("holdout", "val", "train")]
    assert sorted(text for texts in splits for text in texts) == sorted(documents(1200))
    assert all(splits)


def test_meta_holds_the_counts_sizes_and_fingerprints_of_the_splits(prepared: ModuleType) -> None:
    noted = meta(prepared)
    for split in ("holdout", "val", "train"):
        texts = stored(prepared, split)
        told = noted["splits"][split]
        assert told["documents"] == len(texts)
        assert told["bytes"] == sum(len(text.encode()) for text in texts)
        assert told["tokens"] == len(np.load(prepared.DATA / f"{split}.npy"))
        assert len(told["sha256"]) == 64
    assert noted["settings"][0] == prepared.SOURCE
    assert all((prepared.DATA / name).stat().st_size == size for name, size in noted["files"].items())


def test_a_text_found_in_several_splits_stays_in_holdout_then_val(lab: Prepare, tmp_path: Path) -> None:
    shards = [documents(150, seed) for seed in range(4)]
    shards[0] += ["Shared by  ALL", "shared with\nval", "only train"]
    shards[2] += ["shared by all"]
    shards[3] += ["Shared By All", "SHARED with val"]
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    for number, texts in enumerate(shards):
        write_parquet(downloads / f"shard_{number:05d}.parquet", texts)
    module = lab("climbmix", CLIMBMIX_SHARDS=4, NUM_SHARDS=2)
    module.main()
    assert stored(module, "holdout")[-1] == "shared by all"
    assert stored(module, "val")[-1] == "SHARED with val"
    assert "only train" in stored(module, "train")
    removed = {split: told["duplicates_removed"] for split, told in meta(module)["splits"].items()}
    hashes = [{module.content_hash(text) for text in stored(module, split)} for split in module.SPLITS]
    assert removed["holdout"] == 0
    assert removed["val"] == 1
    assert removed["train"] >= 2
    assert not hashes[0] & hashes[1]
    assert not (hashes[0] | hashes[1]) & hashes[2]


def test_fingerprints_are_the_same_each_time_and_change_with_the_text(lab: Prepare, tmp_path: Path) -> None:
    prints = []
    for texts in (documents(600), documents(600), [*documents(600), "one more"]):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        module = lab(write_jsonl(tmp_path / "texts.jsonl", texts))
        module.main()
        prints.append([told["sha256"] for told in meta(module)["splits"].values()])
    assert prints[0] == prints[1] != prints[2]


def test_tinystories_takes_its_splits_by_row(lab: Prepare, tmp_path: Path) -> None:
    module = lab("tinystories")
    module.DOWNLOADS.mkdir(parents=True)
    write_parquet(module.DOWNLOADS / module.TINYSTORIES_FILE, [f"story {row}" for row in range(20_003)])
    assert [next(module.read_documents(split)) for split in module.SPLITS] == ["story 0", "story 10000", "story 20000"]
    assert len(list(module.read_documents("train"))) == 3


@pytest.mark.parametrize("kept", ["train", "val"])
def test_stdlib_is_split_by_file_and_needs_no_network(lab: Prepare, kept: str) -> None:
    module = lab("stdlib")
    files = module.local_files()
    names = {split: {name for name in files if module.hash_split(name) == split} for split in module.SPLITS}
    assert not any("site-packages" in name for name in files)
    assert 0.85 < len(names["train"]) / len(files) < 0.95
    first = next(name for name in files if name in names[kept])
    assert next(module.read_documents(kept)) == module.cut_text(files[first].read_text())[0]


@pytest.mark.parametrize("text", ["", "short", "a\n\n" * 400, "x" * 3000, "é " * 900, "def f():\n    pass\n\n\n" * 200])
def test_cut_pieces_give_the_text_again_and_are_not_long(prepared: ModuleType, text: str) -> None:
    pieces = prepared.cut_text(text)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= prepared.PIECE_CHARS for piece in pieces)


def test_files_of_every_kind_are_read_and_hidden_ones_are_not(lab: Prepare, tmp_path: Path) -> None:
    root = tmp_path / "texts"
    (root / ".git").mkdir(parents=True)
    for name in ("a.txt", "b.md", "c.py", ".git/d.txt", "image.png"):
        (root / name).write_text(f"text of {name}")
    write_jsonl(root / "e.jsonl", ["text of e", "half of a pair: \ud83d"])
    write_parquet(root / "f.parquet", ["text of f"])
    module = lab(root)
    found = [text for split in module.SPLITS for text in module.read_documents(split)]
    assert sorted(found) == [
        "half of a pair: ?",
        *(f"text of {name}" for name in ("a.txt", "b.md", "c.py", "e", "f")),
    ]


# ---- tokenizer


def test_byte_lengths_are_of_raw_bytes_and_zero_for_special_tokens_alone(prepared: ModuleType) -> None:
    tokenizer = prepared.Tokenizer.from_directory()
    lengths = tokenizer.byte_lengths
    assert lengths.shape == (300,)
    assert (lengths[-4:] == 0).all()
    assert (lengths[:-4] > 0).all()
    text = "東京 🙂 smør — 🦉"  # the owl is not in the corpus: its bytes are tokens of their own
    ids = tokenizer.encode(text)
    assert lengths[ids].sum() == len(text.encode())
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)


def test_the_tokenizer_encodes_texts_with_and_without_a_first_token(prepared: ModuleType) -> None:
    tokenizer = prepared.Tokenizer.from_directory()
    bos = tokenizer.get_bos_token_id()
    assert bos == tokenizer.get_vocab_size() - 4 == 296
    plain = tokenizer.encode("the river 2024 <|reserved_0|>")
    assert tokenizer.decode(plain) == "the river 2024 <|reserved_0|>"
    assert bos not in plain
    assert tokenizer.encode("tree", prepend=bos) == tokenizer.encode("tree", prepend="<|reserved_0|>")
    assert tokenizer.encode(["tree", "a"], prepend=bos, num_threads=2) == [
        [bos, *tokenizer.encode("tree")],
        [bos, *tokenizer.encode("a")],
    ]


def test_a_vocabulary_of_bytes_alone_works(lab: Prepare, tmp_path: Path) -> None:
    module = lab(write_jsonl(tmp_path / "texts.jsonl", documents(300)), VOCAB_SIZE=260)
    module.main()
    tokenizer = module.Tokenizer.from_directory()
    assert tokenizer.get_vocab_size() == 260
    assert bytes(tokenizer.encoding.decode_bytes(tokenizer.encode("東京"))) == "東京".encode()
    assert len(tokenizer.encode("東京")) == 6


def test_nothing_prepared_is_a_pickle(prepared: ModuleType) -> None:
    names = {*prepared.PREPARED, "meta.json"}
    assert {path.name for path in prepared.DATA.iterdir()} == names | {f"{name}.verified" for name in names}
    for path in prepared.DATA.glob("*.npy"):
        assert np.load(path, allow_pickle=False).dtype in (np.uint16, np.int64)
    rank_lines = (prepared.DATA / "tokenizer.tiktoken").read_text().splitlines()
    assert len(rank_lines) == 296


# ---- downloads


class Shards(ThreadingHTTPServer):
    """Serves files with Range; `faults[name]` are done to the next requests for it: "503", "cut", "huge"."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults = files, dict[str, list[str]]()
        self.asked: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Shards

    def do_GET(self) -> None:
        name, asked = self.path.rpartition("/")[2], self.headers.get("Range")
        self.server.asked.append((name, asked))
        fault = (self.server.faults.get(name) or [""]).pop(0)
        content = self.server.files.get(name)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if fault == "503" or content is None:
            self.answer(503 if fault else 404, b"")
        elif start >= len(content):
            self.answer(416, b"")
        else:
            body = content[start:]
            sent = body[: len(body) // 2] if fault == "cut" else body
            self.answer(206, sent, 10**15 if fault == "huge" else len(body))

    def answer(self, status: int, body: bytes, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Shards]:
    names = [f"shard_{number:05d}.parquet" for number in range(4)]
    files = {name: write_parquet(tmp_path / name, documents(150, i)).read_bytes() for i, name in enumerate(names)}
    with Shards(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def climbmix(lab: Prepare, shards: Shards) -> ModuleType:
    url = f"http://127.0.0.1:{shards.server_address[1]}/main"
    shape = {"CLIMBMIX_SHARDS": 4, "NUM_SHARDS": 2, "DOWNLOAD_WAIT": 0.01, "DOWNLOAD_ATTEMPTS": 4}
    return lab("climbmix", CLIMBMIX_URL=url, **shape)


def test_climbmix_is_downloaded_and_its_last_shards_are_val_and_holdout(climbmix: ModuleType, shards: Shards) -> None:
    climbmix.main()
    assert stored(climbmix, "val") == [text for text in documents(150, 3) if text.strip()]
    assert sorted(path.name for path in climbmix.DOWNLOADS.glob("*.parquet")) == sorted(shards.files)
    assert not list(climbmix.DOWNLOADS.glob("*.part"))


def test_a_download_survives_errors_and_goes_on_where_it_was_cut(climbmix: ModuleType, shards: Shards) -> None:
    name = "shard_00001.parquet"
    shards.faults[name] = ["503", "cut", "cut"]
    climbmix.main()
    assert (climbmix.DOWNLOADS / name).read_bytes() == shards.files[name]
    half = len(shards.files[name]) // 2
    ranges = [asked for asked_name, asked in shards.asked if asked_name == name]
    assert ranges[:3] == ["bytes=0-", "bytes=0-", f"bytes={half}-"]
    assert len(ranges) == 4


def test_a_part_left_by_a_killed_run_is_gone_on_with(climbmix: ModuleType, shards: Shards) -> None:
    name = "shard_00000.parquet"
    climbmix.DOWNLOADS.mkdir(parents=True)
    (climbmix.DOWNLOADS / "shard_00000.part").write_bytes(shards.files[name][:1000])
    climbmix.main()
    assert (name, "bytes=1000-") in shards.asked
    assert (climbmix.DOWNLOADS / name).read_bytes() == shards.files[name]


def test_a_part_that_is_too_long_is_fetched_anew(climbmix: ModuleType, shards: Shards) -> None:
    name = "shard_00000.parquet"
    climbmix.DOWNLOADS.mkdir(parents=True)
    (climbmix.DOWNLOADS / "shard_00000.part").write_bytes(shards.files[name] + b"x")
    climbmix.main()
    assert (climbmix.DOWNLOADS / name).read_bytes() == shards.files[name]


def test_what_is_downloaded_is_not_asked_for_again(climbmix: ModuleType, shards: Shards) -> None:
    climbmix.main()
    shutil.rmtree(climbmix.DATA)
    shards.asked.clear()
    climbmix.main()
    assert shards.asked == []


def test_a_download_that_keeps_failing_names_the_url_and_what_to_do(climbmix: ModuleType, shards: Shards) -> None:
    shards.faults["shard_00003.parquet"] = ["503"] * 4
    told = refusal(climbmix)
    assert "/main/shard_00003.parquet" in told
    assert "503" in told
    assert "check the connection" in told
    assert not climbmix.DATA.exists()


def test_a_shard_that_is_not_there_is_not_asked_for_twice(climbmix: ModuleType, shards: Shards) -> None:
    del shards.files["shard_00003.parquet"]
    assert "404" in refusal(climbmix)
    assert [name for name, _ in shards.asked].count("shard_00003.parquet") == 1


def test_a_download_that_does_not_fit_on_the_disk_is_not_begun(climbmix: ModuleType, shards: Shards) -> None:
    shards.faults["shard_00002.parquet"] = ["huge"]
    told = refusal(climbmix)
    assert "no space left" in told
    assert "shard_00002.parquet takes 1000000.00 GB" in told
    assert "set AUTORESEARCH_CACHE" in told
    assert not (climbmix.DOWNLOADS / "shard_00002.part").exists()


def test_a_corrupt_shard_is_named_and_mended_by_deleting_it(climbmix: ModuleType, shards: Shards) -> None:
    climbmix.DOWNLOADS.mkdir(parents=True)
    path = climbmix.DOWNLOADS / "shard_00001.parquet"
    path.write_bytes(shards.files[path.name][:-100])
    told = refusal(climbmix)
    assert str(path) in told
    assert "delete it" in told
    assert "\n" not in told
    path.unlink()
    climbmix.main()


# ---- what a person is told


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latin.txt", "a\nb\nsmør".encode("latin-1"), "line 3 is not UTF-8: convert the file, as with `iconv"),
        ("broken.jsonl", b'{"text": "fine"}\n{"text": ', "line 2 (JSONDecodeError"),
        ("other.jsonl", b'{"content": "no text"}\n', "line 1 has no field 'text': set TEXT_KEY"),
        ("number.jsonl", b'{"text": 5}\n', "TypeError"),
        ("list.jsonl", b"[1]\n", "TypeError"),
        ("broken.parquet", b"PAR1 and no more", "Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    lab: Prepare, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    (root / name).write_bytes(content)
    told = refusal(lab(root))
    assert str(root / name) in told
    assert words in told
    assert "fix or delete it" in told or "set TEXT_KEY" in told or "convert the file" in told
    assert "\n" not in told


def test_all_files_that_cannot_be_read_are_named_at_once(lab: Prepare, tmp_path: Path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    (root / "good.txt").write_text("fine\n" * 500)
    (root / "latin.txt").write_bytes("smør".encode("latin-1"))
    (root / "other.jsonl").write_text('{"body": "no text"}\n')
    told = refusal(lab(root)).splitlines()
    assert ["latin.txt" in told[0], "other.jsonl" in told[1], len(told)] == [True, True, 2]


def test_the_text_may_be_in_another_field(lab: Prepare, tmp_path: Path) -> None:
    texts = [f"a text with number {number} in it" for number in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    made = lab(tmp_path / "a.jsonl", TEXT_KEY="body", VOCAB_SIZE=280)
    made.main()
    assert made.is_prepared()
    assert made.DATA != lab(tmp_path / "a.jsonl", VOCAB_SIZE=280).DATA, "another field is other data"


def test_a_parquet_file_without_a_text_column_is_named(lab: Prepare, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "table.parquet", ["a"], column="body")
    assert str(path) in refusal(lab(path))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("files:relative/texts", "files:/ABSOLUTE/PATH"),
        ("files:/nowhere/at/all", "no .txt, .md, .py, .jsonl, .parquet file in /nowhere/at/all"),
        ("wikipedia", "climbmix, tinystories, stdlib or files:"),
    ],
)
def test_a_source_that_is_none_is_refused(lab: Prepare, source: str, words: str) -> None:
    assert words in refusal(lab(source))


@pytest.mark.parametrize(("name", "value"), [("VOCAB_SIZE", 259), ("VOCAB_SIZE", 70_000), ("TIME_BUDGET", 0)])
def test_a_constant_out_of_range_is_named(lab: Prepare, name: str, value: int) -> None:
    assert f"{name} is {value}" in refusal(lab("stdlib", **{name: value}))


def test_too_little_text_says_so(lab: Prepare, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "texts.jsonl", ["ab ab"] * 3 + [str(i) for i in range(200)])
    assert "lower" in refusal(lab(path, VOCAB_SIZE=5000)) or "or less" in refusal(lab(path, VOCAB_SIZE=5000))
    one = write_jsonl(tmp_path / "one.jsonl", ["one lonely document"])
    told = refusal(lab(one, VOCAB_SIZE=260))
    assert "add more text" in told


def test_without_prepared_data_training_stops_with_one_sentence(tmp_path: Path) -> None:
    root = write_lab(tmp_path / "lab", prepare={"SOURCE": "stdlib"})
    script = "from prepare import Tokenizer\nTokenizer.from_directory()\n"
    env = {**os.environ, "AUTORESEARCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "run `python prepare.py` first" in done.stderr


def test_a_loader_without_prepared_data_stops_too(lab: Prepare, prepared: ModuleType) -> None:
    tokenizer = prepared.Tokenizer.from_directory()
    with pytest.raises(SystemExit, match=r"run `python prepare\.py` first"):
        next(lab("stdlib").make_dataloader(tokenizer, 1, 8, "train"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", documents(600))
    root = write_lab(tmp_path / "lab", prepare={"SOURCE": f"files:{source}", "VOCAB_SIZE": 300})
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    script = limited + "runpy.run_path('prepare.py', run_name='__main__')"
    env = {**os.environ, "AUTORESEARCH_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot write in {tmp_path / 'cache'}" in done.stderr
    assert "AUTORESEARCH_CACHE" in done.stderr
    assert [path.suffix for path in (tmp_path / "cache" / "data").iterdir()] == [".lock"]


# ---- the cache


def test_what_is_prepared_is_not_prepared_again(
    lab: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", documents(300))
    module = lab(source)
    module.main()
    before = {path.name: path.stat().st_mtime_ns for path in module.DATA.iterdir()}
    source.unlink()
    lab(source).main()
    assert {path.name: path.stat().st_mtime_ns for path in module.DATA.iterdir()} == before
    assert "already prepared" in capsys.readouterr().out


def test_settings_have_folders_of_their_own_and_those_that_do_not_matter_share_one(lab: Prepare) -> None:
    folders = [lab("stdlib", **changes).DATA for changes in ({}, {"VOCAB_SIZE": 400}, {"TIME_BUDGET": 5})]
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize("name", ["train.npy", "tokenizer.tiktoken", "meta.json"])
def test_a_damaged_file_is_noticed_and_made_again(lab: Prepare, tmp_path: Path, name: str) -> None:
    module = lab(write_jsonl(tmp_path / "texts.jsonl", documents(300)))
    module.main()
    whole = (module.DATA / name).read_bytes()
    (module.DATA / name).write_bytes(whole[:-10])
    with pytest.raises(SystemExit, match="missing or damaged"):
        next(module.make_dataloader(module.Tokenizer.from_directory(), 1, 8, "train", "cpu"))
    module.main()
    assert (module.DATA / name).read_bytes() == whole


FILES = [
    "tokenizer.tiktoken",
    *(f"{split}{end}.npy" for split in ("train", "val", "holdout") for end in ("", "_offsets")),
]


@pytest.mark.parametrize("name", [*FILES, "meta.json"])
def test_nine_bytes_overwritten_in_any_file_are_noticed_named_and_mended(
    lab: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module = lab(write_jsonl(tmp_path / "texts.jsonl", documents(300)))
    module.main()
    whole = (module.DATA / name).read_bytes()
    middle = len(whole) // 2
    with (module.DATA / name).open("r+b") as file:
        file.seek(middle)
        file.write(bytes(byte ^ 1 for byte in whole[middle : middle + 9]))
    capsys.readouterr()
    module.main()
    said = capsys.readouterr().out
    assert "already prepared" not in said
    assert name == "meta.json" or f"{name} is damaged: preparing again" in said
    assert (module.DATA / name).read_bytes() == whole
    module.main()
    assert "already prepared" in capsys.readouterr().out


def test_a_copied_cache_is_verified_once_and_then_by_its_looks(lab: Prepare, tmp_path: Path) -> None:
    module = lab(write_jsonl(tmp_path / "texts.jsonl", documents(300)))
    module.main()
    path = module.DATA / "train.npy"
    os.utime(path, (1, 1))
    assert module.is_whole(path)
    assert json.loads(path.with_name("train.npy.verified").read_text())[2] == 10**9


def test_two_preparers_at_once_make_one_whole_folder(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "texts.jsonl", documents(2000))
    root = write_lab(tmp_path / "lab", prepare={"SOURCE": f"files:{source}", "VOCAB_SIZE": 300})
    env = {**os.environ, "AUTORESEARCH_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "prepare.py"]
    both = [subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("already prepared" in text for text in said) == [False, True]
    assert len([path for path in (tmp_path / "cache" / "data").iterdir() if path.is_dir()]) == 1


# ---- evaluation


class Uniform(torch.nn.Module):
    """Gives every token the same logit; remembers the shapes and modes it was called with."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(vocab_size))
        self.calls: list[tuple[tuple[int, ...], bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(x.shape), self.training))
        return self.logit.expand(*x.shape, -1)


class Bigram(torch.nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = torch.nn.Parameter(torch.randn(vocab_size, vocab_size, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[x]


def test_a_uniform_model_has_log2_of_the_vocabulary_bits_a_token(prepared: ModuleType) -> None:
    tokenizer = prepared.Tokenizer.from_directory()
    rows = np.stack(list(prepared.pack_epoch("val", 1, 33)))[:ROWS, 1:]
    tokens = int((rows != tokenizer.get_bos_token_id()).sum())
    sizes = int(tokenizer.byte_lengths[rows].sum())
    score = prepared.evaluate_bpb(Uniform(300), tokenizer, 16)
    assert score == pytest.approx(math.log2(300) * tokens / sizes, rel=1e-6)


def test_the_score_is_that_of_a_plain_float64_sum(prepared: ModuleType) -> None:
    tokenizer, model = prepared.Tokenizer.from_directory(), Bigram(300)
    rows = torch.tensor(np.stack(list(prepared.pack_epoch("val", 1, 33)))[:ROWS].astype(np.int64))
    nats, sizes = 0.0, 0
    table = torch.log_softmax(model.table.detach().double(), dim=-1)
    for row in rows.tolist():
        for token, target in pairwise(row):
            if target < 296:
                nats -= float(table[token, target])
                sizes += len(tokenizer.encoding.decode_single_token_bytes(target))
    assert prepared.evaluate_bpb(model, tokenizer, 16) == pytest.approx(nats / math.log(2) / sizes, rel=1e-6)


def test_the_score_does_not_depend_on_the_batch_size(prepared: ModuleType) -> None:
    tokenizer, model = prepared.Tokenizer.from_directory(), Bigram(300)
    scores = [prepared.evaluate_bpb(model, tokenizer, size) for size in (1, 7, 16, 32, 1000)]
    assert scores == pytest.approx([scores[0]] * 5, rel=1e-9)


def test_all_batches_of_an_evaluation_have_one_shape_and_the_mode_is_restored(prepared: ModuleType) -> None:
    model = Uniform(300).train()
    prepared.evaluate_bpb(model, prepared.Tokenizer.from_directory(), 7)
    assert set(model.calls) == {((7, 32), False)}
    assert len(model.calls) == math.ceil(ROWS / 7)
    assert model.training


def test_a_short_val_split_is_evaluated_once_over(lab: Prepare, tmp_path: Path) -> None:
    module = lab(write_jsonl(tmp_path / "texts.jsonl", documents(300)), EVAL_TOKENS=10**9)
    module.main()
    model = Uniform(300)
    module.evaluate_bpb(model, module.Tokenizer.from_directory(), 1)
    assert len(model.calls) == len(list(module.pack_epoch("val", 1, 33)))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_an_evaluation_that_runs_out_of_memory_goes_on_with_half_the_batch(
    prepared: ModuleType, error: Exception
) -> None:
    class Hungry(Bigram):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 10:
                raise error
            return super().forward(x)

    tokenizer = prepared.Tokenizer.from_directory()
    expected = prepared.evaluate_bpb(Bigram(300), tokenizer, 8)
    assert prepared.evaluate_bpb(Hungry(300), tokenizer, 64) == pytest.approx(expected, rel=1e-9)


def test_another_error_of_the_model_is_not_swallowed(prepared: ModuleType) -> None:
    class Broken(Uniform):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        prepared.evaluate_bpb(Broken(300), prepared.Tokenizer.from_directory(), 8)


# ---- in a trial


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_in_a_trial_the_parent_is_told_and_the_checkpoint_is_saved_first(
    prepared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "RUN_DIR", str(tmp_path))
    tokenizer = prepared.Tokenizer.from_directory()
    model = torch.nn.Sequential(torch.nn.Embedding(300, 8), torch.nn.Linear(8, 300, bias=False))
    model[1].weight = model[0].weight = torch.nn.Parameter(torch.randn(300, 8))
    next(prepared.make_dataloader(tokenizer, 2, 16, "val", "cpu"))
    loader = prepared.make_dataloader(tokenizer, 2, 16, "train", "cpu")
    assert not (tmp_path / "events.jsonl").exists()
    next(loader), next(loader)
    prepared.log_metrics(step=3, loss=2.5, lr=float("nan"))
    compiled = torch.compile(model, backend="eager")
    score = prepared.evaluate_bpb(compiled, tokenizer, 8)
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["first_batch", "grade_requested", "score"]
    assert set(events[0]) == {"event", "device", "torch", "python"}
    told = events[-1]
    assert told["val_bpb"] == score == told["nats"] / (math.log(2) * told["bytes"])
    assert (told["split"], told["tokens"] <= 1024) == ("val", True)
    assert read_lines(tmp_path / "curve.jsonl") == [{"step": 3, "loss": 2.5, "lr": None}]
    saved = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    assert {name: torch.equal(value, model.state_dict()[name]) for name, value in saved.items()} == {
        "0.weight": True,
        "1.weight": True,
    }


def test_by_hand_nothing_is_written(prepared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared.log_metrics(step=1, loss=1.0)
    prepared.evaluate_bpb(Uniform(300), prepared.Tokenizer.from_directory(), 64)
    assert list(tmp_path.iterdir()) == []
