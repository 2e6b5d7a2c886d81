"""Data, tokenizer, packing loader and evaluation of this lab: the part that a trial must not change.

`python prepare.py` tokenizes the text and writes it to a cache that labs share. train.py imports everything else.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import platformdirs
import rustbpe  # type: ignore[import-untyped]
import safetensors.torch
import tiktoken
import torch
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

# ---- Configuration. A preset replaces these values; they are the published ones for one H100 -----------------------

MAX_SEQ_LEN = 2048  # context, in tokens
TIME_BUDGET = 300  # training time, in seconds; set here and nowhere else
EVAL_TOKENS = 40 * 524288  # validation tokens per score, whatever the batch size
VOCAB_SIZE = 8192  # tokens, including 4 special ones; at least 260 (256 bytes and the special ones)
SOURCE = "climbmix"  # climbmix | tinystories | stdlib | files:PATH
TEXT_KEY = "text"  # files: the field of jsonl files, and the column of parquet files, that holds the text
NUM_SHARDS = 10  # climbmix: training shards, about 250 MB of text each
PIECE_CHARS = 1024  # stdlib, files: text is cut into documents of at most this many characters
BPE_MAX_CHARS = 1_000_000_000  # the tokenizer is trained on at most about this much text
BPE_DOC_CHARS = 10_000  # and on at most this much of one document
PACKING_BUFFER = 1000  # documents that best-fit packing chooses from

CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
CLIMBMIX_SHARDS = 6543  # shard_00000.parquet and so on; the last is val, the one before it is holdout
TINYSTORIES_URL = "https://huggingface.co/datasets/karpathy/tinystories-gpt4-clean/resolve/main"
TINYSTORIES_FILE = "tinystories_gpt4_clean.parquet"  # shuffled; 10,000 rows holdout, 10,000 val, the rest train
DOWNLOAD_ATTEMPTS = 6  # attempts per file
DOWNLOAD_WAIT = 1.0  # seconds before the second attempt, doubled for each later one

# GPT-4's split pattern (cl100k_base in tiktoken), but numbers are cut into 1-2 digits instead of 1-3.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = tuple(f"<|reserved_{i}|>" for i in range(4))  # the first is BOS, which begins every document
SPLITS = ("holdout", "val", "train")  # a text found in several splits stays in the first of these
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")  # what files:PATH reads

# ---- Set by the program in a trial, absent when you run this yourself ----------------------------------------------

SEED = int(os.environ.get("AUTORESEARCH_SEED", "42"))
RUN_DIR = os.environ.get("AUTORESEARCH_RUN_DIR")  # where a run writes its events, curve and checkpoint
CHANNEL = os.environ.get("AUTORESEARCH_CHANNEL")  # to the parent, which lends the data and computes the score
WANTED_DEVICE = os.environ.get("AUTORESEARCH_DEVICE")  # the kind that the parent found, under which results are filed
if CHANNEL:
    import autoresearch_trial  # type: ignore[import-not-found]  # the program puts it next to train.py

# ---- Where the data is. Its folder is named after everything that changes it ---------------------------------------

CACHE = Path(os.environ.get("AUTORESEARCH_CACHE") or platformdirs.user_cache_dir("autoresearch"))
DOWNLOADS = CACHE / "downloads"
SETTINGS = [SOURCE, VOCAB_SIZE, NUM_SHARDS, CLIMBMIX_SHARDS, PIECE_CHARS, BPE_MAX_CHARS, BPE_DOC_CHARS, SPLIT_PATTERN]
if SOURCE == "stdlib":  # its text is another with each version of Python
    SETTINGS += sys.version_info[:3]
if TEXT_KEY != "text":
    SETTINGS += [TEXT_KEY]
SETTINGS_DIGEST = hashlib.sha256(json.dumps(SETTINGS).encode()).hexdigest()[:12]
DATA = CACHE / "data" / f"{SOURCE.partition(':')[0]}-{SETTINGS_DIGEST}"
TOKENIZER_FILE = "tokenizer.tiktoken"
PREPARED = (TOKENIZER_FILE, *(f"{split}{end}.npy" for split in SPLITS for end in ("", "_offsets")))

Array = npt.NDArray[Any]
Batch = tuple[torch.Tensor, torch.Tensor, int]  # tokens (B, T), the tokens that follow (B, T), epoch
Device = torch.device | str | None


class DataError(SystemExit):
    """Something the user can fix. If nothing catches it, its sentence goes to stderr and the exit code is 1."""


# ---- Sources -------------------------------------------------------------------------------------------------------


def read_documents(split: str) -> Iterator[str]:
    """The documents of a split, always in the same order."""
    if SOURCE == "climbmix":
        shards = {"val": [CLIMBMIX_SHARDS - 1], "holdout": [CLIMBMIX_SHARDS - 2], "train": range(NUM_SHARDS)}
        for number in shards[split]:
            yield from file_texts(DOWNLOADS / shard_name(number))
    elif SOURCE == "tinystories":
        first, last = {"holdout": (0, 10_000), "val": (10_000, 20_000), "train": (20_000, None)}[split]
        yield from itertools.islice(file_texts(DOWNLOADS / TINYSTORIES_FILE), first, last)
    else:
        yield from local_documents(split)


def local_documents(split: str) -> Iterator[str]:
    """The documents of stdlib or files:PATH. Few files are split by document, many by file. All bad files are named."""
    files, problems = local_files(), []
    by_document = len(files) < 200  # splitting so few by file might leave a split empty
    for name, path in files.items():
        if by_document or hash_split(name) == split:
            try:
                yield from (text for text in file_texts(path) if not by_document or hash_split(text) == split)
            except DataError as problem:
                problems.append(str(problem))
    if problems:
        raise DataError("\n".join([*problems[:20], *(["..."] if len(problems) > 20 else [])]))


def local_files() -> dict[str, Path]:
    """Files by name: of the running interpreter's stdlib, or of files:PATH. Skips hidden files and packages."""
    root = Path(sysconfig.get_path("stdlib") if SOURCE == "stdlib" else SOURCE.partition(":")[2]).expanduser()
    paths = [root] if root.is_file() else sorted(root.rglob("*.py" if SOURCE == "stdlib" else "*"))
    skipped = re.compile(r"(^|/)(\.[^/]|(site|dist)-packages/)")
    files = {}
    for path in paths:
        name = path.relative_to(root).as_posix()
        if path.suffix in SUFFIXES and not skipped.search(name) and path.is_file():
            files[name] = path
    if not files:
        raise DataError(f"no {', '.join(SUFFIXES)} file in {root}: put some there or change SOURCE in prepare.py")
    return files


