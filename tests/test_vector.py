"""SteeringVector: algebra, history, and a file that survives everything but a lie."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tiny import SHARED, needs_shared

from caa import SteeringVector
from caa.vectors.activations import PairActivations
from caa.vectors.vector import Provenance, random_like, set_mean_normalize


def some(seed: int = 0, layers=(1, 3)) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    drawn = {layer: torch.randn(8, generator=generator) for layer in layers}
    return SteeringVector(drawn, Provenance(behavior=f"b{seed}", n_pairs=3))


def test_algebra_is_that_of_its_directions_and_is_remembered():
    v, w = some(0), some(1)
    mixed = (2 * v - w / 4 + -v).unit()
    expected = 2 * v.at(3) - w.at(3) / 4 - v.at(3)
    torch.testing.assert_close(mixed.at(3), expected / expected.norm())
    assert mixed.source.history == ("times 2", "minus b1", "plus b0", "unit norm")
    assert v.source.history == ()


@pytest.mark.parametrize("made", [some, lambda: PairActivations({1: torch.ones(2, 8)}, {1: torch.zeros(2, 8)})])
def test_vectors_and_activations_are_compared_as_objects_so_they_can_be_keys(made):
    one, other = made(), made()
    assert len({one, other, one}) == 2


def test_only_vectors_of_one_shape_add():
    with pytest.raises(ValueError, match=r"layers \[1, 3\] of width 8, the other \[1\] of width 8"):
        some() + some(layers=(1,))
    with pytest.raises(ValueError, match=r"of width 8, the other \[1, 3\] of width 2"):
        some() + SteeringVector({1: torch.ones(2), 3: torch.ones(2)})


@pytest.mark.parametrize("bad", [torch.ones(2, 2), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])])
def test_a_direction_is_one_row_of_finite_numbers(bad):
    with pytest.raises(ValueError, match="real, finite numbers of shape"):
        SteeringVector({0: bad})


def test_all_layers_have_one_width_and_there_is_at_least_one():
    with pytest.raises(ValueError, match="one width"):
        SteeringVector({0: torch.ones(2), 1: torch.ones(3)})
    with pytest.raises(ValueError, match="at least one layer"):
        SteeringVector({})


def test_a_missing_layer_says_which_there_are():
    with pytest.raises(KeyError, match=r"no direction for layer 2: this 'b0' vector holds layers \[1, 3\]"):
        some().at(2)


def test_saved_and_loaded_to_the_bit(tmp_path):
    v = (some() * 0.1).unit()
    loaded = SteeringVector.load(v.save(tmp_path / "deep" / "v.safetensors"))
    assert loaded.source == v.source
    assert all(torch.equal(loaded.at(layer), v.at(layer)) for layer in v.layers)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["v.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = some(0).save(tmp_path / "v.safetensors")
    before = path.read_bytes()

    def dies(tensors, where, metadata):
        where.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("caa.vectors.vector.save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        some(1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_and_damaged_files_are_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"not a caa.vector.v1 file; it says its format is None"):
        SteeringVector.load(tmp_path / "other.safetensors")
    path = some().save(tmp_path / "v.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged"):
        SteeringVector.load(path)
    with pytest.raises(FileNotFoundError, match="caa extract"):
        SteeringVector.load(tmp_path / "none.safetensors")


def written(path, name="layer.0", **metadata):
    save_file({name: torch.ones(2)}, path, metadata={"format": "caa.vector.v1", "source": "{}", **metadata})
    return path


def test_a_file_by_hand_is_read(tmp_path):
    assert SteeringVector.load(written(tmp_path / "v.safetensors", "layer.10")).layers == [10]


@pytest.mark.parametrize("source", ["", "not json", "[]", "3", "null", '{"of_a_later_version": 1}', '{"history": 5}'])
def test_a_provenance_that_cannot_be_read_is_a_damaged_file(tmp_path, source):
    with pytest.raises(ValueError, match=r"v\.safetensors is a damaged steering vector: its provenance cannot be read"):
        SteeringVector.load(written(tmp_path / "v.safetensors", source=source))


def test_a_file_without_a_provenance_is_damaged(tmp_path):
    save_file({"layer.0": torch.ones(2)}, tmp_path / "v.safetensors", metadata={"format": "caa.vector.v1"})
    with pytest.raises(ValueError, match="damaged steering vector: its provenance"):
        SteeringVector.load(tmp_path / "v.safetensors")


@pytest.mark.parametrize("name", ["layer.x", "layer.-1", "layer.01", "0", "layer.", "layer.1.0"])
def test_a_tensor_of_no_layer_is_a_damaged_file(tmp_path, name):
    with pytest.raises(ValueError, match=r"v\.safetensors is a damaged steering vector: it has a tensor"):
        SteeringVector.load(written(tmp_path / "v.safetensors", name))


def test_a_direction_of_norm_0_cannot_be_rescaled():
    v, w = some(0), some(1)
    zero = SteeringVector({1: v.at(1), 3: torch.zeros(8)})
    with pytest.raises(
        ValueError, match="norm 0 cannot be rescaled, and these are: nothing at layer 3; leave them out"
    ):
        set_mean_normalize({"v": v, "nothing": zero, "w": w})


def test_a_random_control_has_the_norms_but_not_the_direction():
    v = SteeringVector({layer: torch.randn(512, generator=torch.Generator().manual_seed(layer)) for layer in (0, 1)})
    control = random_like(v, seed=1)
    assert control.norms() == pytest.approx(v.norms(), rel=1e-5)
    assert all(abs(cosine) < 0.2 for cosine in v.cosine(control).values())
    assert torch.equal(control.at(1), random_like(v, seed=1).at(1))
    assert not torch.equal(control.at(1), random_like(v, seed=2).at(1))
    assert not torch.equal(control.at(0), control.at(1))


@needs_shared
def test_set_mean_normalization_gives_the_published_normalized_vectors():
    raw, published = SHARED / "data" / "caa" / "vectors", SHARED / "data" / "caa" / "normalized_vectors"
    for layer in (10, 13, 16):
        name = f"vec_layer_{layer}_Llama-2-7b-chat-hf.pt"
        read = {
            folder.name: SteeringVector({layer: torch.load(folder / name, weights_only=True, map_location="cpu")})
            for folder in raw.iterdir()
        }
        for behavior, vector in set_mean_normalize(read).items():
            expected = torch.load(published / behavior / name, weights_only=True, map_location="cpu").float()
            torch.testing.assert_close(vector.at(layer), expected, atol=1e-5, rtol=1e-3)


def test_a_vector_keeps_its_numbers_whatever_becomes_of_those_it_was_made_of(tmp_path):
    direction = torch.ones(4)
    vector = SteeringVector({0: direction, 1: direction})
    direction.zero_()
    assert vector.at(0).tolist() == vector.at(1).tolist() == [1.0] * 4
    assert SteeringVector.load(vector.save(tmp_path / "v.safetensors")).layers == [0, 1]
