"""Tiny random models of every family, with lively weights: at the usual 0.02 they are so linear that bugs hide."""

from __future__ import annotations

import copy
import functools
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "data").exists(), reason="the reference data lies in ../shared")

_COMMON: dict[str, Any] = {
    "vocab_size": 104,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 8}
_SANDWICH = {**_HEADS, "query_pre_attn_scalar": 8, "sliding_window": 16}
_OWN = {
    "Llama": _GROUPED,
    "Qwen2": _GROUPED,
    "Qwen3": _HEADS,
    "Mistral": {**_GROUPED, "sliding_window": None},
    "Gemma2": _SANDWICH,
    "Gemma3Text": _SANDWICH,
    "Phi3": _GROUPED,
    "GPT2": {"n_positions": 256},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Olmo2": _GROUPED,
    "Mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Bloom": {"n_head": 4, "n_layer": 4},
}
FAMILIES = list(_OWN)
_RARE: dict[str, dict[str, Any]] = {
    "GPTNeo": {"attention_types": [[["global", "local"], 2]], "window_size": 8, "num_layers": 4, "num_heads": 4},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 256},
    "Mamba": {"state_size": 4},
    # Without kernels of its own, texts are padded to whole chunks: of 256 tokens if nothing else is said.
    "Mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Rwkv": {},
    "RecurrentGemma": {"lru_width": 32, "attention_window_size": 32},
}
RARE = list(_RARE)
"""Families in which something is as in no other: a state in place of a cache, pads that are read, biases by head."""


@functools.cache
def _pristine(family: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**_COMMON | (_OWN | _RARE)[family])
    architecture = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    return getattr(transformers, architecture)(config).eval()


def tiny_model(family: str = "Llama") -> Any:
    """A fresh copy of the family's tiny model: 4 blocks of width 32, 104 tokens, 256 positions."""
    return copy.deepcopy(_pristine(family))


def tiny_lora(model: Any, name: str = "sft", seed: int = 0) -> Any:
    """The model wearing a LoRA adapter that does something: B is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    targets = [n for n, m in model.named_modules() if "lm_head" not in n and type(m).__name__ in ("Linear", "Conv1D")]
    targets = [n for n in targets if "expert" not in n and n.rsplit(".", 1)[-1] != "gate"]
    config = LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config, adapter_name=name).eval()


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids, none of them special, [row, position]."""
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ '{' + message.content + '}' }}"
    "{% elif message.role == 'user' %}{{ '[' + message.content + ']' }}"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)


def tiny_tokenizer() -> Any:
    """One token for each printable character: 100 ids for the tiny models, with a chat template "[question] answer"."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    characters = [*sorted(string.printable[:95]), "\n"]
    vocab = {token: number for number, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT, padding_side="left", clean_up_tokenization_spaces=False, **names
    )
