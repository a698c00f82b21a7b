"""Counter-based random numbers: every draw is a pure function of its key.

A uniform is addressed by ``(seed, row, position, purpose)``. Nothing is stored and no generator advances, so a
draw does not depend on the batch size, the order of work, the number of processes, or a resume. The mixer is the
64-bit finaliser of SplitMix64 (Steele et al., OOPSLA 2014), applied once for each key.
"""

from __future__ import annotations

import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def counter_bits(seed: int | torch.Tensor, *keys: int | torch.Tensor) -> torch.Tensor:
    """64 well-mixed bits for each combination of keys, as int64.

    Args:
        seed: the stream's seed.
        keys: integers or integer tensors, broadcast against each other. ``counter_bits(s, a, b)`` and
            ``counter_bits(s, b, a)`` are unrelated.

    Shape:
        the broadcast shape of the keys.
    """
    state = _mix(torch.as_tensor(seed, dtype=torch.int64) + _GOLDEN)
    for key in keys:
        key = torch.as_tensor(key, dtype=torch.int64)
        if key.device != state.device:
            state = state.to(key.device) if state.ndim == 0 else state
        state = _mix((state ^ _mix(key + _GOLDEN)) + _GOLDEN)
    return state


def counter_uniform(seed: int | torch.Tensor, *keys: int | torch.Tensor) -> torch.Tensor:
    """Uniforms in the open interval (0, 1), float64, addressed by their keys.

    Args:
        seed: the stream's seed.
        keys: integers or integer tensors, broadcast against each other.

    Shape:
        the broadcast shape of the keys.
    """
    bits = _shift_right(counter_bits(seed, *keys), 12)  # 52 bits: the midpoints below are exact in float64
    return (bits.double() + 0.5) * 2.0**-52


def counter_normal(seed: int | torch.Tensor, *keys: int | torch.Tensor) -> torch.Tensor:
    """Standard normal draws, float64, by the inverse distribution function of ``counter_uniform``."""
    return torch.special.ndtri(counter_uniform(seed, *keys))
