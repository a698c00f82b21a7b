"""Curves that say more than a number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.sets.frechet import frechet_curve, frechet_distance_infinity
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.files import atomic_path, check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty matplotlib figure of so many inches, tied to no window.

    Raises:
        VistokError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VistokError("plots need matplotlib, which is not installed: pip install matplotlib.") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Writes a figure, in a folder that need not exist; the file is whole or absent.

    Raises:
        VistokError: the place cannot be written to.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def check_plot(path: str | Path | None) -> None:
    """Refuse a picture that could not be drawn, before hours of measuring come to nothing.

    Args:
        path: where the picture goes; None passes.

    Raises:
        VistokError: matplotlib is not installed, does not write this kind of file, or the place cannot be written to.
    """
    if path is None:
        return
    check_writable(path, folder=False)
    known = new_figure(1, 1).canvas.get_supported_filetypes()
    if Path(path).suffix.lower().removeprefix(".") not in known:
        raise VistokError(f"cannot draw into '{path}': end its name in .png, .svg or .pdf.")


def plot_frechet_curve(reference: FeatureStatistics, features: Tensor, path: str | Path) -> None:
    """Draws the Frechet distance against 1/N with its extrapolation to infinitely many samples.

    Args:
        reference: statistics of the reference set.
        features: [n, d] features of the samples.
        path: picture to write.

    Raises:
        VistokError: if matplotlib is not installed.
    """
    sizes, distances = frechet_curve(reference, features)
    limit = frechet_distance_infinity(sizes, distances)
    figure = new_figure(5, 3.5)
    axes = figure.add_subplot()
    axes.plot([1 / size for size in sizes], distances, "o", label="measured")
    axes.plot([0, 1 / sizes[0]], [limit, limit + (distances[0] - limit)], "--", label=f"N to infinity: {limit:.3f}")
    axes.set_xlabel("1 / number of samples")
    axes.set_ylabel("Frechet distance")
    axes.legend()
    save_figure(figure, path, dpi=100)
