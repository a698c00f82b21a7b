"""The sampling head: guided logits in, tokens out, in one pass; plain draws and one speculative accept step.

A draft token x, drawn from law q, is accepted with probability min(1, p(x) / q(x)); a rejected one is replaced by a
draw from norm(max(p - q, 0)), so the result follows p (speculative sampling, arXiv 2211.17192). p is the processed
law of :mod:`vistok.ops.logits`. All randomness is given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.ops.dispatch import on_triton
from vistok.ops.logits import combine_guidance, draw, probabilities

FUSED_VOCABULARY = 32768  # one program holds a row in registers; larger vocabularies take the torch reference
_NO_RESIDUAL = 1e-10  # a residual this small is rounding: in exact arithmetic the draft is never rejected


class Verified(NamedTuple):
    """One speculative step of each row."""

    token: Tensor  # the draft where accepted, else the residual draw, int64 [R]
    accepted: Tensor  # bool [R]
    acceptance: Tensor  # min(1, p(x) / q(x)), float [R]
    probs: Tensor  # processed target law p, float32 [R, V]


def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Guidance, temperature, top-k, top-p, softmax and a draw.

    Args:
        logits: (conditional) logits [R, V].
        uniform: numbers in [0, 1), [R].
        uncond: unconditional logits [R, V]; without them there is no guidance.
        guidance: scale of classifier-free guidance.
        temperature, top_k, top_p: see :func:`vistok.ops.logits.process_logits`.

    Returns:
        Tokens int64 [R] and the law they were drawn from, float32 [R, V].
    """
    if on_triton(logits) and logits.shape[-1] <= FUSED_VOCABULARY:
        from vistok.ops.kernels.sampling import sample_tokens as kernel

        return kernel(
            logits, uniform, uncond=uncond, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p
        )
    probs = _law(logits, uncond, guidance, temperature, top_k, top_p)
    return draw(probs, uniform), probs


def verify_tokens(
    logits: Tensor,
    draft: Tensor,
    draft_probs: Tensor,
    accept_uniform: Tensor,
    sample_uniform: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Verified:
    """Accept or replace one draft token a row.

    Args:
        logits: (conditional) target logits [R, V].
        draft: draft tokens, int64 [R].
        draft_probs: laws that the drafts were drawn from, [R, V].
        accept_uniform: decides acceptance, [R].
        sample_uniform: draws the replacement, [R]; independent of the former.
        uncond, guidance, temperature, top_k, top_p: as in :func:`sample_tokens`.
    """
    if on_triton(logits) and logits.shape[-1] <= FUSED_VOCABULARY:
        from vistok.ops.kernels.sampling import verify_tokens as kernel

        return kernel(
            logits, draft, draft_probs, accept_uniform, sample_uniform,
            uncond=uncond, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
    probs = _law(logits, uncond, guidance, temperature, top_k, top_p)
    p = probs.gather(-1, draft[:, None]).squeeze(-1)
    q = draft_probs.gather(-1, draft[:, None]).squeeze(-1).to(p.dtype)
    accepted = accept_uniform * q < p  # no division: q may be 0
    replacement = draw(residual_law(probs, draft_probs), sample_uniform)
    acceptance = torch.where(p >= q, p > 0, p / q).to(p.dtype)
    return Verified(torch.where(accepted, draft, replacement), accepted, acceptance, probs)


def residual_law(probs: Tensor, draft_probs: Tensor) -> Tensor:
    """Law of the token that replaces a rejected draft: norm(max(p - q, 0)), or p where that is empty; [..., V]."""
    excess = (probs - draft_probs).clamp(min=0)
    total = excess.sum(-1, keepdim=True)
    return torch.where(total > _NO_RESIDUAL, excess / total.clamp(min=_NO_RESIDUAL), probs)


def _law(
    logits: Tensor, uncond: Tensor | None, guidance: float, temperature: float, top_k: int, top_p: float
) -> Tensor:
    if uncond is not None:
        logits = combine_guidance(logits, uncond, guidance)
    return probabilities(logits, temperature, top_k, top_p)
