"""Tiny Llamas as llama.cpp's converter would write them: GGUF files with byte-level vocabulary and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tiny import CHAT
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
MERGES = ["1 2", "t h", "th e", "\u0120 t", "3 4"]
"""Of two digits too, so that a tokenizer that does not take digit by digit shows."""


def vocabulary() -> list[str]:
    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def tiny_llama(**options: Any) -> Any:
    """As `tiny.tiny_model`, with the vocabulary of these files."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **options},
    )
    return transformers.LlamaForCausalLM(config).eval()


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Llama's query and key rows in the order of llama.cpp's rotary embedding (convert_hf_to_gguf.py, permute)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_model(
    model: Any,
    path: Path,
    splitting: str = "smollm",
    kind: str = "F32",
    biases: bool = False,
    bos: bool = False,
    without: str = "",
) -> Path:
    """`kind` is how matrices are stored; `biases` adds one that the Llamas of transformers have no place for.

    The tensor `without` is left out.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny llama")
    writer.add_license("mit")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_tokenizer(writer, splitting, bos)
    _write_tensors(writer, model, kind, without)
    if biases:
        writer.add_tensor("blk.0.ffn_down.bias", np.ones(config.hidden_size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: Any, splitting: str, bos: bool) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(bos)
    writer.add_chat_template(CHAT)


def _write_tensors(writer: Any, model: Any, kind: str, without: str) -> None:
    config, stored = model.config, gguf.GGMLQuantizationType[kind]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float().numpy()
        for ending, count in heads.items():
            weight = rotated(weight, count) if name.endswith(ending) else weight
        matrix, theirs = weight.ndim > 1, names.get_name(name, try_suffixes=(".weight",))
        if theirs == without:
            continue
        writer.add_tensor(
            theirs,
            gguf.quantize(weight, stored) if matrix else weight,
            raw_dtype=stored if matrix else None,
        )


def write_unquantized(path: Path, out: Path) -> Path:
    """The same file with every number as F32: what llama.cpp multiplies exactly, and other fields as they are."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