def file_texts(path: Path) -> Iterator[str]:
    """The documents in one file, without what UTF-8 cannot hold. Raises DataError if the file cannot be read."""
    count = 0
    try:
        with path.open("rb") as file:
            texts: Iterable[str]
            if path.suffix == ".parquet":
                import pyarrow.parquet as pq  # type: ignore[import-untyped]  # not needed otherwise, and slow to import

                key = TEXT_KEY if SOURCE.startswith("files:") else "text"
                batches = pq.ParquetFile(file).iter_batches(batch_size=1024, columns=[key])
                texts = (text for batch in batches for text in batch[key].to_pylist() if text)
            elif path.suffix == ".jsonl":
                texts = (json.loads(line)[TEXT_KEY] for line in file)
            else:
                texts = cut_text(file.read().decode(errors="replace" if SOURCE == "stdlib" else "strict"))
            for text in texts:
                yield str.encode(text, "utf-8", "replace").decode()  # JSON can contain half a surrogate pair
                count += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}: {what_is_wrong(path, error, count)}") from None


def what_is_wrong(path: Path, error: Exception, count: int) -> str:
    """Why a file cannot be read after so many documents, on one line, with what to do."""
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line} is not UTF-8: convert the file, as with `iconv -f latin1 -t utf-8`, or delete it"
    if isinstance(error, KeyError):
        where = "it has no column" if path.suffix == ".parquet" else f"line {count + 1} has no field"
        return f"{where} {TEXT_KEY!r}: set TEXT_KEY in prepare.py to the one with the text"
    where = f"line {count + 1}" if path.suffix == ".jsonl" else f"after {count} documents"
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{where} ({reason}): fix or delete it (a deleted download is fetched again), then run this again"


def cut_text(text: str) -> list[str]:
    """Cut a text into documents that join to the same text: at a blank line if possible, else a line, else a space."""
    sizes = f"{PIECE_CHARS // 4},{PIECE_CHARS - 2}"
    ends = (r"\n\n(?=\S)", r"\n", r"\s", "")
    pieces = "|".join(rf".{{{sizes}}}{end}" for end in ends)
    return re.findall(rf"(?s).{{1,{PIECE_CHARS}}}\Z|{pieces}", text)


