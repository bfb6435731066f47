"""Steered adapters: saved, reloaded in a fresh process, the same to the bit; anything that does not fit is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product

import pytest
import torch
from tiny import random_ids, tiny_lora, tiny_model

from caa import Intervention, SteeringVector, SteeringWrapper, load_model
from caa.models.fingerprint import (
    SMALL,
    digest_of_samples,
    fingerprint,
    has_fingerprint,
    sample_parameters,
)
from caa.steering.checkpoint.card import steered_card
from caa.steering.checkpoint.manifest import seal
from caa.steering.operators import OPERATORS, Clamp, Targeted, ablate, add_keeping_norm, add_relative, replace
from caa.steering.patching import record_activations
from caa.steering.scopes import (
    SCOPES,
    At,
    Decay,
    First,
    Steps,
    after_prompt,
    everywhere,
    last_prompt_token,
    prompt_only,
)
from caa.vectors.vector import Provenance

IDS = random_ids(2, 7)


def saved_base(folder):
    """A tiny base model in a folder, as a user would have it."""
    from tiny import tiny_tokenizer

    model = tiny_model()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(str(folder))[0]


@pytest.fixture
def base(tmp_path):
    return saved_base(tmp_path / "base")


def some_vector() -> SteeringVector:
    drawn = {1: torch.randn(32, generator=torch.Generator().manual_seed(0)), 2: torch.ones(32)}
    return SteeringVector(drawn, Provenance(behavior="patience", model="base", n_pairs=5))


def steered(model) -> SteeringWrapper:
    return SteeringWrapper(
        model,
        Intervention(some_vector(), 1, -1.5),
        Intervention(some_vector(), 3, 0.5, where=everywhere, source_layer=2),
    )


FRESH = """
import sys, torch
from caa import SteeringWrapper
ids, *folders = sys.argv[1:]
for folder in folders:
    wrapper = SteeringWrapper.from_pretrained(folder)
    torch.save(wrapper(torch.load(ids)).logits.detach(), folder + ".logits.pt")
    wrapper.save_pretrained(folder + ".again", finetunes=wrapper.adapters)
"""
WORN = {"none": [], "one": ["sft"], "two": ["positive", "negative"]}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Where each wrapper of `WORN` was saved, with its logits; one fresh process has loaded and saved each again."""
    root = tmp_path_factory.mktemp("fresh")
    base, one, two = (saved_base(root / f"base-{name}") for name in WORN)
    wrappers = dict(zip(WORN, (steered(base), steered(tiny_lora(one)), two_finetunes(two)), strict=True))
    expected = {name: wrapper(IDS).logits.detach() for name, wrapper in wrappers.items()}
    folders = [str(wrapper.save_pretrained(root / name, finetunes=WORN[name])) for name, wrapper in wrappers.items()]
    torch.save(IDS, root / "ids.pt")
    subprocess.run([sys.executable, "-c", FRESH, str(root / "ids.pt"), *folders], check=True)
    return root, expected


@pytest.mark.parametrize("worn", WORN)
def test_the_same_logits_in_a_fresh_process(fresh, worn):
    root, expected = fresh
    assert torch.equal(torch.load(root / f"{worn}.logits.pt"), expected[worn])


def test_everything_about_the_interventions_comes_back(base, tmp_path):
    wrapper = steered(base)
    loaded = SteeringWrapper.from_pretrained(wrapper.save_pretrained(tmp_path / "steered"))
    for old, new in zip(wrapper.interventions, loaded.interventions, strict=True):
        assert (old.layer, old.operator, old.where, old.source_layer) == (
            new.layer,
            new.operator,
            new.where,
            new.source_layer,
        )
        assert torch.equal(old.strengths, new.strengths)
        assert torch.equal(old.direction, new.direction)
        assert old.vector.source == new.vector.source


HOW = [
    (ablate, prompt_only),
    (add_keeping_norm, last_prompt_token),
    (Clamp(-0.1), First(3)),
    (replace, At([[0, 2], [1]])),
    (Targeted(above=0.1), everywhere),
    (Targeted(-2.0, 0.7, operator=Clamp(3.0)), after_prompt),
    (add_relative, Steps(2)),
    (Targeted(above=0.0, operator=add_relative), Decay(1.5, prompt_only)),
]


