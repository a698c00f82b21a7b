"""Counter-based random numbers: every draw is a pure function of its key.

A uniform is addressed by ``(seed, row, position, purpose)``. Nothing is stored and no generator advances, so a
draw does not depend on the batch size, the order of work, the number of processes, or a resume. The mixer is the
64-bit finaliser of SplitMix64 (Steele et al., OOPSLA 2014), applied once for each key.
"""

from __future__ import annotations

import torch

from vistok.errors import VistokError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_ALL = (1 << 64) - 1


def check_seed(seed: int) -> int:
    """Returns a seed that is a whole number of at most 64 bits, signed or not.

    Raises:
        VistokError: it is longer, so that it could not be told from another seed.
    """
    if not -(1 << 63) <= seed < 1 << 64:
        raise VistokError(f"the seed {seed} has more than 64 bits: take one from 0 to {(1 << 64) - 1}.")
    return seed


def derive_seed(seed: int, *keys: int) -> int:
    """Returns a seed in [0, 2**64) for each combination of a seed and its keys, for generators that advance.

    Args:
        seed: of the whole job, at most 64 bits.
        keys: what it is divided by, e.g. the number of a picture or of a training step.

    Raises:
        VistokError: the seed has more than 64 bits.
    """
    derived = check_seed(seed)
    for key in keys:
        derived = derived * 1_000_003 + key
    return derived % (1 << 64)


def _signed(value: int | torch.Tensor) -> int | torch.Tensor:
    """The 64 bits of an integer as the signed one that tensors hold."""
    if isinstance(value, torch.Tensor):
        return value
    value = int(value)
    return value if -(1 << 63) <= value < 1 << 63 else check_seed(value) - (1 << 64)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of signed 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: int | torch.Tensor) -> int | torch.Tensor:
    """The finaliser of 64 bits; of a number without a tensor, which is a hundred times as fast."""
    if isinstance(x, int):
        x &= _ALL
        x = (x ^ (x >> 30)) * _MIX_1 & _ALL
        x = (x ^ (x >> 27)) * _MIX_2 & _ALL
        return _signed(x ^ (x >> 31))
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def absorb(state: int | torch.Tensor, *keys: int | torch.Tensor) -> int | torch.Tensor:
    """The state of a stream, see ``counter_bits``, after further keys; what its first keys made of it may be kept."""
    for key in keys:
        state = _mix((state ^ _mix(_signed(key) + _GOLDEN)) + _GOLDEN)
    return state


def counter_bits(seed: int | torch.Tensor, *keys: int | torch.Tensor) -> torch.Tensor:
    """64 well-mixed bits for each combination of keys, as int64.

    Args:
        seed: the stream's seed.
        keys: integers or integer tensors, broadcast against each other. ``counter_bits(s, a, b)`` and
            ``counter_bits(s, b, a)`` are unrelated.

    Shape:
        the broadcast shape of the keys.
    """
    return torch.as_tensor(absorb(_mix(_signed(seed) + _GOLDEN), *keys))


def counter_uniform(seed: int | torch.Tensor, *keys: int | torch.Tensor) -> torch.Tensor:
    """Uniforms in the open interval (0, 1), float64, addressed by their keys.

    Args:
        seed: the stream's seed.
        keys: integers or integer tensors, broadcast against each other.

    Shape:
        the broadcast shape of the keys.
    """
    return as_uniform(counter_bits(seed, *keys))


def as_uniform(bits: torch.Tensor) -> torch.Tensor:
    """Bits, int64, as uniforms in (0, 1), float64."""
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52  # the midpoints of 52 bits are exact in float64


def counter_normal(seed: int | torch.Tensor, *keys: int | torch.Tensor) -> torch.Tensor:
    """Standard normal draws, float64, by the inverse distribution function of ``counter_uniform``."""
    return torch.special.ndtri(counter_uniform(seed, *keys))