def content_hash(text: str) -> bytes:
    """Equal for texts that differ only in case and white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()[:16]


def hash_split(text: str) -> str:
    """5 % of all texts are holdout, 5 % val, the rest train."""
    bucket = content_hash(text)[0] % 20
    return {0: "holdout", 1: "val"}.get(bucket, "train")


# ---- Downloads -----------------------------------------------------------------------------------------------------


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.parquet"


def source_urls() -> list[str]:
    """What has to be downloaded for this SOURCE."""
    if SOURCE == "climbmix":
        numbers = [*range(NUM_SHARDS), CLIMBMIX_SHARDS - 2, CLIMBMIX_SHARDS - 1]
        return [f"{CLIMBMIX_URL}/{shard_name(number)}" for number in numbers]
    return [f"{TINYSTORIES_URL}/{TINYSTORIES_FILE}"] if SOURCE == "tinystories" else []


def download(url: str) -> None:
    """Fetch `url` into the cache. The file appears whole or not at all; an unfinished .part file is continued."""
    import httpx  # here, because it takes a tenth of a second and a run does not need it

    path = DOWNLOADS / url.rpartition("/")[2]
    part = path.with_suffix(".part")
    retrying = Retrying(
        wait=wait_exponential(DOWNLOAD_WAIT, max=60),
        stop=stop_after_attempt(DOWNLOAD_ATTEMPTS),
        retry=retry_if_exception_type(httpx.TransportError),
        reraise=True,
        before_sleep=lambda state: print(
            f"{path.name}: {state.outcome and state.outcome.exception()!r}; trying again soon", flush=True
        ),
    )
    with filelock.FileLock(path.with_suffix(".lock")):
        if path.exists():
            return
        print(f"downloading {path.name}", flush=True)
        try:
            retrying(fetch, url, part)
        except httpx.HTTPError as error:
            raise DataError(f"cannot download {url} ({error!r}): check the connection and run again") from None
        os.replace(part, path)
        print(f"downloaded {path.name} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)


def fetch(url: str, part: Path) -> None:
    """Append the missing bytes to `part`. Raises httpx.TransportError, which is retried, if bytes are missing."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    wanted = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with httpx.stream("GET", url, headers=wanted, follow_redirects=True, timeout=30) as answer:
        if answer.status_code == 416:  # `part` is not the beginning of the file that is there now
            part.unlink(missing_ok=True)
        if answer.status_code in (408, 416, 429) or answer.status_code >= 500:
            raise httpx.ReadError(f"status {answer.status_code}")
        answer.raise_for_status()
        if answer.status_code != 206:  # the server sends all of it
            have = 0
        missing = int(answer.headers.get("Content-Length", 0))
        if missing > shutil.disk_usage(part.parent).free:
            raise OSError(0, f"no space left: {url} takes {missing / 1e9:.2f} GB")
        with part.open("ab" if have else "wb") as file:
            file.writelines(answer.iter_raw())
    if part.stat().st_size != have + missing:
        raise httpx.ReadError(f"{part.stat().st_size} of {have + missing} bytes arrived")


# ---- Tokenizer -----------------------------------------------------------------------------------------------------


class Tokenizer:
    """Text to token ids and back. The special tokens come after all others, BOS first."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.encoding = tiktoken.Encoding("lab", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        # int32 (vocabulary,). Lengths of the raw bytes, since a token can hold part of a character; 0 if special.
        lengths = [len(token) for token in sorted(ranks, key=ranks.__getitem__)]
        self.byte_lengths = np.array([*lengths, *(0 for _ in SPECIAL_TOKENS)], np.int32)

    @classmethod
    def from_directory(cls) -> "Tokenizer":
        lines = prepared_file(TOKENIZER_FILE).read_bytes().splitlines()
        pairs = [line.split() for line in lines]
        return cls({base64.b64decode(token): int(rank) for token, rank in pairs})

    def get_vocab_size(self) -> int:
        return self.encoding.n_vocab

    def get_bos_token_id(self) -> int:
        return self.encoding.encode_single_token(SPECIAL_TOKENS[0])

    def encode(self, text: str | list[str], prepend: int | str | None = None, num_threads: int = 8) -> list[Any]:
        """Ids of a text, or of each text in a list, each after `prepend` (an id or the name of a special token)."""
        texts = [text] if isinstance(text, str) else text
        rows = self.encoding.encode_ordinary_batch(texts, num_threads=num_threads)
        if prepend is not None:
            first = self.encoding.encode_single_token(prepend) if isinstance(prepend, str) else prepend
            rows = [[first, *row] for row in rows]
        return rows[0] if isinstance(text, str) else rows

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


def train_tokenizer(documents: Iterator[str]) -> dict[bytes, int]:
    """Byte pair encoding of the documents: tokens and their ranks. Raises DataError if the text yields too few."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(sample_text(documents), VOCAB_SIZE - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    size = len(ranks) + len(SPECIAL_TOKENS)
    if size < VOCAB_SIZE:
        raise DataError(f"the text yields only {size} tokens: set VOCAB_SIZE to {size} or less, or add more text")
    return ranks


