"""Quality of reconstructions against the bytes that they take: a tokenizer by token count, JPEG and WebP by quality.

Every picture is encoded once and decoded at each length. Bytes are those of whole files: a ``.vtok`` with its header
and checksum, as JPEG and WebP have theirs; beside them stand the bytes of the bare tokens, which papers count.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistok.data.images import to_tensor
from vistok.errors import VistokError
from vistok.eval.plots import new_figure, save_figure
from vistok.eval.reconstruction.metrics import quantise, reconstruction_quality
from vistok.ops.noise import derive_seed
from vistok.tokenizers.interface import Tokenizer, noise_of

CODECS = {"jpeg": "JPEG", "webp": "WEBP"}  # what the plot calls them: what Pillow does
QUALITIES = (1, 5, 10, 20, 30, 50, 75, 90)
Compared = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RatePoint:
    """Means over pictures at one setting of a codec or tokenizer.

    Attributes:
        setting: tokens, or a codec's quality.
        psnr: in dB, over the pictures that are not given back exactly; infinite if all are.
        ssim: with the Gaussian window.
        lpips: None without its network.
        rfid: Frechet distance to the originals; None without an extractor.
        bytes: of whole files; 0 where nothing was written.
        payload: bytes without headers; for codecs those of the whole file.
        identical: pictures that were given back exactly.
    """

    setting: int
    psnr: float
    ssim: float
    lpips: float | None = None
    rfid: float | None = None
    bytes: float = 0.0
    payload: float = 0.0
    identical: int = 0

    def bits_per_pixel(self, side: int) -> float:
        """Returns the bits a pixel of whole files of pictures of side x side pixels."""
        return 8 * self.bytes / side**2


def powers_of_two(maximum: int) -> list[int]:
    """Returns 1, 2, 4, ... and ``maximum``."""
    return sorted({2**i for i in range((maximum - 1).bit_length())} | {maximum})


class _Means:
    """Running sums of figures of pictures."""

    def __init__(self, lpips: Compared | None):
        self.lpips, self.sums, self.count, self.identical = lpips, {}, 0, 0

    def update(self, images: Tensor, outputs: Tensor) -> None:
        scores = reconstruction_quality(images, outputs)
        if self.lpips is not None:
            scores["lpips"] = self.lpips(images.cpu(), outputs.clamp(-1, 1).cpu())
        exact = scores["psnr"].isinf()
        scores["psnr"] = scores["psnr"][~exact]
        for name, values in scores.items():
            self.sums[name] = self.sums.get(name, 0.0) + values.double().sum().item()
        self.count += len(images)
        self.identical += int(exact.sum())

    def point(self, setting: int, size: float = 0.0, payload: float = 0.0) -> RatePoint:
        means = {name: total / self.count for name, total in self.sums.items()}
        different = self.count - self.identical
        means["psnr"] = self.sums["psnr"] / different if different else math.inf
        return RatePoint(setting, **means, bytes=size, payload=payload, identical=self.identical)


@torch.no_grad()
def quality_by_tokens(
    tokenizer: Tokenizer,
    batches: Iterable[Tensor],
    lengths: Sequence[int],
    on_tokens: Callable[[Tensor], Any] = lambda _: None,
    on_outputs: Callable[[int, Tensor], Any] = lambda _, __: None,
    lpips: Compared | None = None,
    header: int = 0,
    seed: int = 0,
) -> list[RatePoint]:
    """Reconstructs pictures from each number of first tokens.

    Args:
        tokenizer: encodes once, decodes every length.
        batches: pictures [B, 3, H, W] in [-1, 1].
        lengths: numbers of tokens.
        on_tokens: called with the tokens of each batch.
        on_outputs: called with the length and the reconstructions [B, 3, H, W] of each batch.
        lpips: pairs of pictures in [-1, 1] -> [B].
        header: bytes of a file beside its tokens.
        seed: of the noise where decoding draws it: each picture has its own, with which all lengths begin.

    Raises:
        VistokError: a length that the tokenizer does not decode, or no picture.
    """
    means = {length: _Means(lpips) for length in lengths}
    done = 0
    for images in batches:
        tokens = tokenizer.encode(images)
        on_tokens(tokens)
        seeds = [derive_seed(seed, done + number) for number in range(len(images))]
        for length in lengths:
            outputs = tokenizer.decode(tokens, length, **noise_of(tokenizer, seeds))
            on_outputs(length, outputs)
            means[length].update(images, outputs)
        done += len(images)
    if any(not mean.count for mean in means.values()):
        raise VistokError("there is no picture to reconstruct.")
    bits = tokenizer.capabilities.bits_per_token
    payloads = {length: -(-length * bits // 8) for length in lengths}
    return [mean.point(length, header + payloads[length], payloads[length]) for length, mean in means.items()]


def codec_quality(
    codec: str, batches: Iterable[Tensor], qualities: Sequence[int] = QUALITIES, lpips: Compared | None = None
) -> list[RatePoint]:
    """Returns what JPEG or WebP, as Pillow writes them by default, make of pictures; bytes are of whole files.

    Args:
        codec: one of ``CODECS``.
        batches: pictures [B, 3, H, W] in [-1, 1].
        qualities: 0 to 100.
        lpips: pairs of pictures in [-1, 1] -> [B].
    """
    means, sizes = {quality: _Means(lpips) for quality in qualities}, dict.fromkeys(qualities, 0)
    for images in batches:
        pixels = quantise(images).movedim(1, -1).cpu().numpy()
        for quality in qualities:
            files = [_encoded(array, CODECS[codec], quality) for array in pixels]
            decoded = torch.stack([to_tensor(Image.open(io.BytesIO(data))) for data in files])
            sizes[quality] += sum(map(len, files))
            means[quality].update(images.cpu(), decoded)
    sizes = {quality: size / means[quality].count for quality, size in sizes.items()}
    return [mean.point(quality, sizes[quality], sizes[quality]) for quality, mean in means.items()]


def _encoded(array: np.ndarray, format: str, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, quality=quality)
    return file.getvalue()


def codec_within(codec: str, picture: Image.Image, limit: int) -> tuple[Image.Image, int]:
    """Returns what JPEG or WebP make of a picture at the best quality whose file is no larger than a limit, and the
    file's bytes; at quality 1 where even that file is larger.

    Args:
        codec: one of ``CODECS``.
        picture: RGB.
        limit: bytes of the whole file.
    """
    array = np.asarray(picture)
    low, high = 1, 95  # sizes grow with the quality, but for a few bytes
    best = _encoded(array, CODECS[codec], low)
    while low < high and len(best) <= limit:
        middle = (low + high + 1) // 2
        file = _encoded(array, CODECS[codec], middle)
        if len(file) <= limit:
            low, best = middle, file
        else:
            high = middle - 1
    return Image.open(io.BytesIO(best)).convert("RGB"), len(best)


def advantage(points: Sequence[RatePoint], other: RatePoint) -> float:
    """Returns the best PSNR of points of at most as many bytes as another, minus the other's; -inf without such."""
    return max((point.psnr for point in points if point.bytes <= other.bytes), default=-float("inf")) - other.psnr


def plot_rate_distortion(curves: dict[str, Sequence[RatePoint]], side: int, path: str | Path) -> None:
    """Draws PSNR and SSIM of several curves over bytes a picture; bare tokens are dashed.

    Args:
        curves: points by name.
        side: of the pictures, for the title.
        path: picture to write.

    Raises:
        VistokError: matplotlib is not installed.
    """
    figure = new_figure(10, 4)
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    for axes, metric in zip(figure.subplots(1, 2), ("psnr", "ssim"), strict=True):
        for name, points in curves.items():
            values = [getattr(point, metric) for point in points]
            (line,) = axes.plot([point.bytes for point in points], values, "o-", markersize=3, label=name)
            if any(point.payload != point.bytes for point in points):
                bare = [point.payload for point in points]
                axes.plot(bare, values, "x--", markersize=4, color=line.get_color(), label=f"{name}, without headers")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(
            xlabel=f"bytes of a picture of {side}x{side} pixels", ylabel="PSNR in dB" if metric == "psnr" else "SSIM"
        )
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    save_figure(figure, path)
