"""Writing files so that readers never see half of one and writers never meet. Every room may use it."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock, Timeout

from caa.hashing import text_digest

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCRATCH = ".writing-"
"""What the names of scratch folders begin with; not with the file's own name, which may be as long as names can be."""
_OLD = "old"
"""In a scratch folder, where a folder waits that is being replaced."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a scratch path; what was written there takes the place of `path` at the end, or vanishes on an error."""
    path = Path(path)
    folder = _scratch_beside(path)
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty scratch folder, which takes the place of the folder `path` at the end, or vanishes on an error.

    The two change places in one step, so that a folder stands there at every moment. Where the system has no such step,
    the old folder is moved aside, and back again should the last step fail, or by who writes there next.
    """
    path = Path(path)
    scratch = _scratch_beside(path)
    new = scratch / "new"
    new.mkdir()
    try:
        yield new
        if not path.exists() or not _exchange(new, path):
            _replace_aside(new, path, scratch / _OLD)
    finally:
        _bring_back(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def _replace_aside(new: Path, path: Path, old: Path) -> None:
    old.mkdir()
    if path.exists():
        os.replace(path, old / path.name)
    os.replace(new, path)


def _bring_back(scratch: Path) -> None:
    """What was moved aside, where nothing took its place."""
    for old in (scratch / _OLD).glob("*"):
        if not (scratch.parent / old.name).exists():
            os.replace(old, scratch.parent / old.name)


_EXCHANGES = {"Linux": ("renameat2", -100, 2), "Darwin": ("renameatx_np", -2, 2)}
"""System -> its call that lets two paths change places, its number for the working folder, its flag for it."""


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders of one file system change places in one step; False where the system cannot."""
    import ctypes

    try:
        name, here, flag = _EXCHANGES[platform.system()]
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (KeyError, AttributeError, OSError):
        return False
    return bool(call(here, os.fsencode(one), here, os.fsencode(other), flag) == 0)


def _scratch_beside(path: Path) -> Path:
    """A new scratch folder, whose name says which process it belongs to; those of dead ones are swept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{_machine()}-{os.getpid()}-", dir=path.parent))


@cache
def _machine() -> str:
    """8 hex digits of where the numbers of processes are those of the same processes: a machine, or a container."""
    numbers = Path("/proc/self/ns/pid")
    inode = numbers.stat().st_ino if numbers.exists() else 0
    return text_digest(f"{platform.node()} {inode}")[:8]


def _sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder, after what they had moved aside is back."""
    if os.name != "posix":
        return  # there is no asking for a process that does nothing to it
    for scratch in folder.glob(f"{SCRATCH}{_machine()}-*-*"):
        number = scratch.name.split("-")[2]
        if number.isdecimal() and not _is_alive(int(number)):
            with suppress(OSError):
                _bring_back(scratch)
                shutil.rmtree(scratch, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


@contextmanager
def only_maker(out: str | Path) -> Iterator[None]:
    """`only_writer` for a folder that appears whole; its lock, `.NAME.lock`, stands beside it meanwhile."""
    out = Path(out)
    lock = out.parent / f".{out.name[:200]}.lock"
    with only_writer(lock, out):
        try:
            yield
        finally:
            if os.name == "posix":  # whoever waits at a file that is gone looks for the lock again
                lock.unlink(missing_ok=True)


@contextmanager
def only_writer(path: str | Path, subject: str | Path = "") -> Iterator[None]:
    """Holds the lock file `path`; BlockingIOError at once, naming the other process and the subject (by default the
    folder of the lock), if one holds it already.

    The system takes the lock from a process that ends, however it ends; the file itself stays. Where the system has no
    such locks (some network drives), the log says so, and nothing is held.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"another process ({_holder(path)}) is writing to {subject or path.parent}: wait for it to end, or choose "
            "a new folder"
        ) from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        logger.warning("%s cannot be locked here: let no other process write to that folder", path)
    try:
        with suppress(OSError):  # Windows writes to no locked file
            path.write_text(f"pid {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip() or "unknown"
    return "unknown"


def own_files(folder: str | Path, pattern: str) -> list[Path]:
    """The files of a folder that match, by name; links, and a folder that is one, are left out: they show others."""
    folder = Path(folder)
    if folder.is_symlink():
        return []
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())


def text_of(path: str | Path) -> str:
    """The text of a user's file, without a byte order mark. ValueError, with its name, for one that is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as UTF-8") from error


def append_lines(path: str | Path, lines: Sequence[str]) -> int:
    """Append lines, on the disk when this returns, so that a job killed right afterwards loses nothing; how many.

    A last line without its newline is what a killed job leaves behind: it is cut off first. Several processes that
    append to one file take turns, so that nobody cuts what another has not finished.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("ab+") as file:
        _wait_for_turn(file)
        _cut_torn_line(file)
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
    return len(lines)


def read_lines(path: str | Path, parse: Callable[[bytes], T], kind: str) -> list[T]:
    """What `parse` makes of each line of a file that `append_lines` writes; nothing if there is no file.

    A last line without its newline is what a killed job leaves behind: it is left out here and cut off by the next
    `append_lines`. ValueError, naming the line and the `kind` of thing that it should be, for a broken one anywhere
    else, for then something else has happened to the file.
    """
    if not Path(path).exists():
        return []
    whole, _, _torn = Path(path).read_bytes().rpartition(b"\n")
    parsed: list[T] = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            parsed.append(parse(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} is not {kind} ({error!r}): {line[:80]!r}. "
                "Delete that line and run the job again: it asks only what is missing."
            ) from error
    return parsed


def _wait_for_turn(file: BinaryIO) -> None:
    """Lock a file until it is closed, where the system can. filelock would need another file beside it."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _cut_torn_line(file: BinaryIO) -> None:
    """Only the last byte is read of a sound file: it may be large, and lines come in thousands of small batches."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