def sample_text(documents: Iterator[str]) -> Iterator[str]:
    """The beginnings of the documents, up to BPE_MAX_CHARS characters in all."""
    total = 0
    for text in documents:
        head = text[:BPE_DOC_CHARS]
        total += len(head)
        if total > BPE_MAX_CHARS:
            return
        yield head


# ---- Preparation ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Prepare this lab's data, unless that is done. One process at a time builds it next to its place and renames."""
    check_constants()
    building = DATA.with_suffix(".building")
    try:
        DATA.parent.mkdir(parents=True, exist_ok=True)
        with only_one(DATA.with_suffix(".lock")):
            if is_prepared():
                print(f"already prepared: {DATA} (delete it to prepare again)", flush=True)
                return
            shutil.rmtree(building, ignore_errors=True)
            try:
                build(building)
                shutil.rmtree(DATA, ignore_errors=True)
                os.replace(building, DATA)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:  # while writing; an error while reading is a DataError already
        advice = "free some space there or set AUTORESEARCH_CACHE to another folder"
        raise DataError(f"cannot write in {CACHE} ({error.strerror}): {advice}") from None


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock, and say so if another process has it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("waiting for another process that is preparing the same data", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_constants() -> None:
    """Raise DataError if a constant at the top of this file is out of range."""
    is_path = SOURCE.startswith("files:") and Path(SOURCE.partition(":")[2]).expanduser().is_absolute()
    if SOURCE not in ("climbmix", "tinystories", "stdlib") and not is_path:
        raise DataError(f"SOURCE is {SOURCE!r}: set it to climbmix, tinystories, stdlib or files:/ABSOLUTE/PATH")
    limits = {
        "VOCAB_SIZE": (260, 65536),
        "MAX_SEQ_LEN": (1, EVAL_TOKENS),
        "NUM_SHARDS": (1, CLIMBMIX_SHARDS - 2),
        "TIME_BUDGET": (1e-3, math.inf),
    }
    for name, (low, high) in limits.items():
        value = globals()[name]
        if not low <= value <= high:
            raise DataError(f"{name} is {value}: set it to between {low} and {high} at the top of prepare.py")


def is_prepared() -> bool:
    """Whether all files are there and whole. Damaged ones are named."""
    with contextlib.suppress(DataError):
        damaged = [name for name in (*PREPARED, "meta.json") if not is_whole(prepared_file(name))]
        for name in damaged:
            print(f"{DATA / name} is damaged: preparing again", flush=True)
        return not damaged
    return False


def is_whole(path: Path) -> bool:
    """Whether a prepared file has the digest that was noted. It is only read again if it looks changed since then."""
    verified = path.with_name(f"{path.name}.verified")
    if not verified.exists():  # prepared by an earlier version
        return True
    wanted, *looks = json.loads(verified.read_text())
    if looks == appearance(path):
        return True
    if digest(path) != wanted:
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written is verified each time
        verify(path, wanted)
    return True


def verify(path: Path, found: str) -> None:
    """Note the digest of a file and what it looks like."""
    path.with_name(f"{path.name}.verified").write_text(json.dumps([found, *appearance(path)]))


def appearance(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(directory: Path) -> None:
    """Write the tokenizer, the tokens of all splits and meta.json, which describes them, into a new folder."""
    start = time.monotonic()
    directory.mkdir()
    DOWNLOADS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(download, source_urls()))
    holdout = {content_hash(text) for text in read_documents("holdout")}
    val = {content_hash(text) for text in read_documents("val")}
    taken: dict[str, set[bytes]] = {"holdout": set(), "val": holdout, "train": holdout | val}
    print(f"training a tokenizer of {VOCAB_SIZE} tokens on {SOURCE}", flush=True)
    ranks = train_tokenizer(kept_documents("train", taken["train"], Counter()))
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (directory / TOKENIZER_FILE).write_text("".join(lines))
    tokenizer = Tokenizer(ranks)
    splits = {split: write_split(directory, split, taken[split], tokenizer) for split in SPLITS}
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    meta = {"settings": SETTINGS, "splits": splits, "files": sizes}
    (directory / "meta.json").write_text(json.dumps(meta, indent=1))
    for path in list(directory.iterdir()):
        verify(path, digest(path))
    print(f"prepared {SOURCE} in {time.monotonic() - start:.1f} s: {DATA}", flush=True)


def kept_documents(split: str, taken: set[bytes], counts: Counter[str]) -> Iterator[str]:
    """The documents of a split, without empty ones and those of an earlier split, which are counted."""
    for text in read_documents(split):
        if content_hash(text) in taken:
            counts["duplicates_removed"] += 1
        elif text.strip():
            yield text


def write_split(directory: Path, split: str, taken: set[bytes], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write <split>.npy (uint16 tokens, BOS before each document) and <split>_offsets.npy (int64: starts, end)."""
    counts = Counter(duplicates_removed=0)
    documents = kept_documents(split, taken, counts)
    fingerprint = hashlib.sha256()
    lengths = [0]
    header: dict[str, Any] = {"descr": "<u2", "fortran_order": False}
    with (directory / f"{split}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})
        while texts := list(itertools.islice(documents, 1024)):
            rows = tokenizer.encode(texts, prepend=SPECIAL_TOKENS[0], num_threads=os.cpu_count() or 1)
            tokens = np.fromiter(itertools.chain.from_iterable(rows), np.uint16)
            raw = "\0".join([*texts, ""]).encode()  # one byte after each document, so that their borders count
            size = len(raw) - len(texts)
            fingerprint.update(raw)
            if tokenizer.byte_lengths[tokens].sum() != size:
                raise AssertionError(f"{split}: the tokens do not have as many bytes as the text")
            file.write(tokens.tobytes())
            lengths += [len(row) for row in rows]
            counts.update(documents=len(texts), tokens=len(tokens), bytes=size)
            if counts["documents"] % 65536 == 0:
                print(f"{split}: {counts['tokens'] / 1e6:.1f} M tokens so far", flush=True)
        file.seek(0)  # NumPy pads the header, so its length is the same for any count
        np.lib.format.write_array_header_1_0(file, header | {"shape": (counts["tokens"],)})
    if not counts["tokens"]:
        raise DataError(f"none of {SOURCE} falls into the split {split}: add more text")
    np.save(directory / f"{split}_offsets.npy", np.cumsum(lengths, dtype=np.int64))
    print(f"{split}: {counts['documents']} documents, {counts['tokens'] / 1e6:.2f} M tokens", flush=True)
    return {**counts, "sha256": fingerprint.hexdigest()}


def prepared_file(name: str) -> Path:
    """The path of a prepared file. Raises DataError if it does not have the size noted in meta.json."""
    if CHANNEL and name.startswith(SPLITS):
        raise DataError(f"{name} is not there in a trial: only make_dataloader gives tokens, and only of train")
    with contextlib.suppress(OSError, ValueError, KeyError):
        sizes = json.loads((DATA / "meta.json").read_text())["files"]
        if name == "meta.json" or (DATA / name).stat().st_size == sizes[name]:
            return DATA / name
    raise DataError(f"{DATA / name} is missing or damaged: run `python prepare.py` first")


# ---- Packing loader ------------------------------------------------------------------------------------------------


def split_tokens(split: str) -> tuple[Array, Array]:
    """Tokens of a split, uint16, and where its documents begin and end, int64. Both are read from disk on demand."""
    if CHANNEL and split == "train":
        tokens, offsets = autoresearch_trial.train_data()  # the parent's clock starts with the first call
        return tokens, offsets
    tokens = np.asarray(np.load(prepared_file(f"{split}.npy"), mmap_mode="r", allow_pickle=False))
    return tokens, np.load(prepared_file(f"{split}_offsets.npy"), allow_pickle=False)


def pack_epoch(split: str, epoch: int, space: int) -> Iterator[Array]:
    """The rows, each uint16 (space,), of one pass over the documents. The last row is dropped unless it is full.

    Best fit: of PACKING_BUFFER documents, take the longest that fits into what is left of the row. If none fits, take
    the beginning of the shortest and drop the rest of it.
    """
    tokens, offsets = split_tokens(split)
    if len(tokens) < space:
        raise DataError(f"the {split} split does not fill one row of {space} tokens: add more text")
    order = np.random.default_rng([SEED, epoch]).permutation(len(offsets) - 1)
    if split != "train":
        order = np.sort(order)
    # In the sorted buffer a document is one integer, length * 2^32 + number: fast to search and to insert.
    keys = map(int, (np.diff(offsets)[order] << 32) + order)
    buffer = sorted(itertools.islice(keys, PACKING_BUFFER))
    row: list[Array] = []
    room = space
    while buffer:
        fitting = bisect_left(buffer, room + 1 << 32)
        key = buffer.pop(fitting - 1 if fitting else 0)
        length, number = key >> 32, key & 0xFFFFFFFF
        start = int(offsets[number])
        taken = min(length, room)
        row.append(tokens[start : start + taken])
        room -= taken
        if room == 0:
            yield np.concatenate(row)
            row, room = [], space
        for fresh in itertools.islice(keys, 1):
            insort(buffer, fresh)


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str, device: Device = None) -> Iterator[Batch]:  # noqa: N803
    """Batches (x, y, epoch) forever: int64 (B, T) on the device, y is x shifted by one. Every row starts with BOS."""
    device = torch.device(device or detect_device())
    if split == "train":
        write_line("events.jsonl", event="first_batch", **environment(device))
    is_cuda = device.type == "cuda"
    # Two buffers: on CUDA one is filled while the other's copy is still queued or running.
    buffers = [torch.empty((2, B, T), dtype=torch.int64, pin_memory=is_cuda) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers] if is_cuda else []  # type: ignore[no-untyped-call]
    rows = ((row, epoch) for epoch in itertools.count(1) for row in pack_epoch(split, epoch, T + 1))
    for turn in itertools.cycle((0, 1)):
        batch, epochs = zip(*itertools.islice(rows, B), strict=True)
        tokens = np.stack(batch)
        if is_cuda:
            copied[turn].synchronize()  # wait for the last copy out of this buffer
        buffers[turn].numpy()[:] = tokens[:, :-1], tokens[:, 1:]
        x, y = buffers[turn].to(device, non_blocking=is_cuda, copy=True)
        if is_cuda:
            copied[turn].record()
        yield x, y, epochs[-1]


def warmup_batch(batch_size: int, device: Device = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random x and y (batch_size, MAX_SEQ_LEN) to compile with. Uses neither data nor the global random state."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(VOCAB_SIZE, (2, batch_size, MAX_SEQ_LEN), generator=generator)
    x, y = tokens.to(device or detect_device())
    return x, y


def detect_device() -> torch.device:
    """The best device there is: CUDA (or ROCm), MPS, CPU. Raises DataError if the program found a better one."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if WANTED_DEVICE not in (None, found):
        raise DataError(
            f"the program found the device {WANTED_DEVICE}, but this process finds only {found} ({device_problem()}): "
            "run `autoresearch doctor`, or set `sandbox: none` in program.md if you trust train.py"
        )
    return torch.device(found)


def device_problem() -> str:
    """Why CUDA does not start in this process."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "CUDA starts, but finds no GPU"


# ---- Evaluation ----------------------------------------------------------------------------------------------------


def grading_rows(batch_size: int) -> int:
    """Rows per batch when a trial is graded: at most 1 GiB of float32 logits, and a 16th of the validation rows.

    A compiled model should see this shape before training, or it is compiled again when it is graded.
    """
    return max(1, min(batch_size, 2**30 // (MAX_SEQ_LEN * VOCAB_SIZE * 4), EVAL_TOKENS // MAX_SEQ_LEN // 16))


@torch.inference_mode()
def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> float:
    """Validation bits per byte: nats / (ln 2 * bytes), over the tokens that have bytes.

    Scores EVAL_TOKENS of the validation split, at most one epoch, in rows of MAX_SEQ_LEN. `model(x)` takes tokens
    (B, T) and gives logits (B, T, V). In a trial the parent computes the score from them, outside this process.
    """
    vocabulary = tokenizer.get_vocab_size()
    write_line("events.jsonl", event="grade_requested")
    if CHANNEL:  # before the checkpoint is saved, since this stops the parent's clock
        autoresearch_trial.ask_for_grading(batch_size, MAX_SEQ_LEN, vocabulary)
    if RUN_DIR:
        save_checkpoint(model, Path(RUN_DIR))
    training = model.training
    device = next((parameter.device for parameter in model.parameters()), detect_device())
    model.eval()
    if CHANNEL:
        bpb = float(autoresearch_trial.evaluate(model, device, batch_size, MAX_SEQ_LEN, vocabulary))
    else:
        bpb = score(model, tokenizer, batch_size, device)
    model.train(training)
    return bpb


def score(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int, device: torch.device) -> float:
    """The score as computed in this process, when you run train.py yourself."""
    rows = np.stack(list(itertools.islice(pack_epoch("val", 1, MAX_SEQ_LEN + 1), EVAL_TOKENS // MAX_SEQ_LEN)))
    sizes = tokenizer.byte_lengths[rows[:, 1:]]
    nats = sum_nats(model, torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(sizes > 0), batch_size, device)
    counts = {"tokens": int((sizes > 0).sum()), "bytes": int(sizes.sum())}
    bpb = nats / (math.log(2) * counts["bytes"])
    write_line("events.jsonl", event="score", split="val", nats=nats, **counts, val_bpb=bpb)
    return bpb


def sum_nats(model: torch.nn.Module, rows: torch.Tensor, counted: torch.Tensor, batch: int, device: Device) -> float:
    """Cross entropy in nats over the counted targets of rows (N, T + 1). Halves the batch if memory runs out.

    All batches have one shape, so that a compiled model is not compiled again: rows are repeated to fill the last.
    """
    sums: list[torch.Tensor] = []
    size = min(batch, len(rows))
    while len(sums) < len(rows):
        chosen = torch.arange(len(sums), len(sums) + size) % len(rows)
        x = rows[chosen, :-1].to(device)
        y = rows[chosen, 1:].to(device)
        mask = counted[chosen].to(device)
        try:
            # 8192 tokens at a time, because a float32 copy of all logits takes a lot of memory.
            parts = zip(torch.split(model(x).flatten(0, 1), 8192), torch.split(y.flatten(), 8192), strict=True)
            losses = [torch.nn.functional.cross_entropy(z.float(), t, reduction="none") for z, t in parts]
            sums += (torch.cat(losses).view_as(mask) * mask).sum(dim=1)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not re.search(r"\bMemoryError|out of memory|allocate memory|ALLOC_FAILED", repr(error)):
                raise
            size //= 2
    return float(torch.stack(sums[: len(rows)]).cpu().double().sum())


# ---- What a run leaves for the parent of a trial; nothing when you run it yourself ---------------------------------


def save_checkpoint(model: torch.nn.Module, directory: Path) -> None:
    """Save all weights under the names they have in an uncompiled model; tied weights are saved twice."""
    state = model.state_dict().items()
    weights = {name.replace("_orig_mod.", ""): x.to("cpu", copy=True).contiguous() for name, x in state}
    safetensors.torch.save_file(weights, directory / "checkpoint.part")
    os.replace(directory / "checkpoint.part", directory / "checkpoint.safetensors")


def write_line(name: str, **values: Any) -> None:
    """Append a line of JSON to a file of the run."""
    if RUN_DIR:
        with Path(RUN_DIR, name).open("a") as file:
            file.write(json.dumps(values) + "\n")


FACTS: dict[str, str | bool] = {}


def note(**facts: str | bool) -> None:
    """Facts for the run's record, such as the attention kernel. Only those before the first batch are recorded."""
    FACTS.update(facts)


def environment(device: torch.device) -> dict[str, str | bool]:
    """What a score depends on besides the files and the data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": f"{device.type}: {name}", **versions, **FACTS}


def log_metrics(step: int, **numbers: float) -> None:
    """Append a point to the run's training curve; cheap enough for every step. Infinity and NaN become null."""
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    write_line("curve.jsonl", step=step, **finite)


if __name__ == "__main__":
    main()
