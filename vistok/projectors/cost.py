"""What visual tokens cost a language model: floating-point operations of the prefill, and bytes of key-value cache.

The count of a Llama-type decoder, two operations a multiply-add, attention unmasked, embeddings and output head left
out: at LLaVA-NeXT-7B with 2880 tokens it gives 41.7 TFLOPs, as GlobalCom2 (arXiv 2501.05179) reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _shape(config: Any) -> tuple[int, int, int, int]:
    """Layers, query width, key-value width, weights of a layer."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    queries, keys = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
    weights = 2 * width * queries + 2 * width * keys + 3 * width * config.intermediate_size
    return config.num_hidden_layers, queries, keys, weights


def prefill_flops(config: Any, tokens: int | Sequence[int]) -> int:
    """Floating-point operations of a prefill.

    Args:
        config: configuration of the language model (``model.config.get_text_config()``).
        tokens: length of the prompt, text and visual; or its length in each layer, as FastV makes it.
    """
    layers, queries, _, weights = _shape(config)
    lengths = [tokens] * layers if isinstance(tokens, int) else tokens
    return sum(2 * weights * n + 4 * queries * n * n for n in lengths)


def flops_text(flops: float) -> str:
    """Returns a number of floating-point operations with the unit that leaves digits before the point: ``7.3 GFLOPs``.

    Below 1,000 operations there is no unit but ``FLOPs``.
    """
    for unit, name in ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs")):
        if flops >= unit:
            return f"{flops / unit:.1f} {name}"
    return f"{flops:.0f} FLOPs"


def kv_cache_bytes(config: Any, tokens: int | Sequence[int], bytes_per_value: int = 2) -> int:
    """Bytes of the key-value cache.

    Args:
        config: configuration of the language model.
        tokens: cached tokens, or their number in each layer.
        bytes_per_value: 2 in half precision, 4 in float32.
    """
    layers, _, keys, _ = _shape(config)
    lengths = [tokens] * layers if isinstance(tokens, int) else tokens
    return sum(2 * keys * n * bytes_per_value for n in lengths)
