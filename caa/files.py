"""Writing files so that readers never see half of one and writers never meet. Every room may use it."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

logger = logging.getLogger(__name__)

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

    The system takes the lock from a process that ends, however it ends; the file itself stays. Systems without such
    locks (Windows, some network drives) are told about in the log, and nothing is held there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            if not _lock(file, wait=False):
                logger.warning("%s cannot be locked here: let no other process write to that folder", path)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise BlockingIOError(
                f"another process ({holder}) is writing to {path.parent}: wait for it to end, or choose a new folder"
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _lock(file: IO[Any], *, wait: bool) -> bool:
    """Lock a file until it is closed; False where the system cannot. BlockingIOError where waiting is not wanted."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def append_lines(path: str | Path, lines: Sequence[str]) -> int:
    """Append lines, on the disk when this returns, so that a job killed right afterwards loses nothing; how many.

    A last line without its newline is what a killed job leaves behind: it is cut off first. Several processes that
    append to one file take turns, so that nobody cuts what another has not finished.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("ab+") as file:
        _lock(file, wait=True)
        _cut_torn_line(file)
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
    return len(lines)


def _cut_torn_line(file: BinaryIO) -> None:
    """Only the last byte is read of a sound file: it may be large, and lines come in thousands of small batches."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
