"""Tiny random decoders of transformers, with grouped heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LENGTHS = (23, 40, 9)


def tiny(kind: str = "llama", layers: int = 5, **options: object) -> nn.Module:
    """A random causal LM of a model type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "vocab_size": 97,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "head_dim": 16,
        "initializer_range": 0.15,
        "use_sliding_window": False,
    }
    if kind == "mistral":
        sizes["sliding_window"] = None
    config = AutoConfig.for_model(kind, **sizes | options)
    return AutoModelForCausalLM.from_config(config).eval()


def ragged(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, Tensor]:
    """Prompts of different lengths and of distinct tokens, whose keys differ, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.stack([2 + torch.randperm(95, generator=generator)[:width] for _ in lengths])
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
