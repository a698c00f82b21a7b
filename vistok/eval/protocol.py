"""What a number was measured with: a metric value without its protocol cannot be compared with another.

Two FID values differ by several points when the pictures were resized differently, by about c/N when the sample
counts differ, and altogether when the networks differ. So every result carries its :class:`Protocol`, and
:func:`compare` refuses to put results of different protocols side by side.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

from vistok.errors import VistokError


@dataclass(frozen=True)
class Protocol:
    """Everything that must be equal before two values of a metric may be compared.

    Args:
        metric: ``"fid"``, ``"kid"``, ``"geneval"``...
        extractor: network that turns pictures into features (or detector, or CLIP), ``""`` where there is none.
        weights: digest of that network's weights.
        resize: name of the resize convention (:mod:`vistok.eval.sets.resize`).
        normalisation: what maps 0..255 to the network's input, e.g. ``"(x-128)/128"``.
        precision: number format that the network computed in, ``""`` where there is none.
        reference: what the samples were compared with (name, number of pictures, digest).
        samples: number of samples; FID and its kin are biased in it.
        options: the metric's own settings as ``name=value`` strings, in a fixed order.
    """

    metric: str
    extractor: str = ""
    weights: str = ""
    resize: str = ""
    normalisation: str = ""
    precision: str = ""
    reference: str = ""
    samples: int = 0
    options: tuple[str, ...] = ()

    def differences(self, other: Protocol) -> list[str]:
        """Returns one readable ``field: mine / theirs`` line for every field in which the two protocols differ."""
        return [
            f"{f.name}: {getattr(self, f.name)} / {getattr(other, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]


@dataclass(frozen=True)
class Result:
    """A metric value with its protocol.

    Args:
        name: what was evaluated, e.g. the folder of generated pictures.
        value: the metric; None where there is none, e.g. the PSNR of equal pictures.
        protocol: what it was measured with.
        std: spread over splits or subsets, where the metric has one.
        details: further figures of the same measurement (per task accuracies, interval bounds...).

    Raises:
        VistokError: a figure is NaN, or no number.
    """

    name: str
    value: float | None
    protocol: Protocol
    std: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, figure in {"value": self.value, "spread": self.std, **self.details}.items():
            if figure is not None and not isinstance(figure, Real):
                raise VistokError(
                    f"the {what} of {self.protocol.metric} for '{self.name}' is of type {type(figure).__name__}: give "
                    "a number, such as float(value)."
                )
            if figure is not None and math.isnan(figure):
                raise VistokError(
                    f"the {what} of {self.protocol.metric} for '{self.name}' is not a number: check the pictures and "
                    "the network's weights."
                )

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict) -> Result:
        protocol = dict(record["protocol"])
        protocol["options"] = tuple(_current_option(option) for option in protocol.get("options", ()))
        if protocol["metric"] == "kid" and len(protocol["options"]) == 2:
            protocol["options"] += ("order=reference-first",)
        return cls(**{**record, "protocol": Protocol(**protocol)})

    def __lt__(self, other: Result) -> bool:
        return compare([self, other])[0] is self and self.value != other.value


# Options as results of version 0.1 spell them; the values mean the same.
_RENAMED = {"kid_subsets": "subsets", "kid_subset_size": "subset_size", "inception_score_flavour": "flavour"}


def _current_option(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{_RENAMED.get(name, name)}{equals}{value}"


def compare(results: list[Result]) -> list[Result]:
    """Returns the results, sorted by value, if (and only if) all were measured with one protocol.

    Args:
        results: values of one metric for different samples.

    Returns:
        The results in ascending order of value, those without one last.

    Raises:
        VistokError: if two protocols differ; the sentence names every field that does.
    """
    if not results:
        raise VistokError("nothing to compare: give at least one result.")
    first = results[0]
    for other in results[1:]:
        if differences := first.protocol.differences(other.protocol):
            raise VistokError(
                f"'{first.name}' and '{other.name}' were measured with different protocols and cannot stand side by "
                f"side ({'; '.join(differences)}): measure both with the same one."
            )
    return sorted(results, key=lambda result: math.inf if result.value is None else result.value)


def read_results(path: str | Path) -> list[Result]:
    """Returns the results that a command wrote with ``--json``.

    Raises:
        VistokError: if the file is not such a file.
    """
    try:
        results = [Result.from_json(record) for record in json.loads(Path(path).read_text("utf-8"))]
    except OSError as error:
        raise VistokError(f"'{path}' cannot be read ({error.strerror}): name one that `--json FILE` wrote.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VistokError(f"'{path}' is no result file: name one that `vistok eval ... --json FILE` wrote.") from error
    if not results:
        raise VistokError(f"{path} holds no result: name a file that `vistok eval ... --json FILE` wrote.")
    return results
