"""Layer numbers of other tools' files against their own steering, where the tools are installed (docs/formats.md).

They are no dependency of this project. Install what is to be checked, without its own dependencies:
`pip install --no-deps rotalabs-steer==1.2.0 hidden-directions==0.1.6 repsteer==0.2.4 dialz==1.1.4
steering-vectors==0.12.2 repeng==0.4.0 saklas==5.3.0`.
"""

from __future__ import annotations

import sys
import types

import numpy
import pytest
import torch
from tiny import random_ids, tiny_model, tiny_tokenizer

from caa import Intervention, SteeringVector, SteeringWrapper, formats
from caa.steering.scopes import everywhere

IDS = random_ids(1, 9)
DIRECTIONS = {layer: torch.randn(32, generator=torch.Generator().manual_seed(layer)) for layer in (1, 2)}


@torch.no_grad()
def check(theirs: torch.Tensor, vector: SteeringVector, atol: float = 1e-5) -> None:
    """Their logits are those of the imported vector at its own layers, and not those of the plain model."""
    wrapper = SteeringWrapper(tiny_model())
    plain = wrapper(IDS).logits
    with wrapper.steer(*(Intervention(vector, layer, where=everywhere) for layer in vector.layers)):
        ours = wrapper(IDS).logits
    torch.testing.assert_close(theirs, ours, atol=atol, rtol=0)
    assert (ours - plain).abs().max() > 0.5


@torch.no_grad()
def test_rotalabs_steer(tmp_path):
    vectors = pytest.importorskip("rotalabs_steer.core.vectors", reason="rotalabs-steer is not installed")
    from rotalabs_steer.core.injection import ActivationInjector

    own = [vectors.SteeringVector("calm", layer, direction, "m") for layer, direction in DIRECTIONS.items()]
    vectors.SteeringVectorSet("calm", own).save(tmp_path / "set")
    model = tiny_model()
    with ActivationInjector(model, own, strength=1.0, injection_mode="all"):
        theirs = model(IDS).logits
    check(theirs, formats.import_vector(tmp_path / "set"))


@torch.no_grad()
def test_hidden_directions(tmp_path):
    bake = pytest.importorskip("hidden_directions.bake", reason="hidden-directions is not installed")
    from hidden_directions.load import patch_down_proj_bias

    rows = torch.zeros(4, 32)
    rows[2] = DIRECTIONS[2]
    bake.bake_advocate(tmp_path, "m", 2, v_pref=rows, alpha_pref=1.0, dtype=torch.float32)
    model = tiny_model()
    patch_down_proj_bias(model, 2, rows[2])
    torch.save(rows, tmp_path / "v.pt")
    check(model(IDS).logits, formats.import_vector(tmp_path / "advocate_bias.pt"))
    check(model(IDS).logits, formats.import_vector(tmp_path / "v.pt", blocks=4))


@torch.no_grad()
def test_repsteer(tmp_path):
    repsteer = pytest.importorskip("repsteer", reason="repsteer is not installed")
    from repsteer.artifacts.io import save_artifact

    about = repsteer.ArtifactMetadata(artifact_type="direction", site=repsteer.sites.resid_post(2), hidden_size=32)
    artifact = repsteer.DirectionArtifact(about, DIRECTIONS[2])
    save_artifact(artifact, tmp_path / "a")
    model = repsteer.models.hf.from_model(tiny_model(), tiny_tokenizer())
    control = repsteer.Intervention(
        artifact=artifact,
        operator=repsteer.operators.Add(),
        positions=repsteer.positions.AllTokens(),
        strength=repsteer.schedules.Constant(1.0),
    )
    with model.steer(control, compatibility="dimension"):
        theirs = model.forward(input_ids=IDS).logits
    check(theirs, formats.import_vector(tmp_path / "a"))


@torch.no_grad()
def test_dialz(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dotenv", types.SimpleNamespace(load_dotenv=lambda: None))
    vector = pytest.importorskip("dialz.vector", reason="dialz is not installed")
    tiny_model().save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    own = vector.SteeringVector("llama", {layer: direction.numpy() for layer, direction in DIRECTIONS.items()})
    own.export_gguf(tmp_path / "v.gguf")
    steered = vector.SteeringModel(str(tmp_path / "m"), [1, 2])
    steered.model.float()
    steered.set_control(vector.SteeringVector.import_gguf(tmp_path / "v.gguf"))
    # It loads the weights in float16.
    check(steered.model(IDS).logits, formats.import_vector(tmp_path / "v.gguf"), atol=0.02)


@torch.no_grad()
def test_steering_vectors(tmp_path):
    steering_vectors = pytest.importorskip("steering_vectors", reason="steering-vectors is not installed")
    own = steering_vectors.SteeringVector(DIRECTIONS, "decoder_block")
    torch.save(own, tmp_path / "v.pt")
    model = tiny_model()
    with own.apply(model):
        theirs = model(IDS).logits
    check(theirs, formats.import_vector(tmp_path / "v.pt"))


@torch.no_grad()
def test_repeng(tmp_path, monkeypatch):
    monkeypatch.setattr("numpy.float_", numpy.float64, raising=False)  # repeng is written for NumPy 1
    repeng = pytest.importorskip("repeng", reason="repeng is not installed")
    own = repeng.ControlVector("llama", {layer: direction.numpy() for layer, direction in DIRECTIONS.items()})
    own.export_gguf(tmp_path / "v.gguf")
    model = repeng.ControlModel(tiny_model(), [1, 2])
    model.set_control(repeng.ControlVector.import_gguf(tmp_path / "v.gguf"))
    check(model(IDS).logits, formats.import_vector(tmp_path / "v.gguf"))


@torch.no_grad()
def test_saklas(tmp_path):
    """Its files and its hooks; how much of a direction it adds is its own (shares of a budget), and not shown here."""
    gguf_io = pytest.importorskip("saklas.io.gguf_io", reason="saklas is not installed")
    from saklas.core.hooks import install_persistent_offset_hooks

    gguf_io.write_gguf_profile(DIRECTIONS, tmp_path / "v.gguf", model_hint="llama")
    model = tiny_model()
    offsets, _ = install_persistent_offset_hooks(model.model.layers, 32, torch.device("cpu"), torch.float32)
    for layer, direction in gguf_io.read_gguf_profile(tmp_path / "v.gguf")[0].items():
        offsets[layer].copy_(direction)
    check(model(IDS).logits, formats.import_vector(tmp_path / "v.gguf"))
