"""Attention, cache, rotary and sampling ops: pure functions and one KV cache, for image and text models."""

from vistok.ops.attention import attention, collapse_prefix
from vistok.ops.cache import KVCache
from vistok.ops.causal import causal_attention
from vistok.ops.linear import pack_linears
from vistok.ops.logits import combine_guidance, draw, probabilities, process_logits
from vistok.ops.rope import apply_rope, rope_1d, rope_2d
from vistok.ops.sampling import sample_tokens, verify_tokens
from vistok.ops.tree import TreeMask

__all__ = [
    "KVCache",
    "TreeMask",
    "apply_rope",
    "attention",
    "causal_attention",
    "collapse_prefix",
    "combine_guidance",
    "draw",
    "pack_linears",
    "probabilities",
    "process_logits",
    "rope_1d",
    "rope_2d",
    "sample_tokens",
    "verify_tokens",
]
