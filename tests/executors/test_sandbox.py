from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoresearch.base import process
from autoresearch.base.errors import UserError
from autoresearch.executors.sandbox import rules, sandboxes
from jail import ALL, BUBBLEWRAP, CONFINING, LINUX, SECRET, Jail, in_each


@pytest.fixture
def jail(tmp_path: Path, request: pytest.FixtureRequest) -> Jail:
    return Jail(tmp_path.resolve(), request.param)


@pytest.fixture
def home_file() -> Iterator[Path]:
    """A file of the person's own home, which is not the test's to change otherwise."""
    path = Path.home() / f".autoresearch-test-{os.getpid()}"
    path.write_text(SECRET)
    yield path
    path.unlink()


REFUSALS = {"EACCES", "ENOENT", "EPERM", "EROFS"}


@in_each(CONFINING)
def test_nothing_that_is_not_listed_can_be_read(jail: Jail, home_file: Path) -> None:
    paths = {
        "home": home_file,
        "neighbor": jail.root / "runs" / "6" / "files" / "weights",
        "ledger": jail.root / "ledger.jsonl",
        "validation": jail.root / "data" / "val",
        "passwords": "/etc/shadow",
        "parent": f"/proc/{os.getpid()}/environ",
        "memory": f"/proc/{os.getpid()}/mem",
    }
    said = jail.tries(
        train=f"open('{jail.root}/data/train').read()", **{k: f"open('{p}').read(1)" for k, p in paths.items()}
    )
    assert said.pop("train") == SECRET
    assert set(said.values()) <= REFUSALS, said


@in_each(CONFINING)
def test_no_directory_but_its_own_can_be_listed(jail: Jail) -> None:
    said = jail.tries(
        home=f"os.listdir('{Path.home()}')", data=f"os.listdir('{jail.root}/data')", temporary="os.listdir('/tmp')"
    )
    # Bubblewrap shows there what it has mounted itself, and no more.
    assert "val" not in said["data"]
    assert ".bashrc" not in said["home"]
    if jail.name == "landlock":
        assert set(said.values()) == {"EACCES"}


@in_each(CONFINING)
def test_nothing_can_be_written_outside_the_scratch(jail: Jail, home_file: Path) -> None:
    outside = ["/usr/new", Path(sys.prefix) / "new", "/dev/new", "/new", jail.root / "data" / "train"]
    said = jail.tries(**{f"to{i}": f"open('{path}', 'w').write('x')" for i, path in enumerate(outside)})
    assert set(said.values()) <= REFUSALS, said
    kept = [home_file, jail.root / "ledger.jsonl", jail.root / "runs" / "6" / "files" / "weights"]
    new = [jail.root / "new", Path("/tmp/autoresearch-new")]
    jail.tries(**{f"to{i}": f"open('{path}', 'w').write('x')" for i, path in enumerate(kept + new)})
    jail.tries(**{f"to{i}": f"os.remove('{path}')" for i, path in enumerate(kept)})
    assert [path.read_text() for path in kept] == [SECRET] * len(kept)
    assert not any(path.exists() for path in new)


@in_each(CONFINING)
def test_a_frozen_file_cannot_be_changed_nor_replaced(jail: Jail) -> None:
    said = jail.tries(
        write="open('prepare.py', 'w')",
        append="open('prepare.py', 'a')",
        truncate="os.truncate('prepare.py', 0)",
        remove="os.remove('prepare.py')",
        rename="os.rename('train.py', 'prepare.py')",
        link="os.link('prepare.py', '.private/tmp/link')",
        read="open('prepare.py').read()",
    )
    assert said.pop("read") == "frozen = 1\n"
    assert set(said.values()) <= REFUSALS | {"EBUSY", "EXDEV"}, said
    assert (jail.scratch / "prepare.py").read_text() == "frozen = 1\n"


@in_each(CONFINING)
def test_the_scratch_the_home_and_the_temporary_directory_can_be_written(jail: Jail) -> None:
    out = jail.root / "runs" / "7" / "out"
    out.mkdir()
    jail.rules = replace(jail.rules, writable=(out,))
    said = jail.tries(
        home="open(os.path.expanduser('~/x'), 'w').close()",
        temporary="__import__('tempfile').mkstemp()[1]",
        out=f"open('{out}/curve', 'w').write('1')",
        renamed=f"os.rename(os.path.expanduser('~/x'), '{out}/x')",
        own="open('train.py', 'a').close()",
    )
    assert said["home"] == said["own"] == "done"
    assert said["out"] == 1
    assert said["temporary"].startswith(("/tmp/tmp", str(jail.scratch)))
    assert (out / "curve").read_text() == "1"
    assert not Path("/tmp", Path(said["temporary"]).name).exists()


