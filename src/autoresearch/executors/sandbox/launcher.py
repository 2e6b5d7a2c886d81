"""Starts a command with fewer rights than its parent: limits, Landlock, and no process left behind at its end.

python launcher.py RULES -- command...

RULES is a JSON object. All keys are optional: `file_bytes` (the largest file that may be written), `confine` (restrict
it with Landlock), `readable`, `writable`, `devices` (paths that it may then open, with everything below them),
`environment` (variables to set), `supervise` (stay as its parent, adopt what it leaves behind, and end that). A program
of its own that needs only the standard library, because it runs before the command's own rights are reduced.

What Landlock does not restrict: UDP and named Unix sockets, `stat` and `chmod`, and which processes can be seen.
Against UDP the command gets its own network namespace if the kernel allows it, and there its own /dev/shm. The parent
watches memory, processes and disk (see watch.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

REFUSED = 126  # as from a shell: it exists, but could not be started
NOT_FOUND = 127
STANDARD_ERROR = 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on x86_64 and aarch64
VERSION_FLAG, PATH_BENEATH = 1, 1
SET_DEATH_SIGNAL, DROP_CAPABILITY, SET_SUBREAPER, SET_NO_NEW_PRIVILEGES = 1, 24, 36, 38  # of prctl
NEW_USER, NEW_NETWORK, NEW_MOUNTS = 0x10000000, 0x40000000, 0x00020000
KEEP_MOUNTS = 1 << 14 | 1 << 18  # recursive, private: others do not see what is mounted from here on
NO_PROGRAMS = 0b1110  # no setuid, no devices, no programs
SHARED_MEMORY = "/dev/shm"
OVERRIDE_PERMISSIONS = 1  # the capability that lets root reach files in another user's directory

# Rights to files, one bit each in the kernel's order, and the interface version that introduced the later ones.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
SINCE = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: IOCTL_DEVICE}
MAKE_DEVICES = 1 << 6 | 1 << 11
READ = EXECUTE | READ_FILE | READ_DIR
OPEN_DEVICE = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEVICE
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
TCP, TCP_SINCE = 0b11, 4  # bind and connect
OUTSIDE, OUTSIDE_SINCE = 0b11, 6  # abstract Unix sockets of others, and signals to them


def main(arguments: list[str]) -> int:
    rules = json.loads(arguments[0])
    words = arguments[2:]
    if rules.get("supervise"):
        shares = rules.get("confine") and not namespaces_work()
        there = shared_files() if shares else set()
        return supervise(lambda: start(rules, words), lambda: remove_shared(there) if shares else None)
    start(rules, words)
    return REFUSED


def start(rules: Mapping[str, Any], words: list[str]) -> None:
    """Become the command. Returns only by an exception or an exit with a message."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if size := rules.get("file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for name, value in rules.get("environment", {}).items():
        os.putenv(name, value)
    try:
        if rules.get("confine"):
            confine(rules)
    except OSError as error:
        _say(f"the sandbox could not be set up: {error}; set `sandbox: none` to run without one, or install bubblewrap")
        os._exit(REFUSED)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and children would inherit that
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)
    except FileNotFoundError:
        _say(f"there is no program {words[0]}")
        os._exit(NOT_FOUND)
    except OSError as error:
        _say(f"cannot start {words[0]}: {error}")
        os._exit(REFUSED)


# ---------------------------------------------------------------- fewer rights


