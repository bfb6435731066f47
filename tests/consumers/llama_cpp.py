"""llama.cpp by ctypes: the library inside the wheel of xllamacpp, which does not offer control vectors in Python.

Its loader of control vectors is C++: the few structs that it takes are laid out by hand (GNU ABI).
"""

import ctypes as c
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file


class Parameters(c.Structure):
    """Any struct of parameters, by value: larger than 16 bytes, so it goes over memory, whatever is in it."""

    _fields_ = [("bytes", c.c_uint8 * 512)]


class Batch(c.Structure):
    _fields_ = [("n", c.c_int32), *((name, c.c_void_p) for name in ("token", "embd", "pos", "n_seq", "seq", "logits"))]


class LoadInfo(c.Structure):
    """A manylinux2014 wheel has the older std::string, which is one pointer to its characters."""

    _fields_ = [("strength", c.c_float), ("name", c.c_char_p)]


class Vector(c.Structure):
    _fields_ = [("begin", c.c_void_p), ("end", c.c_void_p), ("room", c.c_void_p)]


class ControlVector(c.Structure):
    _fields_ = [("n_embd", c.c_int), ("data", Vector)]


library = c.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so")))


def function(name: str, result: object, *arguments: object):
    symbol = getattr(library, name)
    symbol.restype, symbol.argtypes = result, arguments
    return symbol


def load_control_vector(path: str, width: int) -> np.ndarray:
    """common_control_vector_load({{1.0, path}}): float32 [layer - 1, d_model]."""
    info = LoadInfo(1.0, path.encode())
    begin = c.addressof(info)
    infos, vector = Vector(begin, begin + c.sizeof(info), begin + c.sizeof(info)), ControlVector()
    load = function(
        "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE",
        c.c_void_p,
        c.c_void_p,
        c.c_void_p,
    )
    load(c.addressof(vector), c.addressof(infos))
    assert vector.n_embd == width, f"llama.cpp refused the control vector: {vector.n_embd}"
    size = (vector.data.end - vector.data.begin) // 4
    return np.ctypeslib.as_array((c.c_float * size).from_address(vector.data.begin)).copy()


class Model:
    """A GGUF file as llama.cpp reads it, with keys, values and attention weights in F32."""

    def __init__(self, path: str, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        function("llama_backend_init", None)()
        defaults = function("llama_model_default_params", Parameters)()
        load = function("llama_model_load_from_file", c.c_void_p, c.c_char_p, Parameters)
        self.model = load(path.encode(), defaults)
        assert self.model, "llama.cpp did not load the model"
        settings = function("llama_context_default_params", Parameters)()
        # Its defaults round keys, values and attention weights to F16; flash_attn_type, type_k and type_v say not to.
        flash, keys, values = (c.c_int32.from_address(c.addressof(settings) + place) for place in (52, 104, 108))
        assert (flash.value, keys.value, values.value) == (-1, 1, 1), "this llama.cpp has its settings elsewhere"
        flash.value = keys.value = values.value = 0
        self.context = function("llama_init_from_model", c.c_void_p, c.c_void_p, Parameters)(self.model, settings)

    def steer(self, pushes: np.ndarray, width: int, first: int, last: int) -> None:
        apply = function(
            "llama_set_adapter_cvec", c.c_int32, c.c_void_p, c.c_void_p, c.c_size_t, c.c_int32, c.c_int32, c.c_int32
        )
        assert apply(self.context, pushes.ctypes.data, len(pushes), width, first, last) == 0

    def tokens(self, text: str) -> list[int]:
        """As llama.cpp splits it, special tokens read as what they are and none added."""
        vocabulary = function("llama_model_get_vocab", c.c_void_p, c.c_void_p)(self.model)
        tokenize = function(
            "llama_tokenize", c.c_int32, c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool
        )
        encoded = text.encode()
        ids = (c.c_int32 * (len(encoded) + 8))()
        n = tokenize(vocabulary, encoded, len(encoded), c.addressof(ids), len(ids), False, True)
        assert n >= 0, text
        return list(ids[:n])

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [position, vocabulary], of a text on its own."""
        memory = function("llama_get_memory", c.c_void_p, c.c_void_p)(self.context)
        function("llama_memory_clear", None, c.c_void_p, c.c_bool)(memory, True)
        batch = function("llama_batch_init", Batch, c.c_int32, c.c_int32, c.c_int32)(len(ids), 0, 1)
        batch.n = len(ids)
        for place, token in enumerate(ids):
            c.cast(batch.token, c.POINTER(c.c_int32))[place] = token
            c.cast(batch.pos, c.POINTER(c.c_int32))[place] = place
            c.cast(batch.n_seq, c.POINTER(c.c_int32))[place] = 1
            c.cast(batch.seq, c.POINTER(c.POINTER(c.c_int32)))[place][0] = 0
            c.cast(batch.logits, c.POINTER(c.c_int8))[place] = 1
        assert function("llama_decode", c.c_int32, c.c_void_p, Batch)(self.context, batch) == 0
        read = function("llama_get_logits", c.POINTER(c.c_float), c.c_void_p)(self.context)
        return np.ctypeslib.as_array(read, (len(ids), self.vocab_size)).copy()


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Llama's query and key rows in the order of llama.cpp's rotary embedding (convert_hf_to_gguf.py, permute)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_llama(folder: Path, path: Path) -> dict[str, Any]:
    """A Llama's checkpoint in F32, biases in its MLPs too, as a GGUF file; its config."""
    config = json.loads((folder / "config.json").read_text())
    writer, heads, kv = gguf.GGUFWriter(path, "llama"), config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for file in sorted(folder.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            assert weight.dtype == np.float32, "equal numbers are promised in F32 alone"
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = rotated(weight, heads if "q_proj" in name else kv)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config
