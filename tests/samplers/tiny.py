"""Tiny random causal LMs of several architectures, in float64 so that ties do not blur comparisons.

Eager attention is float32: its softmax always is, where transformers' own mask of padding overflows in float64.
"""

from __future__ import annotations

import functools

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vistok.models.heads.clover import Clover
from vistok.models.heads.drafter import DrafterConfig
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.heads.hidden_transfer import HiddenTransfer, HiddenTransferConfig
from vistok.models.heads.medusa import Medusa, MedusaConfig
from vistok.models.heads.prompt_tokens import PromptTokens

VOCABULARY = 23
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
    "gpt-neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
}


@functools.cache
def tiny(kind: str = "llama", seed: int = 0, attention: str = "sdpa", **options):
    """A model; the same one for the same arguments."""
    network, config, more = KINDS[kind]
    torch.manual_seed(seed)
    sizes = {**SIZES, **more, "initializer_range": 0.35, **options}
    model = network(config(**sizes, attn_implementation=attention)).eval().requires_grad_(False)
    return model if attention == "eager" else model.double()


def tiny_head(vocabulary: int = VOCABULARY, width: int = 16, **options) -> EagleNetwork:
    """A random EAGLE head for ``tiny``, with grouped queries."""
    torch.manual_seed(5)
    config = EagleConfig(vocabulary, width, 24, 4, num_key_value_heads=2, **options)
    network = EagleNetwork(config).eval().requires_grad_(False).double()
    for weight in network.parameters():
        weight.mul_(3)  # laws far from uniform
    return network


def tiny_clover(vocabulary: int = VOCABULARY, width: int = 16) -> Clover:
    """Random sequential heads for ``tiny``."""
    torch.manual_seed(8)
    network = Clover(DrafterConfig(vocabulary, width, 24, 4, num_key_value_heads=2))
    network.eval().requires_grad_(False).double()
    for weight in network.parameters():
        weight.mul_(2)
    return network


def prompt(batch: int = 1, length: int = 7, seed: int = 0) -> torch.Tensor:
    """Random prompts, int64 [B, L]."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_prompt_tokens(ahead: int = 3, group: int = 1, width: int = 16, attention: str = "ensemble") -> PromptTokens:
    """Random prompt tokens for ``tiny``."""
    generator = torch.Generator().manual_seed(6)
    return PromptTokens(torch.randn(ahead * group, width, generator=generator) / 3, group, attention).double()


def tiny_transfer(ahead: int = 3, width: int = 16) -> HiddenTransfer:
    """Random transfer maps for ``tiny``, in front of its last layer."""
    torch.manual_seed(7)
    network = HiddenTransfer(HiddenTransferConfig(width, 1, ahead)).eval().requires_grad_(False)
    for weight in network.parameters():
        weight += torch.randn_like(weight) / 4
    return network.double()


def tiny_medusa(vocabulary: int = VOCABULARY, width: int = 16, heads: int = 3, layers: int = 1) -> Medusa:
    """Random Medusa heads for ``tiny``."""
    torch.manual_seed(9)
    network = Medusa(MedusaConfig(width, vocabulary, heads, layers)).eval().requires_grad_(False)
    for weight in network.parameters():
        weight += torch.randn_like(weight) / 3
    return network.double()
