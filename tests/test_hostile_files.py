"""Files that others wrote or edited: each is read, or refused in one sentence; none does anything else."""

from __future__ import annotations

import copy
import json
import random
import struct
import zipfile
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from caa.data.sources import load_behavior, load_facts
from caa.judges.clients.cache import ReplyCache
from caa.models.adapters import _check_rank, _read_config, read_record
from caa.models.gguf import read_header
from caa.reports.diagnostics.warnings import run_warnings
from caa.reports.statistics import Estimate
from caa.reports.summaries import rerun_program, run_facts, warnings_of
from caa.runs.folder import read_run
from caa.runs.manifest import record_run
from caa.runs.rows import Cell, Row, VectorRef, append_rows, read_rows
from caa.steering.checkpoint.manifest import _digest
from caa.steering.checkpoint.steered import _from_json, read_steered
from caa.steering.settings_file import load_settings
from caa.studies.candidates import Budget, Candidate, Damage
from caa.studies.findings import Confirmation, Cost, Search, Trial
from caa.training.data import load_examples
from caa.untrusted import DEEPEST, LARGEST_SETTINGS, parse_json, read_yaml
from caa.vectors.formats.detect import import_vector
from caa.vectors.vector import Provenance, SteeringVector

DEEP = json.loads("[" * 40 + "]" * 40)
STRANGE = (None, True, -1, 3, 2.5, 1e999, float("nan"), 10**400, "x", "\x1b[2J", [], ["x"], {}, {"x": "x"}, DEEP)
MOST_EDITS = 160
"""Edited files of a kind that are read, drawn out of all that there are."""
REFUSED = (ValueError, FileNotFoundError, FileExistsError)
VECTOR = SteeringVector({1: torch.ones(4)})
ROW = Row(Cell("b", "open", "f", 2, 1.0, "", VectorRef("random", "0")), "q", 5.0, {"asked": "Why?", "text": "So."})
ESTIMATE = Estimate(0.5, 0.1, 0.9, 8)
TRIAL = Trial(Candidate(2, 0.1), ESTIMATE, Damage(0.1, 1.2, 0.0), 4, ESTIMATE)
RECORD = {
    "version": 2,
    "settings": {
        "model": {"fingerprint": "f", "dtype": "float32"},
        "behaviors": {"b": {"open": {"max_new_tokens": 8, "judge": {"name": "j", "accuracy": 0.9, "off_topic": 0.1}}}},
    },
    "notes": {
        "model": "m",
        "versions": {"caa": "1"},
        "batch_size": 4,
        "vectors": {"b": asdict(Provenance("m", method="pca"))},
        "doses": {"b": {"2": 1.0}},
        "finetunes": {"b": {"f": "by SFT"}},
    },
}


def report(path):
    """All that the reports read of a run's record."""
    run = read_run(path.parent)
    return run.captions, run_facts(run), warnings_of(run), rerun_program(run), run_warnings(run.rows, {}, {})


def go_on(path):
    record_run(path, copy.deepcopy(RECORD["settings"]), {}, [ROW.cell])


def cached(path):
    cache = ReplyCache(path)
    return [record["reply"]["text"].strip() for record in cache.records() if "reply" in record]


SEARCH = Search("b", "m", "add", "after_prompt", Budget(), (TRIAL,), TRIAL.candidate, 1.5, None, Cost(1, 1, 1, 1, 1, 4))
SEARCH = json.loads(
    json.dumps(
        {"format": "caa.search.v1", "verdict": "", "works": True}
        | asdict(SEARCH)
        | {"confirmation": asdict(Confirmation(TRIAL, (0.1,), 0.2, {"facts": ESTIMATE}))}
    )
)
ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": {"a": 2}}
CAA_JSON = {"base": "m", "base_fingerprint": "f", "behavior": "b", "direction": "positive", "config": {"method": "sft"}}
CAA_JSON |= {"steered_by": [{"multiplier": [0.3]}]}
STEERED = {
    "format": "caa.steered.v3",
    "base": {"name": "m", "fingerprint": "f"},
    "tokenizer": "",
    "adapters": [{"name": "a", "folder": "."}],
    "active": ["a"],
    "interventions": [
        {
            "vector": "vector-0.safetensors",
            "layer": 1,
            "source_layer": None,
            "multiplier": [1.0],
            "operator": "add",
            "where": "after_prompt",
            "gate": {"vector": "gate-0.safetensors", "layer": 0, "above": 0.1, "below": None},
        }
    ],
    "files": {},
}
BEHAVIOR = {
    "name": "b",
    "rubric": "How?",
    "pairs": [{"question": "q?", "positive": "(A)", "negative": "(B)"}],
    "open_questions": [{"question": "Why?"}],
    "system_prompts": {"positive": ["Be b."]},
    "phrases": {"positive": ["b"], "negative": ["c"]},
}


