"""Data, tokenizer, packing loader and evaluation of this lab: the part that a trial may not change.

`python prepare.py` writes text, as tokens, to a cache that labs share; train.py imports the rest from here.
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
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import rustbpe  # type: ignore[import-untyped]
import safetensors.torch
import tiktoken
import torch
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

# ---- constants: a preset replaces the literals; these are the reference for one H100
MAX_SEQ_LEN = 2048  # context, in tokens
TIME_BUDGET = 300  # training time, in seconds; set nowhere else
EVAL_TOKENS = 40 * 524288  # validation tokens behind one score, whatever the batch size
VOCAB_SIZE = 8192  # tokens, 4 of them special; 260 (bytes and specials) is the least
SOURCE = "climbmix"  # climbmix | tinystories | stdlib | files:PATH
NUM_SHARDS = 10  # climbmix: training shards, of about 250 MB of text each
PIECE_CHARS = 1024  # stdlib, files: text is cut into documents of at most this many characters
BPE_MAX_CHARS = 1_000_000_000  # the tokenizer is trained on about this much text at most
BPE_DOC_CHARS = 10_000  # and on no more than this of one document
PACKING_BUFFER = 1000  # documents that the best-fit packing chooses from
CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main"
CLIMBMIX_SHARDS = 6543  # shard_00000.parquet and on: the last is val, the one before it holdout
TINYSTORIES_URL = "https://huggingface.co/datasets/karpathy/tinystories-gpt4-clean/resolve/main"
TINYSTORIES_FILE = "tinystories_gpt4_clean.parquet"  # shuffled; 10,000 rows holdout, 10,000 val, the rest train
DOWNLOAD_ATTEMPTS = 6  # tries for each file
DOWNLOAD_WAIT = 1.0  # seconds before the second try, doubled for each one after
SPLIT_PATTERN = (  # GPT-4's (cl100k_base in tiktoken), with numbers cut into 1-2 digits instead of 1-3
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = tuple(f"<|reserved_{i}|>" for i in range(4))  # the first is BOS, which begins every document
SPLITS = ("holdout", "val", "train")  # a text found in several of them stays in the first
PREPARED = ("tokenizer.tiktoken", *(f"{split}{end}.npy" for split in SPLITS for end in ("", "_offsets")))
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")  # what files:PATH reads

SEED = int(os.environ.get("AUTORESEARCH_SEED", "42"))
RUN_DIR = os.environ.get("AUTORESEARCH_RUN_DIR")  # set in a trial, absent by hand
CHANNEL = os.environ.get("AUTORESEARCH_CHANNEL")  # to a trial's parent, which lends the data and computes the score
CACHE = Path(os.environ.get("AUTORESEARCH_CACHE") or platformdirs.user_cache_dir("autoresearch"))
DOWNLOADS = CACHE / "downloads"
SETTINGS = [SOURCE, VOCAB_SIZE, NUM_SHARDS, CLIMBMIX_SHARDS, PIECE_CHARS, BPE_MAX_CHARS, BPE_DOC_CHARS, SPLIT_PATTERN]
SETTINGS += sys.version_info[:3] if SOURCE == "stdlib" else ()
DATA = CACHE / "data" / f"{SOURCE.partition(':')[0]}-{hashlib.sha256(json.dumps(SETTINGS).encode()).hexdigest()[:12]}"
if CHANNEL:
    import autoresearch_trial  # type: ignore[import-not-found]  # the program puts it beside train.py

Array = npt.NDArray[Any]
Batch = tuple[torch.Tensor, torch.Tensor, int]
Device = torch.device | str | None


class DataError(SystemExit):
    """Something that a person can mend: where nothing catches it, its sentence goes to stderr, exit code 1."""


# ---- sources
def read_documents(split: str) -> Iterator[str]:
    """The documents of a split, always in the same order."""
    if SOURCE == "climbmix":
        shards = {"val": [CLIMBMIX_SHARDS - 1], "holdout": [CLIMBMIX_SHARDS - 2], "train": range(NUM_SHARDS)}
        for number in shards[split]:
            yield from file_texts(DOWNLOADS / f"shard_{number:05d}.parquet")
    elif SOURCE == "tinystories":
        bounds = {"holdout": (0, 10_000), "val": (10_000, 20_000), "train": (20_000, None)}
        yield from itertools.islice(file_texts(DOWNLOADS / TINYSTORIES_FILE), *bounds[split])
    else:
        files = local_files()
        for name, path in files.items():
            if len(files) < 200:  # splitting so few by file might leave a split empty: by document
                yield from (text for text in file_texts(path) if hash_split(text) == split)
            elif hash_split(name) == split:
                yield from file_texts(path)


def local_files() -> dict[str, Path]:
    """Files by name of stdlib (the running interpreter's) or files:PATH, less what is hidden or installed in them."""
    root = Path(sysconfig.get_path("stdlib") if SOURCE == "stdlib" else SOURCE.partition(":")[2]).expanduser()
    paths = [root] if root.is_file() else sorted(root.rglob("*.py" if SOURCE == "stdlib" else "*"))
    files = {path.relative_to(root).as_posix(): path for path in paths if path.suffix in SUFFIXES}
    skipped = re.compile(r"(^|/)(\.[^/]|(site|dist)-packages/)")
    files = {name: path for name, path in files.items() if not skipped.search(name) and path.is_file()}
    if not files:
        raise DataError(f"no {', '.join(SUFFIXES)} file in {root}: put some there or change SOURCE in prepare.py")
    return files


def file_texts(path: Path) -> Iterator[str]:
    """The documents in one file, without what UTF-8 cannot hold; DataError where it cannot be read."""
    count = 0
    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                batches = pq.ParquetFile(file).iter_batches(batch_size=1024, columns=["text"])
                texts: Iterable[str] = (text for batch in batches for text in batch["text"].to_pylist() if text)
            elif path.suffix == ".jsonl":
                texts = (json.loads(line)["text"] for line in file)
            else:
                texts = cut_text(file.read().decode(errors="replace" if SOURCE == "stdlib" else "strict"))
            for text in texts:
                yield str.encode(text, "utf-8", "replace").decode()  # JSON can name halves of surrogate pairs
                count += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        advice = "mend or delete it (a deleted download is fetched anew), then run `python prepare.py` again"
        raise DataError(f"cannot read {path} after {count} documents ({reason}): {advice}") from None


def cut_text(text: str) -> list[str]:
    """Cut text into documents that joined give it again: at a blank line if possible, else a line, else a space."""
    sizes = f"{PIECE_CHARS // 4},{PIECE_CHARS - 2}"
    ends = "|".join(rf".{{{sizes}}}{end}" for end in (r"\n\n(?=\S)", r"\n", r"\s", ""))
    return re.findall(rf"(?s).{{1,{PIECE_CHARS}}}\Z|{ends}", text)


def content_hash(text: str) -> bytes:
    """Equal for texts that differ in case and white space alone."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()[:16]


def hash_split(text: str) -> str:
    return {0: "holdout", 1: "val"}.get(content_hash(text)[0] % 20, "train")


# ---- downloads
def download(url: str) -> None:
    """Fetch `url` into the cache, where the file appears whole or not at all; an unfinished .part is gone on with."""
    import httpx  # a tenth of a second, which no run needs

    path = DOWNLOADS / url.rpartition("/")[2]
    wait, stop = wait_exponential(DOWNLOAD_WAIT, max=60), stop_after_attempt(DOWNLOAD_ATTEMPTS)
    retrying = Retrying(wait=wait, stop=stop, retry=retry_if_exception_type(httpx.TransportError), reraise=True)
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            try:
                retrying(fetch, url, path.with_suffix(".part"))
            except httpx.HTTPError as error:
                raise DataError(f"cannot download {url} ({error!r}): check the connection and run again") from None
            os.replace(path.with_suffix(".part"), path)
            print(f"downloaded {path.name} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)


def fetch(url: str, part: Path) -> None:
    """Append to `part` what it lacks; httpx.TransportError, on which another try is made, where it falls short."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    wanted = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with httpx.stream("GET", url, headers=wanted, follow_redirects=True, timeout=30) as answer:
        if answer.status_code == 416:  # `part` is no beginning of the file that is there now
            part.unlink(missing_ok=True)
        if answer.status_code in (408, 416, 429) or answer.status_code >= 500:
            raise httpx.ReadError(f"status {answer.status_code}")
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        size = have + int(answer.headers.get("Content-Length", 0))
        if (size - have) > shutil.disk_usage(part.parent).free:
            raise OSError(0, f"no space left: {url} takes {(size - have) / 1e9:.2f} GB")
        with part.open("ab" if have else "wb") as file:
            file.writelines(answer.iter_raw())
    if part.stat().st_size != size:
        raise httpx.ReadError(f"{part.stat().st_size} of {size} bytes came")


# ---- tokenizer
class Tokenizer:
    """Text to token ids and back; the special tokens come after all others, BOS first among them."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.encoding = tiktoken.Encoding("lab", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        # Of raw bytes, since a token may hold a part of a character; int32 (vocabulary,), 0 for specials alone.
        self.byte_lengths = np.array([*map(len, sorted(ranks, key=ranks.__getitem__)), 0, 0, 0, 0], np.int32)

    @classmethod
    def from_directory(cls) -> "Tokenizer":
        pairs = [line.split() for line in prepared_file("tokenizer.tiktoken").read_bytes().splitlines()]
        return cls({base64.b64decode(token): int(rank) for token, rank in pairs})

    def get_vocab_size(self) -> int:
        return self.encoding.n_vocab

    def get_bos_token_id(self) -> int:
        return self.encoding.encode_single_token(SPECIAL_TOKENS[0])

    def encode(self, text: str | list[str], prepend: int | str | None = None, num_threads: int = 8) -> list[Any]:
        """Ids of a text, or of each text of a list, each after `prepend` (an id or a special token's name)."""
        first = self.encoding.encode_single_token(prepend) if isinstance(prepend, str) else prepend
        rows = self.encoding.encode_ordinary_batch([text] if isinstance(text, str) else text, num_threads=num_threads)
        rows = rows if first is None else [[first, *row] for row in rows]
        return rows[0] if isinstance(text, str) else rows

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


def train_tokenizer(documents: Iterator[str]) -> dict[bytes, int]:
    """The byte pairs of the documents with their ranks; DataError where there are too few."""
    trainer = rustbpe.Tokenizer()
    heads = (text[:BPE_DOC_CHARS] for text in documents)
    totals = itertools.accumulate(heads, lambda seen, text: (seen[0] + len(text), text), initial=(0, ""))
    sample = (text for _, text in itertools.takewhile(lambda seen: seen[0] <= BPE_MAX_CHARS, totals))
    trainer.train_from_iterator(sample, VOCAB_SIZE - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    if (size := len(ranks) + len(SPECIAL_TOKENS)) < VOCAB_SIZE:
        raise DataError(f"the text yields but {size} tokens: set VOCAB_SIZE to {size} or less, or give more text")
    return ranks


# ---- preparing
def main() -> None:
    """Make this lab's data unless they are whole: built beside their place and renamed, by one process at a time."""
    check_constants()
    building = DATA.with_suffix(".building")
    try:
        DATA.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(DATA.with_suffix(".lock")), contextlib.ExitStack() as after:
            with contextlib.suppress(DataError):
                if all(map(prepared_file, PREPARED)):
                    return print(f"already prepared: {DATA} (delete it to prepare again)", flush=True)
            after.callback(shutil.rmtree, building, ignore_errors=True)
            shutil.rmtree(building, ignore_errors=True)
            build(building)
            shutil.rmtree(DATA, ignore_errors=True)
            os.replace(building, DATA)
    except OSError as error:  # of writing: one of reading is a DataError already
        advice = "make room there or set AUTORESEARCH_CACHE to another folder"
        raise DataError(f"cannot write in {CACHE} ({error.strerror}): {advice}") from None


def check_constants() -> None:
    whole = SOURCE.startswith("files:") and Path(SOURCE[6:]).expanduser().is_absolute()
    if SOURCE not in ("climbmix", "tinystories", "stdlib") and not whole:
        raise DataError(f"SOURCE is {SOURCE!r}: set it to climbmix, tinystories, stdlib or files:/WHOLE/PATH")
    limits = {"VOCAB_SIZE": (260, 65536), "MAX_SEQ_LEN": (1, EVAL_TOKENS), "NUM_SHARDS": (1, CLIMBMIX_SHARDS - 2)}
    for name, (low, high) in {**limits, "TIME_BUDGET": (1e-3, math.inf)}.items():
        if not low <= globals()[name] <= high:
            raise DataError(f"{name} is {globals()[name]}: set it to between {low} and {high} at the top of prepare.py")


def build(directory: Path) -> None:
    """Write tokenizer.tiktoken, the tokens and, of all this, meta.json into a new folder."""
    began = time.monotonic()
    directory.mkdir()
    DOWNLOADS.mkdir(exist_ok=True)
    shards = [*range(NUM_SHARDS), CLIMBMIX_SHARDS - 2, CLIMBMIX_SHARDS - 1] if SOURCE == "climbmix" else []
    urls = [f"{CLIMBMIX_URL}/shard_{number:05d}.parquet" for number in shards]
    urls += [f"{TINYSTORIES_URL}/{TINYSTORIES_FILE}"] if SOURCE == "tinystories" else []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(download, urls))
    holdout, val = ({content_hash(text) for text in read_documents(split)} for split in SPLITS[:2])
    earlier = dict(zip(SPLITS, (set[bytes](), holdout, holdout | val), strict=True))
    print(f"training a tokenizer of {VOCAB_SIZE} tokens on {SOURCE}", flush=True)
    ranks = train_tokenizer(kept_documents("train", earlier["train"], Counter()))
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (directory / "tokenizer.tiktoken").write_text("".join(lines))
    splits = {split: write_split(directory, split, texts, Tokenizer(ranks)) for split, texts in earlier.items()}
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    (directory / "meta.json").write_text(json.dumps({"settings": SETTINGS, "splits": splits, "files": sizes}, indent=1))
    print(f"prepared {SOURCE} in {time.monotonic() - began:.1f} s: {DATA}", flush=True)


def kept_documents(split: str, earlier: set[bytes], counts: Counter[str]) -> Iterator[str]:
    """The documents of a split but empty ones and those of an earlier split, which are counted."""
    for text in read_documents(split):
        if content_hash(text) in earlier:
            counts["duplicates_removed"] += 1
        elif text.strip():
            yield text


def write_split(directory: Path, split: str, earlier: set[bytes], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write <split>.npy (uint16 tokens, BOS before each document) and <split>_offsets.npy (int64: starts, end)."""
    counts, fingerprint, lengths = Counter(duplicates_removed=0), hashlib.sha256(), [0]
    documents, header = kept_documents(split, earlier, counts), {"descr": "<u2", "fortran_order": False}
    with (directory / f"{split}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})
        while texts := list(itertools.islice(documents, 1024)):
            rows = tokenizer.encode(texts, prepend=SPECIAL_TOKENS[0], num_threads=os.cpu_count() or 1)
            tokens = np.fromiter(itertools.chain.from_iterable(rows), np.uint16)
            raw = "\0".join([*texts, ""]).encode()  # one byte after each document, so that their bounds count
            fingerprint.update(raw)
            if tokenizer.byte_lengths[tokens].sum() != len(raw) - len(texts):
                raise AssertionError(f"{split}: the bytes of the tokens do not add up to those of the text")
            file.write(tokens.tobytes())
            lengths += map(len, rows)
            counts.update(documents=len(texts), tokens=len(tokens), bytes=len(raw) - len(texts))
            if counts["documents"] % 65536 == 0:
                print(f"{split}: {counts['tokens'] / 1e6:.1f} M tokens so far", flush=True)
        file.seek(0)  # NumPy pads the header, which has the same length for any count
        np.lib.format.write_array_header_1_0(file, header | {"shape": (counts["tokens"],)})
    if not counts["tokens"]:
        raise DataError(f"nothing of {SOURCE} falls to the split {split}: more text is needed")
    np.save(directory / f"{split}_offsets.npy", np.cumsum(lengths, dtype=np.int64))
    print(f"{split}: {counts['documents']} documents, {counts['tokens'] / 1e6:.2f} M tokens", flush=True)
    return {**counts, "sha256": fingerprint.hexdigest()}


def prepared_file(name: str) -> Path:
    """The path of a prepared file that has the size noted in meta.json; DataError where there is none such."""
    if CHANNEL and name.startswith(SPLITS):
        raise DataError(f"{name} is not there in a trial: only train is, by make_dataloader")
    with contextlib.suppress(OSError, ValueError, KeyError):
        if (DATA / name).stat().st_size == json.loads((DATA / "meta.json").read_text())["files"][name]:
            return DATA / name
    raise DataError(f"{DATA / name} is missing or damaged: run `python prepare.py` first")


# ---- packing loader
def pack_epoch(split: str, epoch: int, space: int) -> Iterator[Array]:
    """The rows, each uint16 (space,), of one pass over the documents; the last is dropped unless it gets full.
    Best fit: of PACKING_BUFFER documents take the longest that fits into what is left of the row; if none fits, the
    head of the shortest, whose tail is dropped. In the buffer a document is one integer, length * 2^32 + number.
    """
    if CHANNEL and split == "train":
        tokens, offsets = autoresearch_trial.train_data()  # the parent's clock starts with the first call
    else:
        tokens = np.asarray(np.load(prepared_file(f"{split}.npy"), mmap_mode="r", allow_pickle=False))
        offsets = np.load(prepared_file(f"{split}_offsets.npy"), allow_pickle=False)
    if len(tokens) < space:
        raise DataError(f"the {split} split does not fill one row of {space} tokens: give more text")
    order = np.random.default_rng([SEED, epoch]).permutation(len(offsets) - 1)
    order = order if split == "train" else np.sort(order)
    keys = map(int, (np.diff(offsets)[order] << 32) + order)
    buffer = sorted(itertools.islice(keys, PACKING_BUFFER))
    row, room = [], space
    while buffer:
        fitting = bisect_left(buffer, room + 1 << 32)
        key = buffer.pop(fitting - 1 if fitting else 0)
        start, taken = int(offsets[key & 0xFFFFFFFF]), min(key >> 32, room)
        row.append(tokens[start : start + taken])
        room -= taken
        if room == 0:
            yield np.concatenate(row)
            row, room = [], space
        for fresh in itertools.islice(keys, 1):
            insort(buffer, fresh)


def make_dataloader(tokenizer: Tokenizer, B: int, T: int, split: str, device: Device = None) -> Iterator[Batch]:  # noqa: N803
    """Batches (x, y, epoch) for ever: int64 (B, T) on the device, y = x one token on; every row starts with BOS."""
    device = torch.device(device or detect_device())
    if split == "train":
        write_line("events.jsonl", event="first_batch", **environment(device))
    cuda = device.type == "cuda"
    buffers = [torch.empty((2, B, T), dtype=torch.int64, pin_memory=cuda) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in buffers] if cuda else []  # type: ignore[no-untyped-call]
    rows = ((row, epoch) for epoch in itertools.count(1) for row in pack_epoch(split, epoch, T + 1))
    for turn in itertools.cycle((0, 1)):  # on CUDA one buffer is filled while the other's copy is queued or runs
        batch, epochs = zip(*itertools.islice(rows, B), strict=True)
        tokens = np.stack(batch)
        if cuda:
            copied[turn].synchronize()  # the last copy out of this buffer may still be queued
        buffers[turn].numpy()[:] = tokens[:, :-1], tokens[:, 1:]
        x, y = buffers[turn].to(device, non_blocking=cuda, copy=True)
        if cuda:
            copied[turn].record()
        yield x, y, epochs[-1]


def warmup_batch(batch_size: int, device: Device = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random x and y (batch_size, MAX_SEQ_LEN), for compilation: neither data nor global random state is used."""
    generator = torch.Generator().manual_seed(SEED)
    x, y = torch.randint(VOCAB_SIZE, (2, batch_size, MAX_SEQ_LEN), generator=generator).to(device or detect_device())
    return x, y


def detect_device() -> torch.device:
    """The best there is: CUDA (or ROCm), MPS, CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


# ---- evaluation
@torch.inference_mode()
def evaluate_bpb(model: torch.nn.Module, tokenizer: Tokenizer, batch_size: int) -> float:
    """Bits per byte, nats / (ln 2 * bytes), over the tokens that have bytes, of EVAL_TOKENS of the validation split, at
    most one epoch, in rows of MAX_SEQ_LEN. `model(x)` gives logits (B, T, V); the parent of a trial scores them."""
    write_line("events.jsonl", event="grade_requested")
    if CHANNEL:  # before the checkpoint is saved, as it stops the parent's clock
        autoresearch_trial.ask_for_grading(batch_size, MAX_SEQ_LEN, tokenizer.get_vocab_size())
    if RUN_DIR:
        data = {k.replace("_orig_mod.", ""): x.to("cpu", copy=True).contiguous() for k, x in model.state_dict().items()}
        safetensors.torch.save_file(data, Path(RUN_DIR, "checkpoint.part"))  # tied weights twice; names uncompiled
        os.replace(Path(RUN_DIR, "checkpoint.part"), Path(RUN_DIR, "checkpoint.safetensors"))
    training, device = model.training, next((parameter.device for parameter in model.parameters()), detect_device())
    model.eval()
    if CHANNEL:
        bpb = float(autoresearch_trial.evaluate(model, device, batch_size, MAX_SEQ_LEN, tokenizer.get_vocab_size()))
    else:
        rows = np.stack(list(itertools.islice(pack_epoch("val", 1, MAX_SEQ_LEN + 1), EVAL_TOKENS // MAX_SEQ_LEN)))
        sizes = tokenizer.byte_lengths[rows[:, 1:]]
        nats = sum_nats(model, torch.from_numpy(rows.astype(np.int64)), torch.from_numpy(sizes > 0), batch_size, device)
        counts = {"tokens": int((sizes > 0).sum()), "bytes": int(sizes.sum())}
        bpb = nats / (math.log(2) * counts["bytes"])
        write_line("events.jsonl", event="score", split="val", nats=nats, **counts, val_bpb=bpb)
    model.train(training)
    return bpb


def sum_nats(model: torch.nn.Module, rows: torch.Tensor, counted: torch.Tensor, batch: int, device: Device) -> float:
    """Cross entropy in nats over the counted targets of rows (N, T + 1); with half the batch when memory is short.
    All have one shape, lest a compiled model be compiled again: the last is filled up. By 8192 tokens, to save room."""
    sums, size = list[torch.Tensor](), min(batch, len(rows))
    while len(sums) < len(rows):
        chosen = torch.arange(len(sums), len(sums) + size) % len(rows)
        x, y, mask = rows[chosen, :-1].to(device), rows[chosen, 1:].to(device), counted[chosen].to(device)
        try:
            parts = zip(torch.split(model(x).flatten(0, 1), 8192), torch.split(y.flatten(), 8192), strict=True)
            losses = [torch.nn.functional.cross_entropy(z.float(), t, reduction="none") for z, t in parts]
            sums += (torch.cat(losses).view_as(mask) * mask).sum(dim=1)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not re.search("MemoryError|out of memory|allocate memory|ALLOC_FAILED", repr(error)):
                raise
            size //= 2
    return float(torch.stack(sums[: len(rows)]).cpu().double().sum())


# ---- what the parent of a trial reads; by hand nothing is written
def write_line(name: str, **values: Any) -> None:
    if RUN_DIR:
        with Path(RUN_DIR, name).open("a") as file:
            file.write(json.dumps(values) + "\n")


def environment(device: torch.device) -> dict[str, str]:
    """What a score depends on besides the files and the data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": f"{device.type}: {name}", "torch": torch.__version__, "python": platform.python_version()}


def log_metrics(step: int, **numbers: float) -> None:
    """Add a line to the curve of this run; cheap enough for each step. What is not finite is written as null."""
    write_line("curve.jsonl", step=step, **{k: x if math.isfinite(x) else None for k, x in numbers.items()})


if __name__ == "__main__":
    main()
