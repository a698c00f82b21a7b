"""What visual tokens cost a language model: floating-point operations of the prefill, and bytes of key-value cache.

The count of a Llama-type decoder, two operations a multiply-add, attention unmasked, embeddings and output head left
out: at LLaVA-NeXT-7B with 2880 tokens it gives 41.7 TFLOPs, as GlobalCom2 (arXiv 2501.05179) reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vistok.models.huggingface import head_width


def _shapes(config: Any) -> list[tuple[int, int, int]]:
    """Query width, key-value width and weights of each layer; layers of short convolutions (LFM2) have no keys."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = head_width(config)
    queries, keys = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
    gated = 3 * width * config.intermediate_size
    attends = (queries, keys, 2 * width * queries + 2 * width * keys + gated)
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    return [(0, 0, 4 * width * width + gated) if kind == "conv" else attends for kind in kinds]


def prefill_flops(config: Any, tokens: int | Sequence[int]) -> int:
    """Floating-point operations of a prefill.

    Args:
        config: configuration of the language model (``model.config.get_text_config()``).
        tokens: length of the prompt, text and visual; or its length in each layer, as FastV makes it.
    """
    layers = _shapes(config)
    lengths = [tokens] * len(layers) if isinstance(tokens, int) else tokens
    return sum(2 * weights * n + 4 * queries * n * n for n, (queries, _, weights) in zip(lengths, layers, strict=True))


def flops_text(flops: float) -> str:
    """Returns a number of floating-point operations with the unit that leaves digits before the point: ``7.3 GFLOPs``.

    Below 1,000 operations there is no unit but ``FLOPs``.
    """
    for unit, name in ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs")):
        if flops >= unit:
            return f"{flops / unit:.1f} {name}"
    return f"{flops:.0f} FLOPs"


def kv_cache_bytes(config: Any, tokens: int | Sequence[int], bytes_per_value: int = 2) -> int:
    """Bytes of the key-value cache, which layers of convolutions have no part in.

    Args:
        config: configuration of the language model.
        tokens: cached tokens, or their number in each layer.
        bytes_per_value: 2 in half precision, 4 in float32.
    """
    layers = _shapes(config)
    lengths = [tokens] * len(layers) if isinstance(tokens, int) else tokens
    return sum(2 * keys * n * bytes_per_value for n, (_, keys, _) in zip(lengths, layers, strict=True))