@in_each(CONFINING)
def test_a_hidden_file_within_a_readable_directory_stays_hidden(jail: Jail) -> None:
    jail.rules = replace(jail.rules, readable=(jail.root / "data",), hidden=(jail.root / "data" / "val",))
    said = jail.tries(train=f"open('{jail.root}/data/train').read()", val=f"open('{jail.root}/data/val').read()")
    assert said["train"] == SECRET
    assert said["val"] in {"EACCES", ""}


@in_each(CONFINING)
def test_there_is_no_network(jail: Jail) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.2)
        said = jail.tries(
            tcp=f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)",
            outside="socket.create_connection(('1.1.1.1', 53), 2)",
            udp=f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp.getsockname()[1]}))",
        )
        assert "done" not in (said["tcp"], said["outside"]), said
        if jail.name == "bubblewrap" or os.getuid() == 0:  # Landlock alone cannot hold UDP
            with pytest.raises(TimeoutError):
                udp.recv(1)


@in_each(CONFINING)
def test_an_abstract_socket_of_another_cannot_be_reached(jail: Jail) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0autoresearch-{os.getpid()}")
        server.listen()
        said = jail.tries(abstract=f"socket.socket(socket.AF_UNIX).connect('\\0autoresearch-{os.getpid()}')")
    assert said["abstract"] in {"EPERM", "ECONNREFUSED"}


@in_each(ALL)
def test_what_was_opened_before_stays_open(jail: Jail) -> None:
    mine, theirs = socket.socketpair()
    memory = os.memfd_create("shared")
    data = os.open(jail.root / "data" / "val", os.O_RDONLY)
    os.write(memory, b"shared")
    with mine, theirs:
        jail.rules = replace(jail.rules, pass_fds=(theirs.fileno(), memory))
        socket.send_fds(mine, [b"data"], [data])
        said = jail.run(f"""
            import mmap, os, socket
            channel = socket.socket(fileno={theirs.fileno()})
            word, (data,), *_ = socket.recv_fds(channel, 4, 1)
            shared = mmap.mmap({memory}, 6)
            print(word, os.read(data, 100), shared[:6])
            shared[:6] = b"logits"
            channel.sendall(b"done")
        """)
        assert said == str((b"data", SECRET.encode(), b"shared"))[1:-1].replace(",", "")
        theirs.close()
        assert mine.recv(10) == b"done"
        assert mine.recv(10) == b""
    assert os.pread(memory, 6, 0) == b"logits"
    os.close(memory)
    os.close(data)


@in_each(ALL)
def test_torch_computes_with_several_threads(jail: Jail) -> None:
    said = jail.run("""
        import numpy, os, torch
        torch.set_num_threads(2)
        x = torch.ones(300, 300, requires_grad=True)
        (x @ x).relu().sum().backward()
        print(torch.get_num_threads(), float(x.grad.sum()), numpy.ones(3).sum(), os.cpu_count())
    """)
    assert said == f"2 54000000.0 3.0 {os.cpu_count()}"


@in_each(CONFINING)
def test_the_parent_can_neither_be_signaled_nor_traced(jail: Jail) -> None:
    said = jail.tries(signal=f"os.kill({os.getpid()}, 0)", files=f"open('/proc/{os.getpid()}/fd/0').read(1)")
    assert said["signal"] in {"EPERM", "ESRCH"}
    assert said["files"] in REFUSALS
    if jail.name == "landlock":  # its supervisor, which clears up after it
        assert jail.tries(supervisor="os.kill(os.getppid(), 0)")["supervisor"] == "EPERM"


