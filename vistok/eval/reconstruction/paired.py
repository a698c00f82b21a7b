"""Metrics of pictures and their reconstructions, paired by name: PSNR, SSIM, LPIPS.

Pairs are equal names without their suffixes, or equal numbers where all names of both sides are numbers (``7.png`` and
``0007.png``); sets that do not pair are refused, since a shifted pair would be scored as a bad reconstruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.eval.protocol import Protocol, Result
from vistok.eval.reconstruction.metrics import CONVENTIONS
from vistok.eval.sets.interface import Measurement, Metric, PictureSet
from vistok.eval.sets.pictures import FolderPictures, Pictures
from vistok.models.vision.lpips import Lpips

Pair = tuple[Tensor, Tensor]  # a target and an output, each [1, 3, H, W] in [-1, 1]
_SHOWN = 3  # names that a sentence gives


def pair_by_name(targets: Pictures, outputs: Pictures) -> list[tuple[int, int]]:
    """Returns the indices of each target and of its reconstruction, in the order of the targets.

    Batch files, which have no names, pair by position.

    Raises:
        VistokError: a picture of either side has no counterpart, or several.
    """
    if not isinstance(targets, FolderPictures) or not isinstance(outputs, FolderPictures):
        if len(targets) != len(outputs):
            raise VistokError(f"{len(targets)} originals and {len(outputs)} reconstructions do not pair up.")
        return [(i, i) for i in range(len(targets))]
    whole = [[side.inside(i) for i in range(len(side))] for side in (targets, outputs)]
    stems = [[str(PurePosixPath(name).with_suffix("")) for name in side] for side in whole]
    ways = [whole, stems]
    if all(name.isdecimal() for side in stems for name in side):
        ways.append([[str(int(name)) for name in side] for side in stems])
    for mine, theirs in ways:
        where = {name: i for i, name in enumerate(theirs)}
        if set(mine) == set(theirs) and len(set(mine)) == len(mine) == len(theirs):
            return [(i, where[name]) for i, name in enumerate(mine)]
    problem = _unpaired(targets, outputs, *ways[-1])
    raise VistokError(f"originals and reconstructions pair by name, and these do not: {problem}.")


def _unpaired(targets: FolderPictures, outputs: FolderPictures, mine: list[str], theirs: list[str]) -> str:
    """What stands in the way of a pairing."""
    told = []
    for side, own, other in ((targets, mine, theirs), (outputs, theirs, mine)):
        if alone := sorted(set(own) - set(other)):
            more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
            told.append(f"only in '{side.name}': {', '.join(alone[:_SHOWN])}{more}")
        if twice := sorted(name for name, count in Counter(own).items() if count > 1):
            told.append(f"more than once in '{side.name}': {', '.join(twice[:_SHOWN])}")
    return "; ".join(told)


def _name(side: Pictures, index: int) -> str:
    return f"'{side.path(index)}'" if isinstance(side, FolderPictures) else f"picture {index} of '{side.name}'"


def picture_pairs(targets: Pictures, outputs: Pictures) -> Iterator[Pair]:
    """Yields pairs of pictures [1, 3, H, W] in [-1, 1]; see :func:`pair_by_name`.

    Raises:
        VistokError: the sets do not pair, or the pictures of a pair are of two sizes.
    """
    for i, j in pair_by_name(targets, outputs):
        (target,), (output,) = targets.batch(i, i + 1), outputs.batch(j, j + 1)
        if target.shape != output.shape:
            sizes = (f"{side.shape[2]}x{side.shape[1]}" for side in (target, output))
            raise VistokError(f"{_name(targets, i)} and {_name(outputs, j)} cannot be compared: {' and '.join(sizes)}.")
        yield target[None] / 127.5 - 1, output[None] / 127.5 - 1


def summarise_pairs(values: Tensor) -> Measurement:
    """Returns mean and population deviation over pairs [n].

    Pairs of equal pictures, whose PSNR is infinite, are counted beside the mean of the others, which is None where
    there are no others.
    """
    equal = values.isinf()
    rest = values[~equal]
    details = {"identical pairs": float(equal.sum())} if equal.any() else {}
    if not len(rest):
        return Measurement(None, details=details)
    return Measurement(rest.mean().item(), rest.std(correction=0).item(), details)


def net_name(lpips: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Returns what protocols call the network of an LPIPS."""
    return getattr(lpips, "net", "own")


