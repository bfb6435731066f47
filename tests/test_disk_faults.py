"""Whatever happens while a file is written, a reader finds the old one or the new one, whole; the next writer goes on.

Each writer is killed, for real and without a chance to clean up, before every step that touches the file system; and
runs out of room at growing numbers of bytes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

import pytest
import torch

from caa.cli.studies import _write_csv
from caa.files import SCRATCH, _is_alive, _machine, only_maker, replacing, replacing_folder
from caa.judges.clients.cache import ReplyCache
from caa.reports.tables.report import write_report
from caa.runs.manifest import record_run
from caa.runs.rows import Cell, Row, append_rows, read_rows
from caa.studies.candidates import Budget, Candidate
from caa.studies.findings import Cost, Search
from caa.vectors.formats.torch_files import load_tensors, write_lm_eval
from caa.vectors.vector import SteeringVector

STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
_at = [0]
"""Before which of the coming steps the process ends; 0 for none."""


def _hook(event, arguments):
    if _at[0] and event in STEPS and not str(arguments[0]).startswith(("/proc", "/dev", "/sys")):
        _at[0] -= 1
        if not _at[0]:
            os._exit(9)


sys.addaudithook(_hook)


def in_a_process(job, *, kill_before=0, room=None):
    """Whether the job came to its end in a process of its own: 0; 9 if it was killed, 1 if it failed."""
    child = os.fork()
    if not child:
        try:
            if room is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            _at[0] = kill_before
            job()
        except BaseException:
            _at[0] = 0
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def row(number):
    return Row(Cell("b", "ab", None, 1, 1.0), f"q{number}", 0.5, {"p_matching": 0.5, "p_opposite": 0.5})


def search(number):
    chosen = Candidate(number, 0.1)
    return Search("b", "m", "add", "after_prompt", Budget(), (), chosen, 1.0, None, Cost(1, 1, 1, 1, 1, 4))


def write_folder(folder, number):
    with replacing_folder(folder / "made") as scratch:
        for name in ("a", "b"):
            (scratch / name).write_text(str(number) * 5000)


def read_folder(folder):
    return [(folder / "made" / name).read_text() for name in ("a", "b")]


def write_once(folder, number):
    path = folder / f"{number}.pt"
    if not path.exists():
        write_lm_eval({"layers.1": torch.full((2000,), float(number))}, path)


def read_once(folder):
    return {path.name: sorted(load_tensors(path)) for path in folder.glob("*.pt")}


def report(folder, number):
    append_rows(folder / "rows.jsonl", [row(number), row(number + 10)])
    write_report(folder)


def remember(folder, number):
    ReplyCache(folder / "judge.jsonl").put(f"k{number}", {"reply": {"text": str(number) * 500}})


WRITERS = {
    "vector": (
        lambda folder, n: SteeringVector({1: torch.full((2000,), float(n))}).save(folder / "v.safetensors"),
        lambda folder: SteeringVector.load(folder / "v.safetensors").at(1).unique().tolist(),
    ),
    "folder": (write_folder, read_folder),
    "record": (
        lambda folder, n: record_run(folder / "run.json", {f"s{n}": "x" * 900}, {}, []),
        lambda folder: (folder / "run.json").read_text()[-40:] if (folder / "run.json").exists() else None,
    ),
    "search": (
        lambda folder, n: search(n).save(folder / "search.json"),
        lambda folder: Search.load(folder / "search.json").chosen,
    ),
    "csv": (
        lambda folder, n: _write_csv([{"a": n}] * 2000, folder / "a.csv"),
        lambda folder: sorted(set((folder / "a.csv").read_text().split())),
    ),
    "export of another tool": (write_once, read_once),
    "rows": (
        lambda folder, n: append_rows(folder / "rows.jsonl", [row(n), row(n + 10)]),
        lambda folder: [known.question for known in read_rows(folder / "rows.jsonl")],
    ),
    "replies": (remember, lambda folder: len(ReplyCache(folder / "judge.jsonl"))),
    "report": (report, lambda folder: [known.question for known in read_rows(folder / "rows.jsonl")]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_killed_before_any_step_or_without_room_the_old_file_or_the_new_one_is_whole(name, tmp_path, record_property):
    write, read = WRITERS[name]
    faults = 0
    for kind, amounts in (("kill_before", range(1, 60)), ("room", range(0, 30_000, 3000))):
        for amount in amounts:
            folder = tmp_path / f"{kind}-{amount}"
            folder.mkdir()
            write(folder, 1)
            old = read(folder)
            end = in_a_process(lambda: write(folder, 2), **{kind: amount})  # noqa: B023 - called at once
            if end == 0:
                break
            faults += 1
            found = read(folder)
            write(folder, 2)
            new = read(folder)
            if name in ("rows", "report"):
                assert found == new[: len(found)]
                assert found[: len(old)] == old
            else:
                assert found in (old, new), f"{kind} {amount}: {found}"
            with replacing(folder / "another") as scratch:
                scratch.touch()
            assert not list(folder.glob(f"{SCRATCH}*")), "the next writer has swept"
        else:
            pytest.fail(f"no {kind} was enough")
    assert faults >= 2
    record_property("faults", faults)


def test_what_was_moved_aside_by_a_process_that_died_comes_back(tmp_path):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert not _is_alive(child)
    left = tmp_path / f"{SCRATCH}{_machine()}-{child}-abc"
    (left / "old" / "made").mkdir(parents=True)
    (left / "old" / "made" / "a").write_text("the only one")
    alive = tmp_path / f"{SCRATCH}{_machine()}-{os.getpid()}-abc"
    elsewhere = tmp_path / f"{SCRATCH}00000000-{child}-abc"
    alive.mkdir()
    elsewhere.mkdir()
    with replacing(tmp_path / "other") as scratch:
        scratch.write_text("x")
    assert (tmp_path / "made" / "a").read_text() == "the only one"
    assert not left.exists()
    assert alive.exists(), "of a living process"
    assert elsewhere.exists(), "of another machine, whose processes nobody here knows"


def test_finetunes_exports_and_steered_adapters_are_made_by_one_process_at_a_time(tmp_path):
    from tiny import tiny_model, tiny_tokenizer

    from caa.exports.folder import new_export
    from caa.steering.wrapper import SteeringWrapper
    from caa.training.examples import Example
    from caa.training.sft import finetune_on

    out = tmp_path / "made"
    with only_maker(out):
        with pytest.raises(BlockingIOError, match=r"another process .* is writing to .*made: wait"), new_export(out):
            pass
        with pytest.raises(BlockingIOError, match=r"another process .* is writing to .*made: wait"):
            finetune_on(tiny_model(), tiny_tokenizer(), [Example(f"{n}?", "yes") for n in range(8)], out)
        with pytest.raises(BlockingIOError, match=r"another process .* is writing to .*made: wait"):
            SteeringWrapper(tiny_model()).save_pretrained(out)
    assert not list(tmp_path.iterdir()), "no lock is left either"