def sealed(path):
    """The hash of a manifest is no secret: whoever edits one writes the right hash too."""
    manifest = parse_json(path.read_bytes(), "it")
    if isinstance(manifest, dict):
        VECTOR.save(path.parent / "vector-0.safetensors")
        SteeringVector({0: torch.ones(4)}).save(path.parent / "gate-0.safetensors")
        unsealed = {key: value for key, value in manifest.items() if key != "seal"}
        path.write_text(json.dumps(unsealed | {"seal": _digest(unsealed)}))
    return [_from_json(path.parent, record) for record in read_steered(path.parent)["interventions"]]


CASES = {
    "rows.jsonl": (json.loads(ROW.to_json()), lambda path: read_run(path.parent)),
    "run.json": (RECORD, report),
    "run.json, going on": (RECORD, go_on),
    "judge.jsonl": ({"key": "k", "reply": {"text": "7", "first": {"7": 0.9}, "refused": ""}, "retries": 0}, cached),
    "search.json": (SEARCH, lambda path: (Search.load(path).verdict, Search.load(path).records())),
    "adapter_config.json": (ADAPTER, lambda path: _check_rank(path.parent, _read_config(path.parent))),
    "caa.json": (CAA_JSON, lambda path: read_record(path.parent)),
    "steering.json": (STEERED, sealed),
    "behavior.json": (BEHAVIOR, lambda path: load_behavior(str(path))),
    "facts.json": ([{"prompt": "p (A) a (B) b", "correct": "(A)", "incorrect": "(B)"}], lambda p: load_facts(str(p))),
    "vector.svec": ({"model_type": "llama", "directions": {"3": [[0.5, 1.0]]}}, lambda p: import_vector(p).layers),
    "provenance": (asdict(Provenance("m")), lambda path: Provenance.from_json(path.read_text())),
    "examples.jsonl": ({"prompt": "p", "completion": "c"}, lambda path: load_examples(str(path))),
    "settings.yaml": ({"a": {"layer": 1, "operator": "add", "multiplier": 2.0}}, lambda p: load_settings(p, VECTOR)),
}


def is_refused(read, path):
    """Whether a file is refused, in a sentence of bearable length; any other end of reading it is an error."""
    try:
        read(path)
    except REFUSED as error:
        sentence = str(error)
    else:
        return False
    assert len(sentence) < 2000
    return True


