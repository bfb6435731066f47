"""The Hub, on a server of this machine that speaks its interface: what went up comes down by its name."""

from __future__ import annotations

import pytest
import torch
from hub_server import TOKEN, hub_server
from tiny import random_ids, tiny_lora, tiny_model

from caa import Intervention, SteeringVector, SteeringWrapper
from caa.cli import main
from caa.hub import upload
from caa.preflight import adapter_problems
from caa.vectors.vector import Provenance

IDS = random_ids(2, 7)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Somebody who is logged in, on whose machine the names of the Hub are those of this server."""
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


def vector(size: float = 1.0) -> SteeringVector:
    return SteeringVector({1: size * torch.arange(32.0), 2: torch.ones(32)}, Provenance(behavior="patience"))


def wearing(folder) -> SteeringWrapper:
    """A steered model that wears a LoRA, which lies in `folder` too."""
    model = tiny_lora(tiny_model(), folder.name)
    model.save_pretrained(folder.parent)  # PEFT makes a folder of the name
    return SteeringWrapper(model, Intervention(vector(), 1, 0.1))


def error_of(words, capsys) -> str:
    assert main(list(map(str, words))) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_vector_goes_up_and_comes_down_by_name_and_by_revision(hub, tmp_path, capsys, caplog):
    file = vector().save(tmp_path / "waiting.safetensors")
    assert main(["push", str(file), "you/waiting"]) == 0
    repository = hub.repositories["you/waiting"]
    address = capsys.readouterr().out
    assert f"{hub.url}/you/waiting/commit/{repository.revisions['main']}" in address
    assert repository.files["vector.safetensors"] == file.read_bytes()
    assert set(repository.files) == {"vector.safetensors", "README.md"}
    assert not repository.private
    repository.revisions["v1.0"] = repository.revisions["main"]
    changed = vector(2.0).save(tmp_path / "changed.safetensors")
    assert "--update" in error_of(["push", changed, "you/waiting"], capsys)
    assert repository.files["vector.safetensors"] == file.read_bytes(), "overwritten without being told to"
    assert main(["push", str(changed), "you/waiting", "--update", "true"]) == 0
    for name, size in (("you/waiting", 2.0), ("you/waiting@v1.0", 1.0)):
        loaded = SteeringVector.load(name)
        assert torch.equal(loaded.at(1), vector(size).at(1))
        assert loaded.source.behavior == "patience"
    (tmp_path / "you").mkdir()
    vector(3.0).save(tmp_path / "you" / "waiting")
    assert torch.equal(SteeringVector.load("you/waiting").at(1), vector(3.0).at(1)), "a path that is here wins"
    assert TOKEN not in address + capsys.readouterr().out + caplog.text
    assert not any(TOKEN.encode() in data for data in repository.files.values())


def test_adapters_and_steered_adapters_are_found_by_name(hub, tmp_path, capsys):
    wrapper = wearing(tmp_path / "finetune")
    folder = wrapper.save_pretrained(tmp_path / "steered")
    (folder / ".env").write_text("secret")
    (tmp_path / "finetune" / "notes.json").write_text("secret")
    assert main(["push", str(folder), "you/steered", "--private", "true"]) == 0
    assert main(["push", str(tmp_path / "finetune"), "finetune"]) == 0, "a name of one's own"
    assert hub.repositories["you/steered"].private
    assert not any(b"secret" in data for kept in hub.repositories.values() for data in kept.files.values())
    loaded = SteeringWrapper.from_pretrained("you/steered@main", tiny_model())
    assert torch.equal(loaded(IDS).logits, wrapper(IDS).logits)
    plain, other = SteeringWrapper(tiny_model()), SteeringWrapper(tiny_model())
    plain.load_finetune("you/finetune@main", "theirs")
    other.load_adapter(tmp_path / "finetune", "theirs")
    assert plain.adapters == ["theirs"]
    assert torch.equal(plain(IDS).logits, other(IDS).logits)
    capsys.readouterr()
    for name, kind in (("you/steered", "steered adapter"), ("you/finetune", "PEFT adapter")):
        assert main(["inspect", name]) == 0
        assert f"{name}: {kind}" in capsys.readouterr().out


def test_a_checkpoint_of_another_base_on_the_hub_is_known_before_its_weights_come_down(hub, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "caa.json").write_text('{"base": "theirs", "base_fingerprint": "0123456789abcdef"}')
    upload(tmp_path / "full", "you/full")
    for name in ("you/full", "you/full@main", tmp_path / "full"):
        with pytest.raises(ValueError, match=r"was trained on 'theirs'.*load that base"):
            SteeringWrapper(tiny_model()).load_finetune(name, "full")


def test_only_safetensors_and_json_come_down(hub, tmp_path):
    wearing(tmp_path / "finetune")
    main(["push", str(tmp_path / "finetune"), "you/finetune"])
    repository = hub.repositories["you/finetune"]
    files = dict(repository.files)
    repository.commit({"adapter_model.bin": files.pop("adapter_model.safetensors"), **files})
    with pytest.raises(ValueError, match="no weights of an adapter"):
        SteeringWrapper(tiny_model()).load_adapter("you/finetune", "theirs")
    assert not [path for _, path, _ in hub.requests if path.endswith(".bin")]


def test_what_has_no_such_name_says_what_was_tried(hub, tmp_path, capsys, monkeypatch):
    file = vector().save(tmp_path / "waiting.safetensors")
    main(["push", str(file), "you/waiting"])
    capsys.readouterr()
    nowhere = "no steering vector: neither a path here nor on the Hub"
    for name, reason in (("you/nothing", "no such repository"), ("you/waiting@v9", "no revision 'v9'")):
        with pytest.raises(FileNotFoundError, match=f"{name} is {nowhere} .*{reason}"):
            SteeringVector.load(name)
    (problem,) = adapter_problems({"theirs": "you/waiting"}, "tiny-chat")
    assert "you/waiting is no adapter" in problem
    assert "holds no adapter_config.json" in problem
    capsys.readouterr()  # the library's own warning that no file matched
    before = len(hub.requests)
    for path in ("runs/waiting.safetensors", "./you/waiting", "waiting"):
        with pytest.raises(FileNotFoundError, match="there is no steering vector at"):
            SteeringVector.load(path)
    assert len(hub.requests) == before, "the Hub is not asked for what can only be a path"
    assert "neither a vector's file nor" in error_of(["push", tmp_path, "you/more"], capsys)
    assert "public repository" in error_of(
        ["push", file, "you/waiting", "--private", "true", "--update", "true"], capsys
    )
    monkeypatch.setenv("HF_TOKEN", "hf_another_token")
    line = error_of(["push", file, "you/more"], capsys)
    assert "hf auth login" in line
    assert "hf_another_token" not in line


def test_offline_the_cache_serves_and_the_rest_is_one_line(hub, tmp_path, capsys, monkeypatch):
    file = vector().save(tmp_path / "waiting.safetensors")
    main(["push", str(file), "you/waiting"])
    SteeringVector.load("you/waiting")
    capsys.readouterr()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(SteeringVector.load("you/waiting").at(1), vector().at(1))
    for words in (["push", file, "you/more"], ["inspect", "you/nothing"]):
        assert "HF_HUB_OFFLINE" in error_of(words, capsys)
