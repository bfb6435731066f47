"""A tiny random model of any type of transformers' causal mapping, or of images and texts, made by introspection."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from caa.models.loading import auto_class

LAYERS = 4
_SIZES: list[tuple[str, Any]] = [
    (r"vocab_size(_per_layer_input)?|unpadded_vocab_size|text_vocab_size", 104),
    (r"hidden_size|d_model|n_embd|dim|n_embed|embed_dim|emb_dim|word_embed_proj_dim|lru_width|embedding_size", 32),
    (r"attention_hidden_size|hidden_dim|emb_hidden_size|embed_size|attn_hidden_size|width", 32),
    (
        r"num_hidden_layers|n_layers?|num_layers|decoder_layers|num_decoder_layers|num_blocks|depth|num_layers_per_stack",
        LAYERS,
    ),
    (r"encoder_layers|num_encoder_layers", LAYERS),
    (r"rotary_dim|rotary_ndims", 8),
    (r"num_kv_shared_layers", 0),
    (r"num_attention_heads|n_heads?|num_heads|(de|en)coder_attention_heads|num_(de|en)coder_attention_heads", 4),
    (r"num_key_value_heads|n_head_kv|num_kv_heads|multi_query_group_num|attention_groups", 2),
    (r"head_dim|kv_channels|attention_head_dim|d_kv|attention_head_size|global_head_dim|dim_head|swa_head_dim", 8),
    (
        r"intermediate_size|ffn_dim|n_inner|(de|en)coder_ffn_dim|ffn_hidden_size|d_ff|dim_ff|mlp_dim|intermediate_size_mlp",
        48,
    ),
    (
        r"moe_intermediate_size|shared_expert_intermediate_size|expert_ffn_hidden_size|moe_shared_expert_intermediate_size",
        24,
    ),
    (r"shared_intermediate_size|ffn_hidden_dim|moe_latent_size|feed_forward_proj_size|expert_intermediate_size", 24),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts|num_routed_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|top_k_experts|moe_k|experts_per_token|num_experts_per_token", 2),
    (r"n_groups?|topk_groups?|num_expert_groups?|n_expert_groups|moe_n_group", 1),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|lora_rank|mlp_lora_rank|decay_lora_rank|swa_kv_lora_rank", 16),
    (r"qk_nope_head_dim|qk_rope_head_dim|v_head_dim|index_head_dim|kv_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"index_n_heads", 2),
    (r"index_topk", 64),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions|seq_length|max_context_len",
        256,
    ),
    (
        r"sliding_window(_size)?|attention_chunk_size|local_attention_size|attention_window_size|window_size|local_attention",
        64,
    ),
    (r"state_size|mamba_d_state|ssm_state_size|d_state", 4),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_head_dim", 8),
    (r"mamba_d_ssm|mamba_intermediate_size|mamba_expand_size", 64),
    (r"mamba_n_groups|mamba_ngroups", 2),
    (r"mamba_dt_rank|time_step_rank", 2),
    (r"mamba_expand|expand", 2),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads", 4),
    (r"linear_key_head_dim|linear_value_head_dim|linear_head_dim", 8),
    (r"hidden_size_per_layer_input|laurel_rank|altup_lauxel_rank", 8),
    (r"query_pre_attn_scalar", 8),
    (r"chunk_size|mamba_chunk_size", 16),
    (r"initializer_range|init_std|initializer_factor_|embed_init_std|init_method_std|emb_initializer_range", 0.2),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    (r"num_nextn_predict_layers|num_mtp_layers|mtp_num_hidden_layers|num_mtp_modules", 0),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"dropout|.*_dropout|.*_pdrop|layerdrop|.*_layerdrop|.*dropout_prob|.*_dropout_rate", 0.0),
    (r"mrope_section", [2, 1, 1]),
    (r"num_lm_layers|patch_size", None),
    (r"is_decoder", True),
    (r"add_cross_attention|use_cache_", False),
]
_TWO_KINDS = {"layer_types": ["mamba", "attention"] * 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DRAFTING = {
    "num_hidden_layers": LAYERS,
    "num_kv_shared_layers": LAYERS,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "layer_types": ["full_attention"] * LAYERS,
}
_MROPE = {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}}}
_DOTS3 = {"head_dim": 16}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 2,
}
_FIXED: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {
        "encoder_hash_byte_group_vocab": 104,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    "granitemoehybrid": _TWO_KINDS,
    "hrm_text": {"num_layers_per_stack": 2, "H_cycles": 1, "L_cycles": 1, "num_hidden_layers": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "xlnet": {"d_head": 8},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "gemma4_assistant": {"text_config": _DRAFTING},
    "gemma4_unified_assistant": {"text_config": _DRAFTING},
    "dots3_note_text": _DOTS3,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mistral3": {"tie_word_embeddings": False},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 256, "attn_config": {"attn_pdrop": 0}},
    "qwen2_5_vl": _MROPE,
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local"] * 4,
        "local_attn_chunk_length": 64,
        "feed_forward_size": 48,
        "attention_head_size": 8,
    },
    "xlm": {"causal": True, "is_encoder": True, "emb_dim": 32},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_headdim": 8,
        "kv_channels": 16,
        "num_query_groups": 4,
        "hybrid_layer_ids": [1, 3],
        "mamba_ngroups": 1,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
_NEEDED = {"gemma4_assistant": {"text_config": _DRAFTING}}
"""What a config of all defaults is refused without."""
_PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}
"""Where the mapping gives a type a class that takes a part of its config."""
_SKIPPED = {"patch_size", "num_lm_layers"}


IMAGE_TEXT = ["idefics3", "llava", "mistral3", "qwen2_5_vl", "qwen3_vl", "smolvlm"]
"""Some that read images too and that AutoModelForCausalLM does not know."""


def model_types() -> list[str]:
    """All that AutoModelForCausalLM knows, and some image-text models."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *IMAGE_TEXT})


