"""The sampling head in Triton: one program a row, the row in registers, no sort.

Top-k and top-p find their thresholds by bisection over the bit patterns of the logits (32 counts each), so ties and
order are exact; only sums of probabilities are rounded differently from the torch reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vistok.ops.sampling import Verified


@triton.jit
def _order_key(x):
    """Int32 that sorts as the float does; -0.0 and 0.0 share one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _draw(weights, uniform, index, size):
    """First index whose running sum exceeds uniform * total, among those of positive weight."""
    running = tl.cumsum(weights, 0)
    total = tl.max(running, 0)
    hit = (running > uniform * total) & (weights > 0)
    first = tl.min(tl.where(hit, index, size), 0)
    last = tl.max(tl.where(weights > 0, index, 0), 0)
    return tl.minimum(first, last)


@triton.jit
def _sample_kernel(
    logits, uncond, draft, draft_probs, accept_uniform, sample_uniform,
    tokens, accepted, acceptance, probs, guidance, temperature, top_k, top_p, size, stride_l, stride_u, stride_q,
    HAS_UNCOND: tl.constexpr, HAS_DRAFT: tl.constexpr, HAS_K: tl.constexpr, HAS_P: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < size
    x = tl.load(logits + row * stride_l + index, mask=inside, other=0.0).to(tl.float32)
    if HAS_UNCOND:
        base = tl.load(uncond + row * stride_u + index, mask=inside, other=0.0).to(tl.float32)
        x = base + (x - base) * guidance
    x = tl.where(inside, x / temperature, float("-inf"))
    key = _order_key(x)
    kept = inside
    if HAS_K:
        # Largest threshold that at least k keys reach: the k-th value.
        low = tl.min(key, 0)
        high = tl.max(key, 0)
        while low < high:
            middle = (low | high) - ((low ^ high) >> 1)
            enough = tl.sum((inside & (key >= middle)).to(tl.int32), 0) >= top_k
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
        kept = inside & (key >= low)
    weight = tl.where(kept, tl.exp(x - tl.max(x, 0)), 0.0)
    law = weight / tl.sum(weight, 0)
    if HAS_P:
        # Smallest threshold with at most p of the mass above it; tokens tied with it enter in vocabulary order.
        low = tl.min(key, 0)
        high = tl.max(key, 0)
        while low < high:
            middle = (low & high) + ((low ^ high) >> 1)
            small = tl.sum(tl.where(key > middle, law, 0.0), 0) <= top_p
            high = tl.where(small, middle, high)
            low = tl.where(small, low, middle + 1)
        above = tl.sum(tl.where(key > low, law, 0.0), 0)
        tied = (key == low) & kept
        before = above + (tl.cumsum(tied.to(tl.int32), 0) - 1).to(tl.float32) * law
        weight = tl.where((key > low) | (tied & (before <= top_p)), weight, 0.0)
        law = weight / tl.sum(weight, 0)
    tl.store(probs + row * size + index, law, mask=inside)
    uniform = tl.load(sample_uniform + row)
    if HAS_DRAFT:
        proposal = tl.load(draft_probs + row * stride_q + index, mask=inside, other=0.0).to(tl.float32)
        x_draft = tl.load(draft + row)
        chosen = index == x_draft
        p = tl.sum(tl.where(chosen, law, 0.0), 0)
        q = tl.sum(tl.where(chosen, proposal, 0.0), 0)
        accept = tl.load(accept_uniform + row) * q < p
        excess = tl.maximum(law - proposal, 0.0)
        excess = tl.where(tl.sum(excess, 0) > 1e-10, excess, law)
        replacement = _draw(excess, uniform, index, size)
        tl.store(tokens + row, tl.where(accept, x_draft, replacement.to(tl.int64)))
        tl.store(accepted + row, accept)
        ratio = tl.where(q > 0, p / tl.where(q > 0, q, 1.0), tl.where(p > 0, 1.0, 0.0))
        tl.store(acceptance + row, tl.minimum(ratio, 1.0))
    else:
        tl.store(tokens + row, _draw(law, uniform, index, size).to(tl.int64))


def _launch(
    logits: Tensor,
    draft: Tensor | None,
    draft_probs: Tensor | None,
    accept_uniform: Tensor | None,
    sample_uniform: Tensor,
    uncond: Tensor | None,
    guidance: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Verified:
    rows, size = logits.shape
    device = logits.device
    logits, uncond, draft_probs = (
        x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (logits, uncond, draft_probs)
    )
    probs = torch.empty(rows, size, dtype=torch.float32, device=device)
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    accepted = torch.empty(rows, dtype=torch.bool, device=device)
    acceptance = torch.empty(rows, dtype=torch.float32, device=device)
    block = triton.next_power_of_2(size)
    _sample_kernel[(rows,)](
        logits, uncond, draft, draft_probs,
        None if accept_uniform is None else accept_uniform.float(), sample_uniform.float(),
        tokens, accepted, acceptance, probs, guidance, max(temperature, 1e-5), top_k, top_p, size,
        logits.stride(0), 0 if uncond is None else uncond.stride(0),
        0 if draft_probs is None else draft_probs.stride(0),
        HAS_UNCOND=uncond is not None, HAS_DRAFT=draft is not None, HAS_K=0 < top_k < size, HAS_P=top_p < 1,
        BLOCK=block, num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    return Verified(tokens, accepted, acceptance, probs)


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
    """Triton twin of :func:`vistok.ops.sampling.sample_tokens`."""
    step = _launch(logits, None, None, None, uniform, uncond, guidance, temperature, top_k, top_p)
    return step.token, step.probs


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
    """Triton twin of :func:`vistok.ops.sampling.verify_tokens`."""
    return _launch(
        logits, draft, draft_probs, accept_uniform, sample_uniform, uncond, guidance, temperature, top_k, top_p
    )