def edited(content, strange):
    """The content with each of its values in turn replaced, and with each field left out."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        changed = copy.copy(content)
        changed[key] = strange
        yield changed
        if isinstance(content, dict) and strange is None:
            yield {name: value for name, value in content.items() if name != key}
        if isinstance(content[key], (dict, list)) and content[key]:
            for inner in edited(content[key], strange):
                changed = copy.copy(content)
                changed[key] = inner
                yield changed


def place(folder, name):
    """Where such a file lies, among what belongs to it."""
    append_rows(folder / "rows.jsonl", [ROW])
    save_file({"a.lora_A.weight": torch.ones(4, 8)}, folder / "adapter_model.safetensors")
    return folder / name.partition(",")[0]


@pytest.mark.parametrize("name", CASES)
def test_each_field_of_a_file_is_read_or_refused_whatever_stands_there(name, tmp_path, record_property):
    content, read = CASES[name]
    path = place(tmp_path, name)
    path.write_text(json.dumps(content) + "\n")
    read(path)  # as it was written
    files = [changed for strange in STRANGE for changed in (*edited(content, strange), strange)]
    some = random.Random(0).sample(files, min(len(files), MOST_EDITS))
    refused = 0
    for changed in some:
        path.write_text(json.dumps(changed) + "\n")
        refused += is_refused(read, path)
    assert len(some) > 20
    assert refused > len(some) / 8
    record_property("faults", len(some))


@pytest.mark.parametrize("name", [name for name in CASES if name != "settings.yaml"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "\xff\xfe", "{", '"', "1" * 5000])
def test_a_document_that_is_too_deep_or_torn_is_refused(name, text, tmp_path):
    path = place(tmp_path, name)
    path.write_text(text + "\n", encoding="latin-1")
    with pytest.raises(REFUSED):
        CASES[name][1](path)


def test_depth_is_counted_and_long_flat_documents_are_read():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "it")
    with pytest.raises(ValueError, match="it is nested more than 64 deep"):
        parse_json("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "it")
    assert len(parse_json("[" + "[]," * 9999 + "[]]", "it")) == 10_000


@pytest.mark.parametrize("change", [
    {"score": 10.5}, {"score": -1}, {"score": float("nan")}, {"score": True}, {"score": "7"}, {"multiplier": 1e999},
    {"layer": -1}, {"layer": 1.0}, {"task": 3}, {"system_prompt": "rude"}, {"vector": {"kind": "own", "name": "x"}},
    {"text": 7}, {"reason": ["x"]}, {"question": None}, {"finetune": 1}, {"behavior": []}, {"task": "ab", "score": 1.5},
    {"p_matching": 2.0}, {"vector": {"kind": "others", "name": "x"}},
])  # fmt: skip
def test_a_row_that_cannot_be_is_refused_with_its_line(change, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW.to_json() + "\n" + json.dumps(json.loads(ROW.to_json()) | change) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not a row"):
        read_rows(path)


@pytest.mark.parametrize(("change", "complaint"), [
    ({"behavior": "c"}, "no behavior 'c', only 'b'"), ({"task": "ab", "score": 0.5}, "no task 'ab', only 'open'"),
    ({"finetune": "g"}, "no finetune 'g', only 'f'"), ({"system_prompt": "negative"}, "prompt 'negative', only 'pos"),
    ({"vector": {"kind": "other", "name": "d"}}, "no vector 'd', only 'c'"), ({"setting": "u"}, "no setting 'u', only"),
])  # fmt: skip
def test_a_row_of_which_the_record_knows_nothing_is_refused_with_its_line(change, complaint, tmp_path):
    known = {"open": {}, "finetunes": {"f": ""}, "prompts": {"positive": ""}, "also": {"c": ""}, "settings": {"t": []}}
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"behaviors": {"b": known}}}))
    listed = {"vector": {"kind": "other", "name": "c"}, "system_prompt": "positive", "setting": "t"}
    whole = json.loads(ROW.to_json())
    lines = [whole, whole | {"finetune": None}, whole | listed, whole | {"task": "mmlu"}, whole | change]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert len(read_run(tmp_path).rows) == 4
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 5 is not a row \(.*run.json knows .*{complaint}"):
        read_run(tmp_path)


def test_yaml_that_multiplies_itself_is_refused(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path = tmp_path / "settings.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="more than 200,000 values"):
        read_yaml(path)
    path.write_text("a: " + "x" * LARGEST_SETTINGS)
    with pytest.raises(ValueError, match="bytes long"):
        read_yaml(path)
    path.write_text("a: !!python/name:os.getcwd")
    with pytest.raises(ValueError, match="cannot be read as yaml"):
        read_yaml(path)


# Binary files that say more than they hold.


def test_an_archive_of_torch_that_says_more_than_it_holds_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("was read"))
    path = tmp_path / "v.pt"
    torch.save(torch.zeros(4096), path)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in whole.infolist():
            smaller.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed, as torch"):
        import_vector(packed, 1)
    with zipfile.ZipFile(packed, "w") as larger:
        larger.writestr("archive/data/0", bytes(16))
        larger.filelist[0].file_size = 2**30
    with pytest.raises(ValueError, match="says that it holds more than its"):
        import_vector(packed, 1)


@pytest.mark.parametrize("r", [5, 10**9, 0, -1])
def test_a_rank_beyond_the_tensors_is_refused_before_memory_is_taken(r, tmp_path):
    path = place(tmp_path, "adapter_config.json")
    save_file({"a.lora_A.weight": torch.ones(4, 4)}, tmp_path / "adapter_model.safetensors")
    path.write_text(json.dumps(ADAPTER | {"r": r}))
    with pytest.raises(ValueError, match=f"says that it has rank {r}, and its tensors have no more than 4 rows"):
        _check_rank(tmp_path, _read_config(tmp_path))


@pytest.mark.parametrize("body", [
    struct.pack("<QQ", 0, 2**60),
    struct.pack("<QQ", 2**60, 0),
    struct.pack("<QQQ", 0, 1, 2**62) + b"name",
    struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**60) + b"\0" * 64,
    struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60) + b"\0" * 64,
    struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50_000,
    struct.pack("<QQQ", 1, 0, 1) + b"a" + struct.pack("<I", 2**31),
])  # fmt: skip
def test_a_gguf_header_that_says_more_than_the_file_holds_is_refused(body, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + body)
    with pytest.raises(ValueError, match="damaged GGUF file"):
        read_header(path)
