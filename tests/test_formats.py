"""Vector files of other tools: what goes out comes back to the bit, what comes in is tensors and nothing else."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import types

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import SHARED, needs_shared

from caa import SteeringVector
from caa.vectors.formats import import_vector
from caa.vectors.formats.gguf import model_hint, read_gguf, write_gguf
from caa.vectors.vector import Provenance, set_mean_normalize


def some(layers=(1, 3), width=8) -> SteeringVector:
    generator = torch.Generator().manual_seed(0)
    drawn = {layer: torch.randn(width, generator=generator) for layer in layers}
    return SteeringVector(drawn, Provenance(model="m", behavior="patience", n_pairs=5, history=("unit norm",)))


def same(one: SteeringVector, other: SteeringVector) -> bool:
    bits = [(v.view(torch.int32), other.at(layer).view(torch.int32)) for layer, v in one.directions.items()]
    return one.layers == other.layers and all(torch.equal(*pair) for pair in bits)


def by_hand(path, architecture="controlvector", **tensors) -> None:
    """A GGUF file as repeng's export_gguf writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, numbers in tensors.items():
        writer.add_tensor(name.replace("_", "."), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_vector_to_gguf_to_vector_is_bit_for_bit(tmp_path):
    v = SteeringVector({0: torch.tensor([-0.0, 1e-45, 3.4e38]), 31: torch.rand(3), 7: torch.rand(3)}, some().source)
    loaded = read_gguf(write_gguf(v, tmp_path / "v.gguf", "llama"))
    assert same(v, loaded)
    assert loaded.source == v.source
    assert model_hint(tmp_path / "v.gguf") == "llama"
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]


def test_the_gguf_reader_alone_finds_what_llama_cpp_looks_for(tmp_path):
    """common_control_vector_load: every tensor is direction.N, N from 1 on, F32, of one dimension."""
    v = some()
    write_gguf(v, tmp_path / "v.gguf", "llama")
    np.save(tmp_path / "expected.npy", np.stack([v.at(1).numpy(), v.at(3).numpy()]))
    script = (
        "import sys, gguf, numpy; reader = gguf.GGUFReader(sys.argv[1]); expected = numpy.load(sys.argv[2])\n"
        "assert reader.get_field('general.architecture').contents() == 'controlvector'\n"
        "assert reader.get_field('controlvector.layer_count').contents() == 2\n"
        "assert [t.name for t in reader.tensors] == ['direction.1', 'direction.3']\n"
        "assert all(t.tensor_type.name == 'F32' and list(t.shape) == [8] for t in reader.tensors)\n"
        "assert (numpy.stack([t.data for t in reader.tensors]) == expected).all()\n"
        "assert 'caa' not in sys.modules and 'torch' not in sys.modules"
    )
    arguments = [str(tmp_path / "v.gguf"), str(tmp_path / "expected.npy")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_control_vector_of_repeng_is_imported(tmp_path, dtype):
    numbers = np.arange(4, dtype=dtype) / 3
    by_hand(tmp_path / "r.gguf", direction_2=numbers, direction_11=-numbers)
    v = import_vector(tmp_path / "r.gguf", behavior="calm", model="mistral-7b")
    assert v.layers == [2, 11]
    assert v.at(11).tolist() == (-numbers).astype("float32").tolist()
    assert (v.source.method, v.source.behavior, v.source.model) == ("imported", "calm", "mistral-7b")
    assert v.source.history[-1].startswith("imported from a GGUF control vector for 'mistral', sha256 ")


def test_gguf_files_that_steer_nothing_or_otherwise_are_refused(tmp_path):
    ones = np.ones(4, dtype=np.float32)
    by_hand(tmp_path / "model.gguf", "llama", direction_1=ones)
    by_hand(tmp_path / "empty.gguf", other=ones)
    by_hand(tmp_path / "below.gguf", **{"direction_-1": ones})
    by_hand(tmp_path / "whole.gguf", direction_1=np.ones(4, dtype=np.int32))
    for name, says in {
        "model": "it says it is 'llama'",
        "empty": "no tensor named direction.N",
        "below": "counts layer -1 from the end",
        "whole": "holds direction.1 as I32",
    }.items():
        with pytest.raises(ValueError, match=says):
            import_vector(tmp_path / f"{name}.gguf")
    with pytest.raises(ValueError, match="leave the layer out"):
        import_vector(write_gguf(some(), tmp_path / "v.gguf", ""), 3)


def test_a_layer_has_one_name_in_a_gguf_file(tmp_path):
    ones = np.ones(4, dtype=np.float32)
    by_hand(tmp_path / "v.gguf", direction_1=ones, direction_01=7 * ones)
    with pytest.raises(ValueError, match=r"has a tensor 'direction\.01'"):
        read_gguf(tmp_path / "v.gguf")


def damaged(whole: bytes, cut: range, flip: range):
    yield from (whole[:length] for length in cut)
    for place in flip:
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]


