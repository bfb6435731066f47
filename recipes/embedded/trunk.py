"""A Llama trunk for fast pretraining: token ids in, last hidden states out, in bfloat16 on any device.

Its parameters have the names and the meaning of `transformers.LlamaForCausalLM` with tied embeddings, so a state dict
moves between the two as it is. It has no cache, no padding and no generation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig


def matrix(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, [..., position, head_width]."""
    first, second = states.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        exact = states.float()
        return (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(states.dtype)


class Attention(nn.Module):
    """Causal attention, written out: on CPU this is faster than the fused kernel's backward pass."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.head_width = config.num_attention_heads, width // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (matrix(width, width) for _ in range(4))

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]).to(states.dtype)
        split = F.linear(states, weight).unflatten(-1, (3, self.heads, self.head_width))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotate(query, cos, sin) * self.head_width**-0.5, rotate(key, cos, sin)
        scores = (query @ key.transpose(-1, -2)).float() + mask
        mixed = torch.softmax(scores, dim=-1).to(states.dtype) @ value
        return F.linear(mixed.transpose(1, 2).flatten(2), self.o_proj.weight.to(states.dtype))


class MLP(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = matrix(config.intermediate_size, config.hidden_size)
        self.up_proj = matrix(config.intermediate_size, config.hidden_size)
        self.down_proj = matrix(config.hidden_size, config.intermediate_size)

    def forward(self, states: Tensor) -> Tensor:
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight]).to(states.dtype)
        gate, up = F.linear(states, weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(states.dtype))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states), cos, sin, mask)
        return states + self.mlp(self.post_attention_layernorm(states))


class Decoder(nn.Module):
    """Embedding, blocks and last norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            states = layer(states, cos, sin, mask)
            outputs.append(states)
        return [*outputs, self.norm(states)]


class Trunk(nn.Module):
    """`LlamaForCausalLM` without its head."""

    def __init__(self, config: LlamaConfig, length: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.model, self.dtype = Decoder(config), dtype
        half = config.hidden_size // config.num_attention_heads // 2
        turns = config.rope_parameters["rope_theta"] ** -(torch.arange(half) / half)
        angles = torch.outer(torch.arange(length), turns)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("mask", torch.full((length, length), -1e4).triu(1), persistent=False)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """[row, position] -> every block's output and then the normed last one, [row, position, width] each."""
        length = ids.shape[1]
        states = self.model.embed_tokens(ids).to(self.dtype)
        return self.model(states, self.cos[:length], self.sin[:length], self.mask[:length, :length])