def confine(rules: Mapping[str, Any]) -> None:
    """Restrict this process, and everything it starts, forever.

    Raises:
        OSError: the kernel has no Landlock or refuses.
    """
    version = interface_version()
    if not version:
        raise OSError("this kernel has no Landlock")
    _leave_shared()  # otherwise it is the machine's own /dev/shm, and `supervise` removes what is left there
    for capability in range(64):
        if capability != OVERRIDE_PERMISSIONS:
            # fails without capabilities: then there is nothing to drop
            _libc().prctl(DROP_CAPABILITY, capability, 0, 0, 0)
    rights = handled(version)
    ruleset = _ruleset(version, rights)
    for key, wanted in (
        ("readable", READ),
        ("writable", rights & ~MAKE_DEVICES & ~IOCTL_DEVICE),
        ("devices", OPEN_DEVICE),
    ):
        for path in (*rules.get(key, ()), *((SHARED_MEMORY,) if key == "writable" else ())):
            _allow(ruleset, path, wanted & rights)
    _check(_libc().prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _check(_libc().syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def interface_version() -> int:
    """The version of the kernel's Landlock interface; 0 if there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, int(_libc().syscall(CREATE_RULESET, None, 0, VERSION_FLAG)))


def handled(version: int) -> int:
    """The rights to files that a version knows. Each is refused unless a rule allows it."""
    return sum(rights for since, rights in SINCE.items() if since <= version)


def _ruleset(version: int, rights: int) -> int:
    wanted = [rights]
    if version >= TCP_SINCE:
        wanted.append(TCP)
    if version >= OUTSIDE_SINCE:
        wanted.append(OUTSIDE)
    packed = struct.pack(f"={len(wanted)}Q", *wanted)
    return _check(_libc().syscall(CREATE_RULESET, packed, ctypes.c_size_t(len(packed)), 0))


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow a path and everything below it. One that does not exist or cannot be opened needs no permission."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= OF_A_FILE
    rule = struct.pack("=Qi", rights, descriptor)
    _check(_libc().syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0))
    os.close(descriptor)


def _leave_shared() -> bool:
    """Move to a place without network and with its own /dev/shm, if the kernel lets a process create one."""
    user, group = os.getuid(), os.getgid()
    apart = NEW_NETWORK | NEW_MOUNTS
    if _libc().unshare(apart) != 0:
        if _libc().unshare(NEW_USER | apart) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if _libc().mount(None, b"/", None, KEEP_MOUNTS, None) != 0:
        return False
    return bool(_libc().mount(b"tmpfs", SHARED_MEMORY.encode(), b"tmpfs", NO_PROGRAMS, None) == 0)


def namespaces_work() -> bool:
    """Whether a confined process gets its own /dev/shm and no network. Tries it in a child."""
    child = os.fork()
    if child == 0:
        os._exit(0 if _leave_shared() else 1)
    return os.waitpid(child, 0)[1] == 0


# ---------------------------------------------------------------- nothing left behind


def supervise(become: Callable[[], None], tidy: Callable[[], None]) -> int:
    """Run a command as a child, end everything it leaves behind, tidy up, and end as it did.

    Whatever its processes do (start a session, clear their environment), they remain descendants of this one. When the
    parent dies, all of them are ended.
    """
    parent = os.getppid()
    _libc().prctl(SET_SUBREAPER, 1, 0, 0, 0)
    # TERM goes to all of them: the command may obey it, this process stays to clean up.
    signal.signal(signal.SIGTERM, lambda number, frame: _end_if_orphaned(parent))
    _libc().prctl(SET_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)  # its group can be killed at once, and this process stays
        become()
        os._exit(REFUSED)
    close_files()
    _end_if_orphaned(parent)
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    end_children()
    tidy()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def close_files() -> None:
    """Close all files but the standard ones, so that others notice when the command closes them.

    Only those that are open, not every number up to the limit, which may be a billion.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them is closed by now
            if int(name) > STANDARD_ERROR:
                os.close(int(name))


def _end_if_orphaned(parent: int) -> None:
    if os.getppid() != parent:
        end_children()
        os._exit(REFUSED)


def shared_files() -> set[str]:
    """The files in /dev/shm that are this user's own."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHARED_MEMORY):
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                found.add(entry.path)
    return found


def remove_shared(before: set[str]) -> None:
    """Remove what a run left in a /dev/shm that it shared with the machine: new files that no process uses."""
    for path in shared_files() - before:
        if not any(_uses(process, path) for process in os.listdir("/proc") if process.isdigit()):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _uses(process: str, path: str) -> bool:
    """Whether a process has the file open or mapped."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{process}/maps") as maps:
            if path in maps.read():
                return True
        for entry in os.scandir(f"/proc/{process}/fd"):
            if os.readlink(entry.path) == path:
                return True
    return False


def end_children() -> None:
    """Kill every child, and the children they leave, until there is none."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def children() -> Iterator[int]:
    """The processes whose parent is this one."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(name)
            with open(f"/proc/{pid}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    yield pid


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _say(sentence: str) -> None:
    sys.stderr.write(f"autoresearch: {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