def test_operators_and_scopes_come_back_with_their_numbers(base, tmp_path):
    named = {getattr(how, "__name__", type(how).__name__).lower() for pair in HOW for how in pair}
    assert named == set(OPERATORS) - {"add"} | set(SCOPES)
    for operator, where in HOW:
        wrapper = SteeringWrapper(base, Intervention(some_vector(), 1, 0.5, operator, where))
        expected = wrapper(IDS).logits
        loaded = SteeringWrapper.from_pretrained(wrapper.save_pretrained(tmp_path / "steered"))
        assert (loaded.interventions[0].operator, loaded.interventions[0].where) == (operator, where)
        assert torch.equal(loaded(IDS).logits, expected)
        wrapper.unsteer()
        assert not torch.equal(base(IDS).logits, expected)


def test_a_folder_of_before_operators_had_numbers_still_loads(base, tmp_path):
    folder = steered(base).save_pretrained(tmp_path / "steered")
    records = json.loads((folder / "steering.json").read_text())["interventions"]
    assert [(record["operator"], record["where"]) for record in records] == [
        ("add", "after_prompt"),
        ("add", "everywhere"),
    ]


def test_what_cannot_be_saved_or_is_not_known_is_refused(base, tmp_path):
    refused = {
        "operator of your own": Intervention(
            some_vector(), 1, operator=Targeted(above=0.0, operator=lambda r, d, s: r)
        ),
        "scope of your own": Intervention(some_vector(), 1, where=lambda positions, last_prompt: positions > 2),
        "a recording belongs to the prompts": Intervention(record_activations(base, IDS), 1, operator=replace),
        "a coefficient for each token belongs to the prompts": Intervention(some_vector(), 1, torch.ones(1, 9)),
    }
    for reason, intervention in refused.items():
        wrapper = SteeringWrapper(base, intervention)
        with pytest.raises(ValueError, match=reason):
            wrapper.save_pretrained(tmp_path / "steered")
        wrapper.unsteer()
        assert not (tmp_path / "steered").exists()
    folder = steered(base).save_pretrained(tmp_path / "steered")
    manifest = (folder / "steering.json").read_text().replace('"add"', '{"name": "rotate", "angle": 3}')
    (folder / "steering.json").unlink()
    foreign = {key: value for key, value in json.loads(manifest).items() if key not in ("files", "seal")}
    seal(folder, foreign, "steering.json")
    with pytest.raises(ValueError, match="knows no operator 'rotate'; it knows"):
        SteeringWrapper.from_pretrained(folder)


def test_the_lora_inside_is_plain_peft(base, tmp_path):
    from peft import PeftModel

    wrapper = SteeringWrapper(tiny_lora(base))
    expected = wrapper(IDS).logits
    folder = wrapper.save_pretrained(tmp_path / "steered")
    assert all(path.is_file() for path in folder.iterdir()), "the adapter's own folder was left behind"
    plain = PeftModel.from_pretrained(load_model(str(tmp_path / "base"))[0], str(folder)).eval()
    assert torch.equal(plain(IDS).logits, expected)


