"""From logits to probabilities to a token: guidance, temperature, top-k, top-p, and a draw from given noise.

This is the only place of the project where logits become probabilities. The order and the edge cases are
those of LlamaGen's sampler (arXiv 2406.06525): guidance, temperature, top-k, then top-p on the renormalised
rest. Randomness is an argument everywhere, so the same uniforms give the same tokens whatever the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError


def combine_guidance(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance ``uncond + (cond - uncond) * scale`` (arXiv 2207.12598), in float32 or wider."""
    cond, uncond = _wide(cond), _wide(uncond)
    return uncond + (cond - uncond) * scale


def process_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_keep: int = 1
) -> Tensor:
    """Temperature, then top-k, then top-p; removed tokens become -inf.

    Top-k keeps every token tied with the k-th value. Top-p removes the tokens before which, in descending
    order, more than ``top_p`` of the probability already lies; so the first token that crosses it is kept,
    and the best always.

    Args:
        logits: [..., V], any float dtype.
        temperature: divisor, at least 1e-5 is used.
        top_k: tokens kept, 0 keeps all; clipped to V.
        top_p: probability kept, 1 keeps all.
        min_keep: least k of top-k; above 1, top-p spares the best ``min_keep + 1`` tokens (LlamaGen's own
            count).

    Returns:
        [..., V] in float32 (float64 stays float64).

    Raises:
        VistokError: for a negative temperature, top_k or top_p, or a top_p above 1.
    """
    if temperature < 0 or top_k < 0 or not 0 <= top_p <= 1:
        raise VistokError(
            "sampling needs temperature >= 0, top_k >= 0 and 0 <= top_p <= 1, "
            f"got temperature={temperature}, top_k={top_k}, top_p={top_p}."
        )
    wide = _wide(logits) / max(temperature, 1e-5)
    vocabulary = wide.shape[-1]
    if top_k > 0 and max(top_k, min_keep) < vocabulary:
        kth = wide.topk(max(top_k, min_keep), dim=-1, sorted=False).values.amin(-1, keepdim=True)
        wide = wide.masked_fill(wide < kth, -torch.inf)
    if top_p < 1:
        ordered, order = wide.sort(dim=-1, descending=True, stable=True)
        law = ordered.softmax(-1)
        before = law.cumsum(-1).roll(1, dims=-1)
        spared = 1 if min_keep <= 1 else min_keep + 1
        before[..., :spared] = 0  # `roll` brought the total to the front
        remove = before > top_p
        wide = wide.masked_fill(remove.scatter(-1, order, remove), -torch.inf)
    return wide


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Softmax of :func:`process_logits`: [..., V] in float32 (float64 stays float64)."""
    return process_logits(logits, temperature, top_k, top_p).softmax(-1)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw in vocabulary order: the first token whose cumulative probability exceeds the uniform.

    Args:
        probs: non-negative weights [..., V]; they need not sum to one.
        uniform: numbers in [0, 1), [...].

    Returns:
        int64 [...]; a token of zero weight is never drawn.
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    total = cdf[..., -1:]
    wanted = uniform.to(torch.float64).unsqueeze(-1) * total
    # u * total can round up to total: the last token of positive weight is the first that reaches it.
    last = torch.searchsorted(cdf, total.contiguous())
    return torch.minimum(torch.searchsorted(cdf, wanted, right=True), last).squeeze(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
