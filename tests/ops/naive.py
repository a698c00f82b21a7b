"""Attention spelled out in float64, the yardstick of the tests in this folder."""

import torch


def naive_attention(q, k, v, visible, scale=None, bias=None):
    """Every query alone over its visible keys.

    Args:
        q: [B, Hq, T, D].
        k: [B, Hkv, S, D].
        v: [B, Hkv, S, D].
        visible: bool [B, T, S].
        scale: ``D**-0.5`` if None.
        bias: added to the scores, broadcastable to [B, Hq, T, S].

    Returns:
        (output [B, Hq, T, D], natural-log LSE [B, Hq, T]), float64; zeros and -inf where nothing is visible.
    """
    group = q.shape[1] // k.shape[1]
    shown = visible.any(1)[:, None, :, None]  # what nobody sees may hold NaN
    k = k.double().where(shown, 0).repeat_interleave(group, dim=1)
    v = v.double().where(shown, 0).repeat_interleave(group, dim=1)
    scores = q.double() @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().nan_to_num(0.0)
    return weights @ v, lse


def tolerance(dtype):
    """Absolute error allowed for unit-variance inputs."""
    return {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
