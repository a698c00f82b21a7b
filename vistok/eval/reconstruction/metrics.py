"""Reconstruction metrics of tokenizers: PSNR, SSIM (Wang et al. 2004) and the conventions that tables use.

Default: both pictures quantised by rounding, values in [0, 1], PSNR and SSIM of each picture, then the mean. LlamaGen's
and TokenFlow's evaluation (:func:`llamagen_quality`) compares unquantised targets with quantised outputs and calls the
data range 2 on [0, 1] pictures, which inflates SSIM: use it to reproduce their tables and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError, unknown_name

Rounding = Literal["round", "llamagen", "truncate"]
ROUNDINGS = ("round", "llamagen", "truncate")


def quantise(images: Tensor, rounding: Rounding = "round") -> Tensor:
    """Returns pictures in [-1, 1] as uint8.

    Args:
        images: any shape; values outside are clamped.
        rounding: ``"round"`` to the nearest level (MAR, TiTok's loop); ``"llamagen"`` truncates 127.5 x + 128
            (LlamaGen, TokenFlow); ``"truncate"`` truncates 255 (x + 1) / 2, half a level low on average.

    Raises:
        VistokError: another name, or a pixel that is no number.
    """
    if images.isnan().any():
        raise VistokError("the pictures contain NaN: check the tokenizer's weights and its precision.")
    if rounding == "llamagen":
        return (127.5 * images + 128.0).clamp(0, 255).to(torch.uint8)
    levels = ((images + 1) / 2).clamp(0, 1) * 255
    if rounding == "round":
        return levels.round().to(torch.uint8)
    if rounding == "truncate":
        return levels.to(torch.uint8)
    raise unknown_name("rounding", rounding, list(ROUNDINGS))


def _check(a: Tensor, b: Tensor, smallest: int = 1) -> None:
    if a.shape != b.shape:
        raise VistokError(f"pictures of {list(a.shape)} and {list(b.shape)} cannot be compared: sizes must be equal.")
    if min(a.shape[-2:]) < smallest:
        raise VistokError(f"SSIM needs pictures of at least {smallest} x {smallest} pixels, got {list(a.shape[-2:])}.")


def psnr(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Returns the peak signal-to-noise ratio in dB of each picture, in float64.

    Args:
        a: [B, C, H, W].
        b: [B, C, H, W].
        data_range: white minus black.

    Returns:
        [B]; infinite for equal pictures.
    """
    _check(a, b)
    error = (a.double() - b.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(data_range**2 / error)


def _gaussian_window(size: int, sigma: float) -> Tensor:
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = (-(x**2) / (2 * sigma**2)).exp()
    return weights / weights.sum()


def ssim(
    a: Tensor,
    b: Tensor,
    window: Literal["gaussian", "uniform"] = "gaussian",
    data_range: float = 1.0,
) -> Tensor:
    """Returns the structural similarity of each picture, in float64; windows must lie inside the picture.

    Args:
        a: [B, C, H, W].
        b: [B, C, H, W].
        window: ``"gaussian"``: 11 taps, sigma 1.5, population covariance (Wang et al.). ``"uniform"``: 7 x 7, sample
            covariance (the default of scikit-image).
        data_range: white minus black.

    Returns:
        [B], mean over channels and positions.

    Raises:
        VistokError: sizes differ or are smaller than the window, or another window is named.
    """
    if window not in ("gaussian", "uniform"):
        raise unknown_name("SSIM window", window, ["gaussian", "uniform"])
    taps = _gaussian_window(11, 1.5) if window == "gaussian" else torch.full((7,), 1 / 7, dtype=torch.float64)
    _check(a, b, len(taps))
    taps = taps.to(a.device)
    a, b = a.double(), b.double()
    channels = a.shape[1]

    def local_mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, taps.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(x, taps.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)

    mean_a, mean_b = local_mean(a), local_mean(b)
    unbias = 49 / 48 if window == "uniform" else 1.0
    var_a = unbias * (local_mean(a * a) - mean_a**2)
    var_b = unbias * (local_mean(b * b) - mean_b**2)
    covariance = unbias * (local_mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    structure = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (structure / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


MEASURES = ("psnr", "ssim")


def reconstruction_quality(targets: Tensor, outputs: Tensor, measures: Sequence[str] = MEASURES) -> dict[str, Tensor]:
    """Returns the quality of each picture under this package's default convention.

    Args:
        targets: [B, C, H, W] in [-1, 1].
        outputs: [B, C, H, W] as a decoder gives them.
        measures: which of :data:`MEASURES`; pictures too small for one may still have another.

    Returns:
        [B] of each measure.
    """
    a, b = quantise(targets).double() / 255, quantise(outputs).double() / 255
    known = {"psnr": psnr, "ssim": ssim}
    return {name: known[name](a, b) for name in measures}


def llamagen_quality(targets: Tensor, outputs: Tensor, measures: Sequence[str] = MEASURES) -> dict[str, Tensor]:
    """Returns the quality of each picture as LlamaGen's and TokenFlow's tables have it; see the default's."""
    a, b = (targets + 1) / 2, quantise(outputs, "llamagen").float() / 255
    known = {"psnr": psnr, "ssim": partial(ssim, window="uniform", data_range=2.0)}
    return {name: known[name](a, b) for name in measures}


CONVENTIONS = {"default": reconstruction_quality, "llamagen": llamagen_quality}
