"""What a metric of pictures is: one object in one file, whose fields are its options.

``vistok eval measure`` (and ``fid``, its best-known name) runs any of :data:`METRICS` by name, with options behind
colons: ``kid:subset_size=50``. Another package adds one by an entry point in the group ``vistok.metrics``.

Example:
    ::

        @dataclass(frozen=True)
        class MeanBrightness(Metric):
            outputs = ()  # it looks at pixels, not at features
            white: float = 255.0

            def compute(self, reference, samples):
                pictures = samples.need_pictures().batch(0, len(samples.pictures))
                return Measurement(sum(p.float().mean().item() for p in pictures) / len(pictures) / self.white)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vistok.errors import VistokError
from vistok.registry import Registry

if TYPE_CHECKING:
    from vistok.eval.sets.features import FeatureShards
    from vistok.eval.sets.pictures import Pictures
    from vistok.eval.sets.reference import StoredStatistics
    from vistok.eval.sets.statistics import FeatureStatistics


@dataclass(frozen=True)
class PictureSet:
    """One side of a comparison: pictures, stored statistics, features, or several of them.

    Attributes:
        name: of the folder or file.
        label: name, number of pictures and digest, for the protocol.
        stored: statistics from a file; they take precedence over computed ones.
        pictures: the pictures themselves.
        shards: features of the pictures, once they were extracted.
    """

    name: str
    label: str
    stored: StoredStatistics | None = None
    pictures: Pictures | None = None
    shards: FeatureShards | None = None

    @property
    def count(self) -> int | None:
        """Returns how many pictures there are; None where a file of statistics does not say."""
        if self.pictures is not None:
            return len(self.pictures)
        return None if self.stored is None else self.stored.count

    def statistics(self, output: str = "features") -> FeatureStatistics:
        """Returns mean and covariance of one output of the network.

        Raises:
            VistokError: the file of statistics lacks them.
        """
        if self.stored is not None:
            chosen = self.stored.features if output == "features" else self.stored.spatial
            if chosen is None:
                raise VistokError(f"'{self.name}' holds no statistics of spatial features, which sFID needs.")
            return chosen
        return self.need_shards().statistics(output)

    def need_pictures(self) -> Pictures:
        """Returns the pictures.

        Raises:
            VistokError: there are statistics only.
        """
        if self.pictures is None:
            raise VistokError(
                f"'{self.name}' holds statistics only, and this metric needs pictures: give a folder or an .npz batch."
            )
        return self.pictures

    def need_shards(self) -> FeatureShards:
        """Returns the features.

        Raises:
            VistokError: there are statistics only.
        """
        self.need_pictures()
        if self.shards is None:
            raise VistokError(f"no features of '{self.name}' were extracted: name them in the metric's outputs.")
        return self.shards


@dataclass(frozen=True)
class Measurement:
    """What a metric found.

    Attributes:
        value: the figure; None where there is none, e.g. the PSNR of equal pictures.
        std: spread over splits, subsets or pictures.
        details: further figures by name.
    """

    value: float | None
    std: float | None = None
    details: dict[str, float] = field(default_factory=dict)


class Metric(ABC):
    """A measure of pictures; subclasses are frozen dataclasses whose fields are the metric's options.

    Attributes:
        outputs: outputs of the feature extractor that it reads; none for a metric of pixels, which needs no extractor.
        extractors: extractors on which it is defined; empty for any.
        from_statistics: whether a file of statistics can stand for the reference.
        reads_reference: whether its value depends on the reference.
    """

    outputs: ClassVar[tuple[str, ...]] = ("features",)
    extractors: ClassVar[tuple[str, ...]] = ()
    from_statistics: ClassVar[bool] = False
    reads_reference: ClassVar[bool] = True

    def check(self, reference: PictureSet, samples: PictureSet) -> None:  # noqa: B027
        """Refuse sets that cannot be measured, before a picture is read; features are not there yet.

        Raises:
            VistokError: e.g. too few pictures.
        """

    @abstractmethod
    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        """Returns the value for samples against a reference."""

    def settings(self) -> tuple[str, ...]:
        """Returns the options as ``name=value``, as the protocol holds them."""
        options: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        return tuple(f"{option.name}={getattr(self, option.name)}" for option in options)

    def title(self, name: str, extractor: str) -> str:
        """Returns what reports call the value that a metric of this name has on an extractor."""
        return name


def check_counts(what: str, least: int, *sides: PictureSet) -> None:
    """Refuse sets with too few pictures.

    Args:
        what: what needs them, for the sentence.
        least: pictures that each must have.
        sides: sets; those of unknown size pass.

    Raises:
        VistokError: one has fewer.
    """
    for side in sides:
        if side.count is not None and side.count < least:
            pictures = "picture" if side.count == 1 else "pictures"
            raise VistokError(f"{what} needs at least {least} pictures, and '{side.name}' has {side.count} {pictures}.")


METRICS = Registry(
    "metric",
    {
        "fid": "vistok.eval.sets.frechet:Frechet",
        "sfid": "vistok.eval.sets.frechet:SpatialFrechet",
        "fid-infinity": "vistok.eval.sets.frechet:FrechetInfinity",
        "kid": "vistok.eval.sets.kernel:KernelDistance",
        "is": "vistok.eval.sets.inception_score:InceptionScore",
        "precision": "vistok.eval.sets.manifold:PrecisionRecall",
        "vendi": "vistok.eval.sets.manifold:Vendi",
        "cmmd": "vistok.eval.sets.kernel:ClipDiscrepancy",
        "psnr": "vistok.eval.reconstruction.paired:Psnr",
        "ssim": "vistok.eval.reconstruction.paired:Ssim",
        "lpips": "vistok.eval.reconstruction.paired:LpipsDistance",
    },
    "vistok.metrics",
    needs=("outputs", "extractors", "from_statistics", "reads_reference", "check", "compute", "settings", "title"),
)
