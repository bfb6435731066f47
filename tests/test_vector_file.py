"""A vector is read once; its file is refused for another model and for other pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_lora, tiny_model, tiny_tokenizer

from caa import ContrastPair, SteeringVector, extract
from caa.data.chat import ChatFormat
from caa.extraction.vector_file import load_or_extract
from caa.vectors.vector import Provenance

TOKENIZER = tiny_tokenizer()
PAIRS = [ContrastPair(f"Wait {i}?\n (A) Yes\n (B) No", "(A)", "(B)") for i in range(3)]
SWAPPED = [replace(pair, positive=pair.negative, negative=pair.positive) for pair in PAIRS]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}>{% endif %}{% endfor %}"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "vectors" / "waiting.safetensors"
    load_or_extract(path, tiny_model(), TOKENIZER, PAIRS, behavior="waiting")
    return path


def test_what_is_kept_is_what_extract_finds_and_is_not_read_again(path, monkeypatch):
    expected = extract(tiny_model(), TOKENIZER, PAIRS, behavior="waiting")
    monkeypatch.setattr("caa.extraction.vector_file.extract", None)
    kept = load_or_extract(path, tiny_model(), TOKENIZER, PAIRS, behavior="waiting")
    assert kept.source == expected.source
    assert all(torch.equal(kept.at(layer), expected.at(layer)) for layer in expected.layers)
    worn = load_or_extract(path, tiny_lora(tiny_model()), TOKENIZER, PAIRS)
    assert worn.source == expected.source, "a finetune of the model is no other base"


@pytest.mark.parametrize(
    ("model", "pairs", "template", "says"),
    [
        ("Qwen2", PAIRS, None, "model was ', "),
        ("Llama", PAIRS[:2], None, "text of the pairs was '3, "),
        (
            "Llama",
            [replace(p, positive=p.negative, negative=p.positive) for p in PAIRS],
            None,
            "text of the pairs was '3, ",
        ),
        ("Llama", PAIRS, TEMPLATE, "text of the pairs was '3, "),
        ("Qwen2", PAIRS[:2], None, "; text of the pairs was '3, "),
    ],
)
def test_another_vector_is_refused_and_stays(path, model, pairs, template, says):
    before = path.read_bytes()
    with pytest.raises(
        FileExistsError, match=r"waiting\.safetensors holds another vector: .*Remove that file"
    ) as error:
        load_or_extract(path, tiny_model(model), ChatFormat(TOKENIZER, template=template), pairs)
    assert says in str(error.value)
    assert path.read_bytes() == before


def test_a_vector_read_in_another_adapter_of_the_same_name_is_refused(tmp_path):
    path, (one, other) = tmp_path / "v.safetensors", (tiny_lora(tiny_model()) for _ in range(2))
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if "lora_B" in name).add_(0.1)
    kept = load_or_extract(path, one, TOKENIZER, PAIRS)
    assert load_or_extract(path, one, TOKENIZER, PAIRS).source == kept.source
    for model in (other, tiny_model()):
        with pytest.raises(FileExistsError, match="adapters was 'sft, "):
            load_or_extract(path, model, TOKENIZER, PAIRS)


def test_what_a_vector_does_not_say_is_not_checked(tmp_path):
    path = SteeringVector({1: torch.ones(32)}, Provenance(behavior="b")).save(tmp_path / "v.safetensors")
    assert load_or_extract(path, tiny_model(), TOKENIZER, PAIRS).layers == [1]