def tiny_config(model_type: str, **fixed: Any) -> Any:
    """The type's own config with every size that has a known name made small."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    values = _shrunk(config_class(**_NEEDED.get(model_type, {})).to_dict())
    return config_class(**_merged(_merged(values, _FIXED.get(model_type, {})), fixed))


def _merged(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """The values with the others in their places, those of inner configs one by one."""
    inner = {name: value for name, value in others.items() if name.endswith("config") and name in values}
    both = {name: _merged(values[name], value) for name, value in inner.items() if isinstance(value, dict)}
    return values | others | both


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    depth = next(
        (values[name] for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if values.get(name)), 0
    )
    multi_latent = any(name in values for name in ("kv_lora_rank", "qk_rope_head_dim"))
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path"):
            continue
        if name == "per_layer_config":
            small[name] = {}
        elif isinstance(value, dict) and name.endswith("config") and value:
            small[name] = _shrunk(value)
        elif isinstance(value, dict) and "mrope_section" in value:
            small[name] = value | {"mrope_section": [2, 1, 1]}
        elif isinstance(value, list) and depth and len(value) == depth and depth != LAYERS:
            small[name] = _thinned(value)
        else:
            small[name] = _small(name, value)
    if multi_latent and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _thinned(values: list[Any]) -> list[Any]:
    """As many as there are layers, of every kind one, the last one as it was."""
    kinds = (
        [value for n, value in enumerate(values) if value not in values[:n]]
        if not any(map(_unhashable, values))
        else values[:1]
    )
    if len(kinds) == 1:
        return values[:1] * LAYERS
    return [kinds[n % len(kinds)] for n in range(LAYERS)]


def _unhashable(value: Any) -> bool:
    return isinstance(value, list | dict)


def _small(name: str, value: Any) -> Any:
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name) and name not in _SKIPPED:
            if isinstance(size, float | int) and isinstance(value, list):
                return value
            if value is None and size not in (0, 1, 2, 0.0):
                return None if name in ("n_inner", "head_dim", "num_key_value_heads") or "window" in name else value
            return size
    return value


def tiny(model_type: str, **fixed: Any) -> Any:
    """The type's tiny model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = tiny_config(model_type, **fixed)
    if model_type in _PARTS:
        own_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        model = own_class._from_config(getattr(config, _PARTS[model_type])).eval()
    else:
        model = auto_class(config).from_config(config).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # BART's own forces the last token
    return enlivened(model)


def enlivened(model: Any) -> Any:
    """Weights of a spread at which one token shows in the others: matrices as wide as their fan-in allows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.is_floating_point() and parameter.numel() > 64:
                spread = min(0.5, 1.5 / parameter.shape[-1] ** 0.5)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model