def test_saving_again_replaces_and_a_failure_leaves_the_old_folder(base, tmp_path, monkeypatch):
    wrapper = steered(base)
    folder = wrapper.save_pretrained(tmp_path / "steered")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def dies(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SteeringVector, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            wrapper.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    wrapper.unsteer()
    wrapper.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "steering.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "steered"]


def test_a_folder_of_other_things_is_not_overwritten(base, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="no steered adapter"):
        steered(base).save_pretrained(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years"


def test_an_operator_of_ones_own_is_refused_before_anything_is_written(base, tmp_path):
    wrapper = SteeringWrapper(
        base, Intervention(some_vector(), 1, 1.0, operator=lambda resid, direction, strength: resid)
    )
    with pytest.raises(ValueError, match="an operator of your own cannot be saved"):
        wrapper.save_pretrained(tmp_path / "steered")
    assert not (tmp_path / "steered").exists()


def test_another_base_a_missing_folder_and_a_newer_format_are_refused(base, tmp_path):
    folder = steered(base).save_pretrained(tmp_path / "steered")
    other = tiny_model()
    other.model.embed_tokens.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="this model has other weights"):
        SteeringWrapper.from_pretrained(folder, other)
    with pytest.raises(FileNotFoundError, match="no steered adapter"):
        SteeringWrapper.from_pretrained(tmp_path / "base")
    manifest = json.loads((folder / "steering.json").read_text())
    (folder / "steering.json").write_text(json.dumps(manifest | {"format": "caa.steered.v9"}))
    with pytest.raises(
        ValueError, match=r"format 'caa.steered.v9'; this version of caa reads caa.steered.v1 to caa.steered.v3"
    ):
        SteeringWrapper.from_pretrained(folder)


def test_a_fingerprint_knows_the_base_through_adapters_and_dtypes(base):
    known = fingerprint(tiny_model().to(torch.bfloat16))
    assert fingerprint(base) == known
    assert fingerprint(tiny_model().to(torch.bfloat16).float()) == known
    assert fingerprint(tiny_lora(base)) == known
    assert fingerprint(tiny_model("Qwen2")) != known


def with_small_numbers(folder, stored: str):
    """A model in a folder, many of whose numbers are too small for float16."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e-4
    model.to(getattr(torch, stored)).save_pretrained(folder)
    return str(folder)


def loaded(folder, dtype: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_a_fingerprint_is_the_same_in_every_dtype(tmp_path, stored):
    folder = with_small_numbers(tmp_path / "small", stored)
    full, brain, half = (loaded(folder, dtype) for dtype in ("float32", "bfloat16", "float16"))
    assert fingerprint(full) == fingerprint(brain)
    assert (fingerprint(full) == fingerprint(half)) == (stored != "float32"), "float32 is rounded twice on this way"
    assert has_fingerprint(full, fingerprint(half))
    first = digest_of_samples(full, sample_parameters(full), 0.0)
    assert has_fingerprint(full, first)
    assert first != fingerprint(full), "this model has no small numbers"
    assert not has_fingerprint(full, fingerprint(tiny_model()))


def test_float16_holds_every_number_of_bfloat16_that_is_not_small():
    every = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    every = every[every.isfinite() & (every <= 65504)]
    halved, large = every.half().bfloat16().float(), every >= SMALL
    assert torch.equal(halved[large], every[large])
    assert (halved[~large] < SMALL).all()
    assert not torch.equal(halved, every)


def test_a_float32_checkpoint_in_float16_is_told_what_to_try(tmp_path):
    model, _ = load_model(with_small_numbers_and_tokenizer(tmp_path / "small"))
    folder = SteeringWrapper(model, Intervention(some_vector(), 1)).save_pretrained(tmp_path / "steered")
    with pytest.raises(ValueError, match="load it in float32 or bfloat16"):
        SteeringWrapper.from_pretrained(folder, loaded(str(tmp_path / "small"), "float16"))
    SteeringWrapper.from_pretrained(folder, loaded(str(tmp_path / "small"), "bfloat16"))


def with_small_numbers_and_tokenizer(folder) -> str:
    from tiny import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    return with_small_numbers(folder, "float32")


def test_a_fingerprint_of_the_first_kind_is_still_known(tmp_path):
    """As the code before wrote it, for the embedded model and for one with numbers that are zero today."""
    model, _ = load_model("tiny-chat")
    assert fingerprint(model) == "8479a66861f937b8"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e-4
    assert fingerprint(model) != "d5380a3820e54256"
    assert has_fingerprint(model, "d5380a3820e54256")
    wrapper = SteeringWrapper(tiny_lora(model))
    folder = wrapper.save_pretrained(tmp_path / "steered")
    rewritten(folder, lambda manifest: manifest["base"].update(fingerprint="d5380a3820e54256"))
    (folder / "caa.json").write_text(json.dumps({"base": "tiny-chat", "base_fingerprint": "d5380a3820e54256"}))
    rewritten(folder, lambda manifest: None)
    wrapper.unload_adapters()
    assert SteeringWrapper.from_pretrained(folder, wrapper.model).adapters == ["sft"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_training_step_makes_another_fingerprint(dtype):
    model, _ = load_model("tiny-chat")
    model.to(getattr(torch, dtype))
    known, optimizer = fingerprint(model), torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert fingerprint(model) != known
    assert not has_fingerprint(model, known)


@pytest.mark.parametrize("special", [{"modules_to_save": ["norm", "lm_head"]}, {"trainable_token_indices": [5, 6]}])
def test_trained_copies_and_tokens_are_no_part_of_the_base(base, tmp_path, special):
    from peft import LoraConfig, get_peft_model

    known = fingerprint(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **special))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    assert fingerprint(model) == known
    wrapper = steered(model.eval())
    loaded = SteeringWrapper.from_pretrained(wrapper.save_pretrained(tmp_path / "steered"))
    assert torch.equal(loaded(IDS).logits, wrapper(IDS).logits)


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    from peft import PeftModel

    tiny_lora(tiny_model()).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "sft"
    (path / "caa.json").write_text(json.dumps({"base": "another", "base_fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="was trained on 'another'"):
        SteeringWrapper(base).load_adapter(path, "sft")
    (path / "caa.json").write_text(json.dumps({"base": "this", "base_fingerprint": fingerprint(base)}))
    wrapper = SteeringWrapper(base)
    wrapper.load_adapter(path, "sft")
    assert isinstance(wrapper.model, PeftModel)
    with pytest.raises(ValueError, match="already holds an adapter 'sft'"):
        wrapper.load_adapter(path, "sft")
    (path / "caa.json").unlink()
    narrow = type(tiny_model())(
        type(tiny_model().config)(**{**tiny_model().config.to_dict(), "hidden_size": 16, "head_dim": 4})
    )
    with pytest.raises(ValueError, match="does not fit this model"):
        SteeringWrapper(narrow).load_adapter(path, "sft")
    with pytest.raises(ValueError, match="no adapter"):
        SteeringWrapper(tiny_model()).load_adapter(tmp_path / "nowhere", "sft")


def test_the_tokenizer_comes_from_the_same_files_as_the_model(base, monkeypatch):
    import transformers

    asked = {}
    for kind in ("AutoTokenizer", "AutoModelForCausalLM"):
        plain = getattr(transformers, kind).from_pretrained

        def noted(*args, kind=kind, plain=plain, **kwargs):
            asked[kind] = kwargs
            return plain(*args, **kwargs)

        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", noted)
    load_model(base.config.name_or_path, revision="v2", local_files_only=True, use_safetensors=True)
    assert asked["AutoModelForCausalLM"]["revision"] == asked["AutoTokenizer"]["revision"] == "v2"
    assert asked["AutoTokenizer"]["local_files_only"]
    assert "use_safetensors" not in asked["AutoTokenizer"]


def test_an_unknown_model_says_where_it_was_looked_for():
    with pytest.raises(
        ValueError, match="no model 'tiny-chta': it is none of a folder, a GGUF file, tiny-chat, tiny-b"
    ):
        load_model("tiny-chta")


def _files(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def two_finetunes(base) -> SteeringWrapper:
    from peft import LoraConfig

    model = tiny_lora(base, "positive", seed=1)
    config = LoraConfig(r=3, target_modules=["v_proj", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(2)
    model.add_adapter("negative", config)
    return steered(model.eval())


@pytest.mark.parametrize("worn", WORN)
def test_save_load_save_gives_the_same_bytes_also_in_a_fresh_process(fresh, worn):
    root, _ = fresh
    first, again = _files(root / worn), _files(root / f"{worn}.again")
    assert len([name for name in first if name.startswith("vector-")]) == 2
    assert ("adapters/negative/adapter_model.safetensors" in first) == (worn == "two")
    assert first == again


def test_several_finetunes_come_back_each_as_it_was(base, tmp_path):
    from peft import PeftModel

    wrapper = two_finetunes(base)
    folder = wrapper.save_pretrained(tmp_path / "steered", finetunes=["negative", "positive"])
    loaded = SteeringWrapper.from_pretrained(folder)
    assert loaded.adapters == ["positive", "negative"], "the active one comes first, and lies at the root"
    assert torch.equal(loaded(IDS).logits, wrapper(IDS).logits)
    for name in ("positive", "negative"):
        with wrapper.finetune(name), loaded.finetune(name):
            assert torch.equal(loaded(IDS).logits, wrapper(IDS).logits)
    wrapper.unsteer()
    plain = PeftModel.from_pretrained(load_model(str(tmp_path / "base"))[0], str(folder / "adapters" / "negative"))
    with wrapper.finetune("negative"):
        assert torch.equal(plain.eval()(IDS).logits, wrapper(IDS).logits)
    card = (folder / "README.md").read_text()
    assert "| `positive` (worn) | `.` |" in card
    assert "| `negative` | `adapters/negative` |" in card
    only = wrapper.save_pretrained(tmp_path / "only")
    assert SteeringWrapper.from_pretrained(only).adapters == ["positive"], "by default the active one alone"


@pytest.mark.parametrize(
    ("finetunes", "reason"),
    [
        (["neutral"], "no finetune 'neutral' to save; it holds"),
        (["negative"], "wears a finetune that it holds"),
        ([], r"active are \['positive'\], to be kept none.*finetune\(None\)"),
    ],
)
def test_finetunes_that_cannot_be_kept_are_refused(base, tmp_path, finetunes, reason):
    with pytest.raises(ValueError, match=reason):
        two_finetunes(base).save_pretrained(tmp_path / "steered", finetunes=finetunes)
    assert not (tmp_path / "steered").exists()


def test_what_was_saved_without_a_finetune_is_worn_without_one(base, tmp_path):
    wrapper = two_finetunes(base)
    with wrapper.finetune(None):
        expected = wrapper(IDS).logits
        folder = wrapper.save_pretrained(tmp_path / "steered", finetunes=[])
    wrapper.save_pretrained(tmp_path / "worn")
    model = wrapper.model
    wrapper.unsteer()
    for _ in range(2):
        loaded = SteeringWrapper.from_pretrained(folder, model)
        with loaded.finetune(None), loaded.finetune("negative"):
            pass
        assert torch.equal(loaded(IDS).logits, expected), "a finetune acts that was not saved"
        loaded.unsteer()
    loaded.load_adapter(tmp_path / "worn", "again")
    with loaded.finetune("positive"):
        worn = loaded(IDS).logits
    assert torch.equal(loaded(IDS).logits, worn), "what is loaded acts, also where all were switched off"


@pytest.mark.parametrize("file", ["vector-0.safetensors", "adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_recognized_by_its_hash(base, tmp_path, file, harm):
    folder = steered(tiny_lora(base)).save_pretrained(tmp_path / "steered")
    content = bytearray((folder / file).read_bytes())
    content[-2] ^= 1
    if harm == "remove":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if harm == "flip" else content[:-7])
    reason = "is not whole.*are missing" if harm == "remove" else "was damaged or changed"
    with pytest.raises(ValueError, match=f"{reason}: .*{file}"):
        SteeringWrapper.from_pretrained(folder)


def test_a_manifest_that_was_changed_or_cut_is_refused_and_a_card_may_be_edited(base, tmp_path):
    folder = steered(base).save_pretrained(tmp_path / "steered")
    (folder / "README.md").write_text("my own words")
    SteeringWrapper.from_pretrained(folder)
    text = (folder / "steering.json").read_text()
    assert "-1.5" in text
    (folder / "steering.json").write_text(text.replace("-1.5", "-2.5"))
    with pytest.raises(ValueError, match="was changed after it was written"):
        SteeringWrapper.from_pretrained(folder)
    (folder / "steering.json").write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "seal"}))
    with pytest.raises(ValueError, match="was changed after it was written"):
        SteeringWrapper.from_pretrained(folder)
    (folder / "steering.json").write_text(text[:-40])
    with pytest.raises(ValueError, match=r"steering.json is damaged"):
        SteeringWrapper.from_pretrained(folder)


def test_a_manifest_cannot_reach_out_of_its_folder(base, tmp_path):
    from caa.steering.checkpoint.manifest import _digest

    folder = steered(base).save_pretrained(tmp_path / "steered")
    manifest = json.loads((folder / "steering.json").read_text())
    manifest["files"]["../base/config.json"] = "0" * 64
    manifest["seal"] = _digest({key: value for key, value in manifest.items() if key != "seal"})
    (folder / "steering.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"lie outside of it: ../base/config.json"):
        SteeringWrapper.from_pretrained(folder)


def rewritten(folder, change):
    """The folder with another manifest, sealed again, as somebody who means harm would do it."""
    manifest = json.loads((folder / "steering.json").read_text())
    change(manifest)
    (folder / "steering.json").unlink()
    seal(folder, {key: value for key, value in manifest.items() if key not in ("files", "seal")}, "steering.json")
    return folder


@pytest.mark.parametrize(("way", "old"), [*product(["path", "absolute", "link"], [False, True]), ("folder", False)])
def test_a_record_cannot_name_what_lies_outside(base, tmp_path, way, old):
    folder = steered(tiny_lora(base)).save_pretrained(tmp_path / "steered")
    outside = tmp_path / "outside.safetensors"
    if way != "folder":
        (folder / "vector-0.safetensors").rename(outside)
    names = {"path": "../outside.safetensors", "absolute": str(outside), "link": "vector-0.safetensors"}

    def change(manifest):
        if way == "folder":
            manifest["adapters"][0]["folder"] = "../steered"
        else:
            manifest["interventions"][0]["vector"] = names[way]

    if way == "link":
        (folder / "vector-0.safetensors").symlink_to(outside)
    rewritten(folder, change)
    if old:
        made_old(folder)
    with pytest.raises(ValueError, match="outside of it"):
        SteeringWrapper.from_pretrained(folder, tiny_model())


def test_links_into_the_hubs_own_cache_are_followed(base, tmp_path):
    """huggingface_hub keeps files in `blobs`, and `snapshots/REVISION` links to them."""
    wrapper = steered(base)
    snapshot = tmp_path / "models--you--steered" / "snapshots" / "0123"
    folder = wrapper.save_pretrained(snapshot)
    (snapshot.parents[1] / "blobs").mkdir()
    for path in list(folder.iterdir()):
        path.rename(snapshot.parents[1] / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    assert torch.equal(SteeringWrapper.from_pretrained(folder)(IDS).logits, wrapper(IDS).logits)
    elsewhere = snapshot.parent.rename(snapshot.parents[1] / "tuned")
    with pytest.raises(ValueError, match="outside of it"):
        SteeringWrapper.from_pretrained(elsewhere / snapshot.name)


def made_old(folder):
    """The manifest in the words of the first version: one LoRA by name, no hashes, the base in two fields."""
    new = json.loads((folder / "steering.json").read_text())
    old = {
        "format": "caa.steered.v1",
        "base": new["base"]["name"],
        "base_fingerprint": new["base"]["fingerprint"],
        "adapter": "sft",
        "interventions": new["interventions"],
    }
    (folder / "steering.json").write_text(json.dumps(old, indent=2))


def test_the_first_format_still_loads(base, tmp_path):
    wrapper = steered(tiny_lora(base))
    folder = wrapper.save_pretrained(tmp_path / "steered")
    made_old(folder)
    loaded = SteeringWrapper.from_pretrained(folder)
    assert loaded.adapters == ["sft"]
    assert torch.equal(loaded(IDS).logits, wrapper(IDS).logits)


def test_a_wrong_base_is_refused_with_what_differs(base, tmp_path):
    folder = steered(base).save_pretrained(tmp_path / "steered")
    config = type(base.config)(**base.config.to_dict() | {"hidden_size": 16, "head_dim": 4, "num_hidden_layers": 2})
    with pytest.raises(ValueError, match="width 16, not 32, layers 2, not 4"):
        SteeringWrapper.from_pretrained(folder, type(base)(config))
    with pytest.raises(ValueError, match="family qwen2, not llama"):
        SteeringWrapper.from_pretrained(folder, tiny_model("Qwen2"))


def test_a_wrong_tokenizer_is_refused(base, tmp_path):
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    wrapper = steered(base)
    folder = wrapper.save_pretrained(tmp_path / "steered", tokenizer)
    wrapper.unsteer()
    SteeringWrapper.from_pretrained(folder, base, tokenizer).unsteer()
    other = tiny_tokenizer()
    other.chat_template += " "
    with pytest.raises(ValueError, match="another tokenizer or chat template"):
        SteeringWrapper.from_pretrained(folder, base, other)
    with pytest.raises(ValueError, match="another tokenizer or chat template"):
        SteeringWrapper.from_pretrained(folder, tokenizer=other)
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="another tokenizer or chat template"):
        SteeringWrapper.from_pretrained(folder)
    SteeringWrapper.from_pretrained(folder, tokenizer=tokenizer)


def test_an_adapter_of_the_embedded_model_holds_its_name_and_no_path(tmp_path):
    model, _ = load_model("tiny-chat")
    folder = SteeringWrapper(tiny_lora(model)).save_pretrained(tmp_path / "steered")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-chat"
    for name, content in _files(folder).items():
        assert b"checkpoints/" not in content, f"{name} holds a path of this machine"


def test_what_a_finetune_was_taught_travels_with_it(base, tmp_path):
    tiny_lora(tiny_model()).save_pretrained(tmp_path / "adapter")
    record = {"base": "base", "base_fingerprint": fingerprint(base), "behavior": "patience", "data_hash": "0123abcd"}
    (tmp_path / "adapter" / "sft" / "caa.json").write_text(json.dumps(record))
    wrapper = SteeringWrapper(base)
    wrapper.load_adapter(tmp_path / "adapter" / "sft", "sft")
    folder = SteeringWrapper(wrapper.model).save_pretrained(tmp_path / "steered")
    assert json.loads((folder / "steering.json").read_text())["adapters"][0]["record"] == record
    loaded = SteeringWrapper.from_pretrained(folder)
    again = loaded.save_pretrained(tmp_path / "again")
    assert json.loads((again / "caa.json").read_text()) == record
    assert "0123abcd" in (again / "README.md").read_text()


def test_the_card_shows_what_was_done_and_measured_and_no_markup_of_a_name(base, tmp_path):
    vector = SteeringVector({1: torch.ones(32)}, Provenance(behavior="a|b `x` <script>\n# c", n_pairs=5))
    wrapper = SteeringWrapper(base, Intervention(vector, 1, -1.5))
    card = (wrapper.save_pretrained(tmp_path / "s", results="| measured |") / "README.md").read_text()
    assert "| `a/b 'x' <script> # c` | 1 | -1.5 | 5.66 | `add` | `after_prompt` |" in card
    assert "| measured |" in card
    assert card.startswith('---\nlibrary_name: "caa"\n')
    assert "| finetune |" not in card, "there is none"
    assert "base_model:" not in card, "a folder on this machine is no name on the Hub"
    assert "Nothing was measured" in (wrapper.save_pretrained(tmp_path / "s") / "README.md").read_text()
    manifest = json.loads((tmp_path / "s" / "steering.json").read_text())
    for name, is_on_the_hub in (("you/model", True), ("tiny-chat", False)):
        card = steered_card({**manifest, "base": {**manifest["base"], "name": name}}, [vector])
        assert (f'base_model: "{name}"' in card) is is_on_the_hub


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_save_stopped_while_folders_change_places_leaves_the_old_one(base, tmp_path, monkeypatch, moment):
    """The step from the old folder to the new one is two moves; stopped at either, the old one stands whole."""
    import os

    folder = steered(base).save_pretrained(tmp_path / "steered")
    before, moves = _files(folder), []

    def stopped(source, target, move=os.replace):
        moves.append(target)
        if str(source).endswith("steered" if moment == "before" else "new"):
            raise KeyboardInterrupt
        move(source, target)

    wrapper = SteeringWrapper(base, Intervention(some_vector(), 1, 2.0))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("caa.files._exchange", lambda *folders: False)  # a system without such a step
        patched.setattr("caa.files.os.replace", stopped)
        wrapper.save_pretrained(folder)
    assert moves
    assert _files(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "steered"]


class Hub:
    """What huggingface_hub does, on a folder of this machine."""

    def __init__(self, root):
        self.root, self.token = root, None

    def __call__(self, token):
        self.token = token
        return self

    def create_repo(self, name, private, exist_ok):
        from types import SimpleNamespace

        (self.root / name).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, repo_id, folder_path, delete_patterns, commit_message):
        import fnmatch
        import shutil
        from types import SimpleNamespace

        for name in _files(self.root / repo_id):
            if any(fnmatch.fnmatch(name, pattern) for pattern in delete_patterns):
                (self.root / repo_id / name).unlink()
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def download(self, name, revision, allow_patterns):
        from huggingface_hub.errors import LocalEntryNotFoundError

        if not (self.root / name).exists():
            raise LocalEntryNotFoundError("no such repository")
        return str(self.root / name)


def test_to_the_hub_and_back(base, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.download)
    wrapper = two_finetunes(base)
    wrapper.push_to_hub("you/steered", finetunes=["positive", "negative"], token="secret")
    assert hub.token == "secret"
    address = wrapper.push_to_hub("you/steered", results="| measured |")
    assert address == "https://huggingface.co/you/steered/commit/1"
    there = _files(tmp_path / "hub" / "you" / "steered")
    assert not [name for name in there if "negative" in name], "the finetune of the older version was left behind"
    assert 'from_pretrained("you/steered")' in there["README.md"].decode()
    assert not any(b"secret" in content for content in there.values())
    monkeypatch.chdir(tmp_path)
    loaded = SteeringWrapper.from_pretrained("you/steered")
    assert torch.equal(loaded(IDS).logits, wrapper(IDS).logits)
    with pytest.raises(FileNotFoundError, match="neither a path here nor on the Hub"):
        SteeringWrapper.from_pretrained("you/another")