@pytest.mark.parametrize("ending", [".gguf", ".pt"])
def test_a_cut_or_changed_file_is_refused_or_still_says_the_same(tmp_path, ending):
    """Every length and one bit of every byte; a flip may hit what carries no number, such as a date."""
    v, path = some(), tmp_path / f"v{ending}"
    write_gguf(v, path, "llama") if ending == ".gguf" else torch.save(dict(v.directions), path)
    whole, refused, accepted = path.read_bytes(), 0, 0
    assert same(import_vector(path), v)
    for content in damaged(whole, range(0, len(whole), 3), range(len(whole))):
        path.write_bytes(content)
        try:
            found = import_vector(path)
        except ValueError:
            refused += 1
        else:
            accepted += 1
            assert len(content) == len(whole), "a file that was cut was accepted"
            assert same(found, v)
    assert refused > len(whole) / 2
    assert accepted, "nothing was accepted, so nothing was compared"


class Malice:
    """Unpickled by Python, it makes a file."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("how", ["torch", "torch before 1.6", "pickle"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_malicious_pickle_does_not_run(tmp_path, how, inside):
    marker, path = tmp_path / "ran", tmp_path / "v.pt"
    held = {1: torch.ones(4), 2: Malice(marker)} if inside else Malice(marker)
    if how == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"v\.pt.*(torch\.save|damaged)"):
        import_vector(path, 1)
    assert not marker.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "this pickle could not have done anything, so nothing was tested"


def test_what_is_more_than_tensors_says_what_to_do(tmp_path):
    torch.save(Malice(tmp_path / "ran"), tmp_path / "v.pt")
    advice = r"holds more than tensors .*; nothing in it was run.*save the tensors alone: torch\.save\(\{layer: tensor"
    with pytest.raises(ValueError, match=advice):
        import_vector(tmp_path / "v.pt", 1)


@pytest.fixture
def their_class(monkeypatch):
    """A class of the name and the fields of steering_vectors.SteeringVector, for torch.save to write down."""
    fields = [("layer_activations", dict), ("layer_type", str, "decoder_block")]
    theirs = dataclasses.make_dataclass("SteeringVector", fields)
    theirs.__module__ = "steering_vectors.steering_vector"
    module = types.ModuleType("steering_vectors.steering_vector")
    module.SteeringVector = theirs
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, "steering_vectors.steering_vector", module)
    return theirs


def test_an_object_of_steering_vectors_is_read_without_its_package(tmp_path, their_class, monkeypatch):
    v = some()
    torch.save(their_class(dict(v.directions)), tmp_path / "v.pt")
    torch.save(their_class(dict(v.directions), "self_attn"), tmp_path / "attention.pt")
    torch.save(their_class({1: Malice(tmp_path / "ran")}), tmp_path / "evil.pt")
    monkeypatch.delitem(sys.modules, "steering_vectors.steering_vector")
    found = import_vector(tmp_path / "v.pt")
    assert same(found, v)
    assert "steering-vectors object" in found.source.history[-1]
    with pytest.raises(ValueError, match="steers 'self_attn'; only vectors of the blocks' outputs"):
        import_vector(tmp_path / "attention.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        import_vector(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def entry(vector, **other):
    return {"steering_vector": vector, "steering_coefficient": 2.0, "action": "add", "bias": None} | other


def test_a_steering_file_of_lm_eval_is_imported_with_its_coefficients(tmp_path):
    ones = torch.ones(4)
    torch.save({"layers.3": entry(ones), "model.transformer.h.12": entry(-ones, head_index=None)}, tmp_path / "s.pt")
    v = import_vector(tmp_path / "s.pt")
    assert (v.at(3).tolist(), v.at(12).tolist()) == ([2.0] * 4, [-2.0] * 4)
    for hookpoint, changed in {
        "layers.3": {"head_index": 1},
        "layers.4": {"action": "clamp"},
        "layers.5.mlp": {},
        "layers.6": {"bias": ones},
    }.items():
        torch.save({hookpoint: entry(ones, **changed)}, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=f"does more at '{hookpoint}' than to add a vector to a block's output"):
            import_vector(tmp_path / "bad.pt")


def test_a_bare_tensor_needs_a_layer_and_one_direction(tmp_path):
    direction = torch.tensor([1.0, 2.0, 3.0])
    path = tmp_path / "v.pt"
    for shaped in (direction, direction.double()[None], direction.bfloat16()[None, None]):
        torch.save(shaped, path)
        assert import_vector(path, 13).at(13).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"does not say its layer: give it.*--layer 13"):
        import_vector(path)
    with pytest.raises(ValueError, match="no layer -1"):
        import_vector(path, -1)
    for bad, says in {
        "several": (torch.ones(2, 3), "2 rows of 3 numbers and does not say how they are counted"),
        "empty": (torch.ones(0, 3), r"of shape \[0, 3\]; save one of shape \[d_model\] per layer"),
        "whole numbers": (torch.ones(3, dtype=torch.long), "torch.int64"),
        "sparse": (torch.ones(3).to_sparse(), "sparse"),
        "not finite": (torch.tensor([1.0, float("nan")]), "finite"),
        "a list": ([1.0, 2.0], "a list"),
        "words": ({"a": torch.ones(3)}, "a dict with the keys 'a'"),
        "larger than its file": (torch.ones(1).expand(10**12), "larger than the numbers that it brings"),
    }.values():
        torch.save(bad, path)
        with pytest.raises(ValueError, match=says):
            import_vector(path, 1)
    save_file({"anything": direction}, tmp_path / "v.safetensors")
    assert import_vector(tmp_path / "v.safetensors", 2).at(2).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="for a layer that you give"):
        import_vector(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="steering vector of caa already"):
        import_vector(some().save(tmp_path / "ours.safetensors"))
    with pytest.raises(FileNotFoundError, match="no file at"):
        import_vector(tmp_path / "none")


def test_a_write_never_replaces_and_never_leaves_half(tmp_path, monkeypatch):
    path = write_gguf(some(), tmp_path / "v.gguf", "llama")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        write_gguf(some((2,)), path, "llama")
    assert path.read_bytes() == before

    def dies(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", dies)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(some(), tmp_path / "new.gguf", "llama")
    assert list(tmp_path.iterdir()) == [path]


@needs_shared
def test_the_published_caa_vectors_are_imported_and_their_normalization_reproduced():
    raw, published = SHARED / "data" / "caa" / "vectors", SHARED / "data" / "caa" / "normalized_vectors"
    for layer in (10, 13, 16):
        name = f"vec_layer_{layer}_Llama-2-7b-chat-hf.pt"
        read = {folder.name: import_vector(folder / name, layer, behavior=folder.name) for folder in raw.iterdir()}
        assert len(read) == 7
        for behavior, vector in read.items():
            assert torch.equal(vector.at(layer), torch.load(raw / behavior / name, weights_only=True))
            assert vector.source.history[0].startswith("imported from a bare tensor, sha256 ")
        for behavior, vector in set_mean_normalize(read).items():
            expected = import_vector(published / behavior / name, layer).at(layer)
            torch.testing.assert_close(vector.at(layer), expected, atol=1e-5, rtol=0)
