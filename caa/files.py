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
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCRATCH = ".writing-"
"""What the names of scratch folders begin with; not with the file's own name, which may be as long as names can be."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a scratch path; what was written there takes the place of `path` at the end, or vanishes on an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=path.parent))
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty scratch folder, which takes the place of the folder `path` at the end, or vanishes on an error.

    The old folder is moved aside and back again, should the last step fail: it stays whole until the new one stands.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=path.parent))
    new, old = scratch / "new", scratch / "old"
    new.mkdir()
    try:
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Holds the lock file `path`; BlockingIOError at once, naming the other process, if one holds it already.

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
            f"another process ({_holder(path)}) is writing to {path.parent}: wait for it to end, or choose a new folder"
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
