"""Quantizers: continuous latents to indices of a codebook and back.

All share one layout: latents [B, D, ...] with channels second, indices [B, ...], and codes [..., D] of indices. All
work in float32 whatever the surrounding precision: half precision cannot tell neighbouring codes apart.
"""

from vistok.tokenizers.quantizers.base import Quantized, Quantizer, entropy_gap
from vistok.tokenizers.quantizers.binary import BinaryQuantizer
from vistok.tokenizers.quantizers.ema import EMAQuantizer
from vistok.tokenizers.quantizers.gradient import ESTIMATORS, rotation_trick, straight_through
from vistok.tokenizers.quantizers.multiscale import MultiScaleQuantizer, PhiConvs
from vistok.tokenizers.quantizers.residual import ResidualQuantizer
from vistok.tokenizers.quantizers.scalar import FSQ
from vistok.tokenizers.quantizers.shared import SharedQuantizer
from vistok.tokenizers.quantizers.usage import CodebookUsage
from vistok.tokenizers.quantizers.vector import USAGE_WINDOW, VectorQuantizer

__all__ = [
    "ESTIMATORS",
    "FSQ",
    "USAGE_WINDOW",
    "BinaryQuantizer",
    "CodebookUsage",
    "EMAQuantizer",
    "MultiScaleQuantizer",
    "PhiConvs",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "SharedQuantizer",
    "VectorQuantizer",
    "entropy_gap",
    "rotation_trick",
    "straight_through",
]
