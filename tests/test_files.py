"""Writing files: long names, and writers that never meet."""

from __future__ import annotations

import fcntl
import logging
import subprocess
import sys
import threading
import time

import pytest

from caa.files import append_lines, only_writer, replacing, replacing_folder

HOLDER = """
import sys, time
from caa.files import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    for name in ("x" * 255, "\u00e9" * 127):
        with replacing(tmp_path / name) as scratch:
            scratch.write_text("new")
        assert (tmp_path / name).read_text() == "new"
    with replacing_folder(tmp_path / ("y" * 255)) as scratch:
        (scratch / "inside").touch()
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [127, 255, 255], "no scratch is left"


def test_a_second_writer_is_refused_at_once_until_the_first_is_gone_even_if_killed(tmp_path):
    lock = tmp_path / "new" / "run.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BlockingIOError, match=rf"another process \(pid {holder.pid} on .*\) is writing to .*new:"),
            only_writer(lock),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_writer(lock):
        pass


def test_one_process_cannot_hold_a_lock_twice_and_an_error_lets_it_go(tmp_path):
    with pytest.raises(KeyError), only_writer(tmp_path / "lock"):
        with pytest.raises(BlockingIOError), only_writer(tmp_path / "lock"):
            pass
        raise KeyError
    with only_writer(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text().count("pid") == 1


def test_a_system_without_locks_is_told_about(tmp_path, monkeypatch, caplog):
    def unsupported(lock):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with caplog.at_level(logging.WARNING, logger="caa"), only_writer(tmp_path / "lock"):
        assert append_lines(tmp_path / "lines", ["a"]) == 1
    assert "cannot be locked here: let no other process write to that folder" in caplog.text


def test_the_half_line_of_a_living_writer_is_not_cut(tmp_path):
    path = tmp_path / "lines"
    with path.open("ab", buffering=0) as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        living.write(b"half")
        other = threading.Thread(target=append_lines, args=(path, ["other"]), daemon=True)
        other.start()
        time.sleep(0.1)
        living.write(b" and half\n")
    other.join(timeout=10)
    assert path.read_bytes() == b"half and half\nother\n"