def compare_pictures(
    targets: Pictures,
    outputs: Pictures,
    convention: str = "default",
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[Result]:
    """Returns mean PSNR, SSIM and, given its network, LPIPS of pictures and their reconstructions.

    Args:
        targets: the originals.
        outputs: the reconstructions, under the same names.
        convention: ``"default"`` or ``"llamagen"``.
        lpips: [1, 3, H, W] pairs in [-1, 1] -> [1].

    Raises:
        VistokError: an unknown convention, sets that do not pair, or a pair of different sizes.
    """
    if convention not in CONVENTIONS:
        raise unknown_name("reconstruction convention", convention, list(CONVENTIONS))
    scores: dict[str, list[Tensor]] = {}
    for a, b in picture_pairs(targets, outputs):
        quality = CONVENTIONS[convention](a, b)
        if lpips is not None:
            quality["lpips"] = lpips(a, b)
        for name, value in quality.items():
            scores.setdefault(name, []).append(value)
    reference = f"{targets.name} ({len(targets)} pictures, {targets.digest})"
    results = []
    for name, values in scores.items():
        found = summarise_pairs(torch.cat(values))
        options = (f"convention={convention}",) if name != "lpips" else (f"net={net_name(lpips)}",)
        protocol = Protocol(name, reference=reference, samples=len(values), options=options)
        results.append(Result(outputs.name, found.value, protocol, found.std, found.details))
    return results


@dataclass(frozen=True)
class _Quality(Metric):
    """A metric of pairs under a convention (:data:`~vistok.eval.reconstruction.metrics.CONVENTIONS`)."""

    outputs = ()

    convention: str = "default"

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise unknown_name("reconstruction convention", self.convention, list(CONVENTIONS))

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        pair_by_name(reference.need_pictures(), samples.need_pictures())

    def _measure(self, which: str, reference: PictureSet, samples: PictureSet) -> Measurement:
        pairs = picture_pairs(reference.need_pictures(), samples.need_pictures())
        return summarise_pairs(torch.cat([CONVENTIONS[self.convention](a, b, (which,))[which] for a, b in pairs]))


@dataclass(frozen=True)
class Psnr(_Quality):
    """``psnr`` in dB, the mean over pairs of different pictures."""

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return self._measure("psnr", reference, samples)


@dataclass(frozen=True)
class Ssim(_Quality):
    """``ssim``."""

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return self._measure("ssim", reference, samples)


@dataclass(frozen=True)
class LpipsDistance(Metric):
    """``lpips`` with the network ``net``, whose weights are the files ``head`` and ``backbone``."""

    outputs = ()

    net: str = "alex"
    head: str = ""
    backbone: str = ""

    @cached_property
    def network(self) -> Lpips:
        """Returns the network.

        Raises:
            VistokError: the files are not named, absent or of another network.
        """
        if not self.head or not self.backbone:
            raise VistokError("lpips needs its weights: give lpips:net=alex:head=alex.pth:backbone=alexnet.pth.")
        return Lpips.from_files(self.net, Path(self.head), Path(self.backbone))

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        pair_by_name(reference.need_pictures(), samples.need_pictures())
        _ = self.network

    def settings(self) -> tuple[str, ...]:
        return (f"net={self.net}",)

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        pairs = picture_pairs(reference.need_pictures(), samples.need_pictures())
        return summarise_pairs(torch.cat([self.network(a, b) for a, b in pairs]))