@in_each(BUBBLEWRAP)
def test_bubblewrap_has_its_own_processes_and_a_temporary_directory_that_goes(jail: Jail) -> None:
    said = jail.tries(
        processes="len([name for name in os.listdir('/proc') if name.isdigit()])",
        mine="os.getpid()",
        leave="open('/tmp/left', 'w').write(str(1))",
        shared="open('/dev/shm/left', 'w').write(str(1))",
        capabilities="next(line for line in open('/proc/self/status') if line.startswith('CapEff'))",
    )
    assert said["processes"] <= 3
    assert said["mine"] < 10
    assert int(said["capabilities"].split()[1], 16) == 0
    assert not Path("/tmp/left").exists()
    assert not Path("/dev/shm/left").exists()


@in_each(ALL)
def test_semaphores_and_shared_memory_work_and_leave_nothing(jail: Jail) -> None:
    before = set(os.listdir("/dev/shm"))
    if jail.name == "landlock" and os.getuid() != 0:
        pytest.skip("whether a person may make a mount namespace depends on the system")
    said = jail.run("""
        import multiprocessing
        from multiprocessing.shared_memory import SharedMemory
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=queue.put, args=(42,))
        child.start()
        shared = SharedMemory(create=True, size=10)
        print(queue.get(), shared.size >= 10)
        child.join()
        shared.close()
        shared.unlink()
    """)
    assert said == "42 True"
    assert set(os.listdir("/dev/shm")) == before


@in_each(ALL)
def test_only_the_environment_that_it_is_given_is_seen(jail: Jail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    said = json.loads(jail.run("import json, os; print(json.dumps(dict(os.environ)))", GIVEN="1"))
    assert SECRET not in said.values()
    assert said["GIVEN"] == "1"
    assert jail.name == "none" or said["HOME"].startswith(str(jail.scratch))


@in_each(ALL)
def test_the_exit_code_comes_through(jail: Jail) -> None:
    jail.run("raise SystemExit(3)")
    assert jail.ended
    assert jail.ended.exit_code == 3
    jail.run("import os; os.kill(os.getpid(), 9)")
    assert jail.ended.exit_code in (-9, 128 + 9)


# ---------------------------------------------------------------- the choice


def test_the_best_that_works_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "failure", lambda name: None)
    assert sandboxes.choose().name == "bubblewrap"
    monkeypatch.setattr(sandboxes, "failure", lambda name: "no namespaces" if name == "bubblewrap" else None)
    assert sandboxes.choose().name == "landlock"
    monkeypatch.setattr(sandboxes, "failure", lambda name: None if name == "none" else "it needs Linux")
    assert sandboxes.choose().name == "none"


@LINUX
def test_one_that_is_named_and_missing_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandboxes.failure.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"there is no program bwrap.*apt install bubblewrap"):
            sandboxes.choose("bubblewrap")
    finally:
        sandboxes.failure.cache_clear()


def test_an_unknown_one_is_told_with_the_choices() -> None:
    with pytest.raises(UserError, match="choose one of auto, bubblewrap, landlock, none"):
        sandboxes.choose("jail")


@in_each(ALL)
def test_a_missing_interpreter_is_told_before_the_run(jail: Jail) -> None:
    with pytest.raises(FileNotFoundError, match="there is no program"):
        sandboxes.SANDBOXES[jail.name].command(["/nowhere/python", "train.py"], jail.rules)


@in_each(CONFINING)
def test_an_interpreter_reached_by_links_from_another_directory_works(jail: Jail) -> None:
    elsewhere = jail.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "python").symlink_to(Path(sys.executable).absolute())
    words = sandboxes.SANDBOXES[jail.name].command([str(elsewhere / "python"), "-c", "print(6 * 7)"], jail.rules)
    assert process.output(words) == "42"


def test_a_directory_without_some_of_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c/d", "c/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("/")
    assert rules.without(tmp_path, [Path("/elsewhere")]) == [tmp_path]
    assert rules.without(tmp_path, [tmp_path]) == []
    left = rules.without(tmp_path, [tmp_path / "a", tmp_path / "c" / "d"])
    assert sorted(left) == [tmp_path / "b", tmp_path / "c" / "e"]


def test_pythonpath_is_shown_unless_it_contains_the_lab(tmp_path: Path) -> None:
    scratch = tmp_path / "lab" / ".autoresearch" / "scratch"
    packages = tmp_path / "packages"
    named = os.pathsep.join([str(packages), str(tmp_path), "relative", ""])
    assert rules.python_path({"PYTHONPATH": named}, scratch) == (packages,)
    assert rules.python_path({}, scratch) == ()
