"""caa inspect and caa import: any file of this field, what it is, whether it fits; and nothing in it is obeyed."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.cli import main
from caa.inspection import inspect
from caa.runs.rows import Cell, Row, append_rows
from caa.vectors.formats.gguf import write_gguf
from caa.vectors.vector import Provenance


@pytest.fixture
def base(tmp_path):
    """A folder with a tiny Llama: 4 blocks of width 32."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def some(layers=(1, 2), width=32, **source) -> SteeringVector:
    return SteeringVector({layer: torch.full((width,), 0.5) for layer in layers}, Provenance(**source))


def test_every_vector_file_is_known_by_its_content(tmp_path):
    v = some(behavior="patience", history=("unit norm", "times 2"))
    ours = inspect(v.save(tmp_path / "a"))
    theirs = inspect(write_gguf(v, tmp_path / "b", "llama"))
    torch.save(v.at(1), tmp_path / "c")
    bare = inspect(tmp_path / "c")
    assert (ours.kind, theirs.kind) == ("steering vector of caa", "GGUF control vector")
    assert bare.kind == "torch.save file: a bare tensor"
    assert ours.facts["history"] == "unit norm; times 2"
    assert theirs.facts["behavior"] == "patience"
    assert theirs.facts["model hint"] == "llama"
    assert "--layer" in bare.facts["layers"]
    assert ours.norms["norm"] == pytest.approx({1: 8**0.5, 2: 8**0.5})


def test_a_vector_is_compared_with_a_base(tmp_path, base):
    fits = inspect(write_gguf(some(), tmp_path / "fits.gguf", "llama"), str(base)).verdicts
    assert fits == [
        (True, "width 32; the base's is 32"),
        (True, "layers 1, 2; the base has 0 to 3"),
        (True, "made for 'llama'; the base is 'llama'"),
    ]
    other = inspect(write_gguf(some((1, 4), 16), tmp_path / "other.gguf", "gpt2"), str(base)).verdicts
    assert [verdict for verdict, _ in other] == [False, False, False]
    with pytest.raises(ValueError, match="no model 'nowhere' to compare with"):
        inspect(tmp_path / "other.gguf", "nowhere")


def test_a_steered_adapter_and_its_lora_are_described_and_compared(tmp_path, base):
    model = tiny_lora(load_model(str(base))[0])
    wrapper = SteeringWrapper(model, Intervention(some(behavior="patience"), 3, -1.5, source_layer=2))
    folder = wrapper.save_pretrained(tmp_path / "steered")
    found = inspect(folder, str(base))
    assert found.kind == "steered adapter"
    assert found.facts["intervention 1"] == "patience x -1.5, layer 3, add, after_prompt"
    assert found.facts["rank"] == "2"
    assert found.norms == {"1: patience": pytest.approx({1: 8**0.5, 2: 8**0.5})}
    assert all(fits for fits, _ in found.verdicts)
    assert [why.split()[0] for _, why in found.verdicts] == ["width", "layers", "LoRA", "fingerprint"]
    changed = tiny_model()
    changed.model.embed_tokens.weight.data[0, 0] += 1
    changed.save_pretrained(base)
    verdicts = inspect(folder, str(base)).verdicts
    assert [why.split()[0] for fits, why in verdicts if not fits] == ["fingerprint"]


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_a_peft_adapter_of_another_tool_is_compared_by_its_shapes(tmp_path, base, family):
    tiny_lora(tiny_model(family)).save_pretrained(tmp_path / "adapter")
    found = inspect(tmp_path / "adapter" / "sft", str(base))
    assert found.kind == "PEFT adapter"
    (fits, why) = found.verdicts[0]
    assert fits == (family == "Llama"), why
    tiny_model(family).save_pretrained(base)
    assert inspect(tmp_path / "adapter" / "sft", str(base)).verdicts[0][0]


def test_a_run_is_counted(tmp_path):
    cells = [Cell("patience", "ab", multiplier=m, layer=2) for m in (-1.0, 1.0)]
    append_rows(tmp_path / "rows.jsonl", [Row(cell, f"q{n}", 0.5) for cell in cells for n in range(3)])
    (tmp_path / "run.json").write_text(json.dumps({"settings": {}, "notes": {"model": {"name": "tiny-chat"}}}))
    found = inspect(tmp_path)
    assert (found.kind, found.facts["rows"], found.facts["cells"]) == ("run", "6", "2")
    assert found.facts["multiplier"] == "-1.0 (3 rows), 1.0 (3 rows)"
    assert found.facts["model.name"] == "tiny-chat"


def test_unknown_and_damaged_things_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing that is known here"):
        inspect(tmp_path)
    (tmp_path / "steering.json").write_text("{")
    with pytest.raises(ValueError, match="damaged: it is not json"):
        inspect(tmp_path)
    (tmp_path / "steering.json").write_text('{"base": "x"}')
    with pytest.raises(ValueError, match="cannot be read"):
        inspect(tmp_path)
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="none of the files that are known here"):
        inspect(tmp_path / "thesis.tex")


def test_text_from_a_file_is_shown_and_not_obeyed(tmp_path, capsys):
    source = {"behavior": "[bold red]x[/bold red]", "history": ("[/]",), "model": "[link=file:///etc]m[/link]"}
    some(**source).save(tmp_path / "v.safetensors")
    assert main(["inspect", str(tmp_path / "v.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "[bold red]x[/bold red]" in shown
    assert "[/]" in shown
    assert "[link=file:///etc]m[/link]" in shown


def test_import_then_inspect_on_the_command_line(tmp_path, capsys, base):
    torch.save(torch.ones(32), tmp_path / "theirs.pt")
    out = tmp_path / "ours.safetensors"
    arguments = ["import", str(tmp_path / "theirs.pt"), str(out)]
    assert main(arguments) == 1
    assert "--layer 13" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--layer", "2", "--behavior", "patience"]) == 0
    assert SteeringVector.load(out).source.behavior == "patience"
    assert main([*arguments, "--layer", "1"]) == 1, "a vector was overwritten"
    assert SteeringVector.load(out).layers == [2]
    capsys.readouterr()
    assert main(["inspect", str(out), "--model", str(base)]) == 0
    shown = capsys.readouterr().out
    assert "imported from a bare tensor" in shown
    assert "fits: width 32" in shown
