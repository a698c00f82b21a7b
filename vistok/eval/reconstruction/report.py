"""One tokenizer's reconstructions by token count, beside JPEG and WebP, with usage of codes and rFID."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.protocol import Protocol, Result
from vistok.eval.reconstruction.metrics import quantise
from vistok.eval.reconstruction.paired import net_name
from vistok.eval.reconstruction.pictures import PictureSource, file_overhead
from vistok.eval.reconstruction.rate_distortion import (
    CODECS,
    Compared,
    RatePoint,
    advantage,
    codec_quality,
    powers_of_two,
    quality_by_tokens,
)
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.tokenizers.load import LoadedTokenizer
from vistok.tokenizers.quantizers import CodebookUsage

if TYPE_CHECKING:
    from vistok.eval.sets.extractors import Extractor

RIVAL = ("jpeg", 10)  # the point that ``remarks`` compares with at equal bytes


@dataclass(frozen=True)
class TokenizerReport:
    """What was measured of a tokenizer.

    Attributes:
        name: of the tokenizer; its curve has this name.
        sha256: of its weights.
        source: name of the pictures.
        pictures: how many.
        side: of the pictures in pixels.
        curves: points by name.
        usage, perplexity: of the codebook.
        extractor, extractor_weights: of the rFID, empty without one.
        lpips: network of the LPIPS, empty without one.
    """

    name: str
    sha256: str
    source: str
    pictures: int
    side: int
    curves: dict[str, list[RatePoint]]
    usage: float
    perplexity: float
    extractor: str = ""
    extractor_weights: str = ""
    lpips: str = ""

    def remarks(self) -> list[str]:
        """Returns the sentences below the table."""
        lines = [
            f"{self.pictures} pictures ({self.source}); codebook usage {100 * self.usage:.1f} %, "
            f"perplexity {self.perplexity:.1f}"
        ]
        codec, quality = RIVAL
        rivals = [point for point in self.curves.get(codec, ()) if point.setting == quality]
        if rivals:
            gain = advantage(self.curves[self.name], rivals[0])
            told = f"{gain:+.2f} dB" if math.isfinite(gain) else "no number of tokens takes so few"
            lines.append(
                f"at no more bytes than {codec} of quality {quality} ({rivals[0].bytes:.0f}, {rivals[0].psnr:.2f} dB): "
                f"{told}"
            )
        return lines

    def results(self) -> list[Result]:
        """Returns the PSNR of every point with all its figures, and the usage of codes, each with its protocol."""
        reference = f"{self.source} ({self.pictures} pictures of {self.side}x{self.side})"
        common = {"reference": reference, "samples": self.pictures}
        options = ("default", f"net={self.lpips}") if self.lpips else ("default",)
        found = []
        for name, points in self.curves.items():
            for point in points:
                figures = {key: getattr(point, key) for key in ("ssim", "lpips", "rfid", "bytes", "payload")}
                details = {key: float(value) for key, value in figures.items() if value is not None}
                details["bits_per_pixel"] = point.bits_per_pixel(self.side)
                if point.identical:
                    details["identical pictures"] = float(point.identical)
                unit = "quality" if name in CODECS else "tokens"
                protocol = Protocol("psnr", self.extractor, self.extractor_weights, options=options, **common)
                value = point.psnr if math.isfinite(point.psnr) else None
                found.append(Result(f"{name}, {unit} {point.setting}", value, protocol, details=details))
        usage = Protocol("codebook usage", weights=self.sha256[:12], **common)
        return [*found, Result(self.name, self.usage, usage, details={"perplexity": self.perplexity})]


def evaluate_tokenizer(
    loaded: LoadedTokenizer,
    source: PictureSource,
    lengths: Sequence[int] | None = None,
    batch_size: int = 16,
    lpips: Compared | None = None,
    extractor: Extractor | None = None,
    compare_codecs: bool = True,
    seed: int = 0,
) -> TokenizerReport:
    """Reconstructs pictures at each number of tokens; nothing is encoded twice.

    Args:
        loaded: the tokenizer.
        source: of pictures.
        lengths: numbers of tokens; by default powers of two of a sequence, all whole scales, or a grid's tokens.
        batch_size: pictures at a time.
        lpips: pairs of pictures in [-1, 1] -> [B].
        extractor: of the rFID.
        compare_codecs: measure JPEG and WebP as well.
        seed: of tokenizers that decode by sampling.

    Raises:
        VistokError: continuous tokens, no picture, pictures of several sizes, or a length that the tokenizer does not
            decode.
    """
    tokenizer, capabilities = loaded.tokenizer, loaded.tokenizer.capabilities
    capabilities.check_discrete()
    if extractor is not None:
        source.check_count(2, "a Frechet distance")
    first = next(source.batches(batch_size), None)
    if first is None:
        raise VistokError("there is no picture to reconstruct.")
    shape = tuple(tokenizer.encode(first[:1].to(loaded.device)).shape[1:])
    total = torch.Size(shape).numel()
    if lengths is None:
        lengths = powers_of_two(total) if isinstance(capabilities.lengths, range) else capabilities.lengths or (total,)
    for length in lengths:
        capabilities.check_length(length, total)

    usage = CodebookUsage(capabilities.codebook_size)
    originals, outputs = _Features(extractor), {length: _Features(extractor) for length in lengths}

    def batches() -> Iterator[Tensor]:
        for images in source.batches(batch_size):
            originals.update(images)
            yield images.to(loaded.device)

    points = quality_by_tokens(
        tokenizer,
        batches(),
        lengths,
        usage.update,
        lambda length, pictures: outputs[length].update(pictures),
        lpips,
        file_overhead(loaded, shape),
        seed,
    )
    if extractor is not None:
        points = [
            replace(p, rfid=frechet_distance(originals.statistics, outputs[p.setting].statistics)) for p in points
        ]
    curves = {loaded.name: points}
    if compare_codecs:
        curves |= {codec: codec_quality(codec, source.batches(batch_size), lpips=lpips) for codec in CODECS}
    named = {} if extractor is None else {"extractor": extractor.name, "extractor_weights": extractor.weights}
    return TokenizerReport(
        loaded.name,
        loaded.sha256,
        source.name,
        int(usage.counts.sum()) // total,
        first.shape[-1],
        curves,
        usage.usage,
        usage.perplexity,
        lpips="" if lpips is None else net_name(lpips),
        **named,
    )


class _Features:
    """Statistics of the extractor's features; nothing without one."""

    def __init__(self, extractor: Extractor | None):
        self.extractor = extractor
        self.statistics: FeatureStatistics | None = None

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        if self.extractor is None:
            return
        features = FeatureStatistics.of(self.extractor(list(quantise(images).cpu()))["features"])
        self.statistics = features if self.statistics is None else self.statistics.merge(features)
