"""Stored statistics: the ``.npz`` layouts of pytorch-fid, clean-fid and ADM's evaluator, and this package's own.

All of them hold ``mu`` [d] and ``sigma`` [d, d]; ADM's add ``mu_s`` and ``sigma_s`` of the spatial features, and ours
adds the number of pictures and the protocol. A file written here is therefore read by the other three as it is.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vistok.errors import VistokError
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.files import atomic_path, check_writable

# clean-fid names its files {name}_{mode}_{split}_{res}.npz
CLEAN_FID_MODES = {"_legacy_pytorch_": "pytorch-fid", "_legacy_tensorflow_": "tf1", "_clean_": "clean"}


@dataclass(frozen=True)
class StoredStatistics:
    """Statistics read from a file; what the file does not say is None.

    Args:
        features: of the features.
        spatial: of the spatial features (sFID).
        count: number of pictures.
        extractor: network that made them.
        weights: digest of its weights.
        resize: resize convention.
        precision: of the network; float32 unless the file says otherwise, as all published ones are.
        digest: of the stored mean.
    """

    features: FeatureStatistics
    spatial: FeatureStatistics | None
    count: int | None
    extractor: str | None
    weights: str | None
    resize: str | None
    precision: str
    digest: str


def npz_keys(path: str | Path) -> set[str]:
    """Returns the names of the arrays in an ``.npz`` file.

    Raises:
        VistokError: if it is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except FileNotFoundError as error:
        raise VistokError(f"there is no file '{path}'.") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise VistokError(f"'{path}' is no .npz file: give statistics (mu, sigma) or a batch (arr_0).") from error


def load_statistics(path: str | Path) -> StoredStatistics:
    """Returns the statistics in a file of any of the four layouts.

    Raises:
        VistokError: if the file holds none, or they do not fit together.
    """
    path = Path(path)
    keys = npz_keys(path)
    if not {"mu", "sigma"} <= keys:
        raise VistokError(
            f"'{path}' holds no statistics: expected arrays mu and sigma, found {', '.join(sorted(keys))}."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("mu", "sigma", "mu_s", "sigma_s", "n", "protocol") if key in keys}
        protocol = json.loads(str(arrays["protocol"])) if "protocol" in arrays else {}
        count = int(arrays["n"]) if "n" in arrays else None
    except (OSError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise VistokError(f"'{path}' is damaged, or holds more than numbers ({error}): make it again.") from error
    resize = protocol.get("resize")
    if resize is None and "mu_s" in arrays:
        resize = "tf1"
    if resize is None:
        resize = next((convention for mode, convention in CLEAN_FID_MODES.items() if mode in path.name.lower()), None)
    spatial = _moments(path, arrays, "mu_s", "sigma_s", count) if "mu_s" in arrays else None
    return StoredStatistics(
        features=_moments(path, arrays, "mu", "sigma", count),
        spatial=spatial,
        count=count,
        extractor=protocol.get("extractor"),
        weights=protocol.get("weights"),
        resize=resize,
        precision=protocol.get("precision", "float32"),
        digest=hashlib.sha256(np.ascontiguousarray(arrays["mu"], np.float64).tobytes()).hexdigest()[:12],
    )


def _moments(path: Path, arrays: dict, mu: str, sigma: str, count: int | None) -> FeatureStatistics:
    if sigma not in arrays:
        raise VistokError(f"'{path}' has {mu} but no {sigma}.")
    mean, covariance = arrays[mu], arrays[sigma]
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise VistokError(f"'{path}': {mu} is {mean.dtype} and {sigma} {covariance.dtype}, expected floating numbers.")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise VistokError(
            f"'{path}': {mu} {list(mean.shape)} and {sigma} {list(covariance.shape)} do not fit together."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise VistokError(f"'{path}': {mu} or {sigma} contains NaN or infinity: make the statistics again.")
    # Without a stored count the covariance is all that may be asked for; any count of 2 or more gives it back.
    return FeatureStatistics.from_moments(
        torch.from_numpy(mean).double(), torch.from_numpy(covariance).double(), count or 2
    )


def check_statistics_path(path: str | Path) -> None:
    """Raise VistokError unless statistics can be written to ``path``, before hours are spent on them."""
    if Path(path).suffix != ".npz":
        raise VistokError(f"statistics are written as .npz, got '{path}'.")
    check_writable(path, folder=False)


def save_statistics(
    path: str | Path,
    features: FeatureStatistics,
    extractor: str,
    weights: str,
    resize: str,
    spatial: FeatureStatistics | None = None,
    precision: str = "float32",
) -> None:
    """Writes statistics with their protocol; pytorch-fid, clean-fid and ADM's evaluator read them too.

    Args:
        path: an ``.npz`` file; whole or absent.
        features: statistics of the features.
        extractor: network that made them.
        weights: digest of its weights.
        resize: resize convention.
        spatial: statistics of the spatial features.
        precision: of the network.

    Raises:
        VistokError: for another suffix, or a folder that cannot be written to.
    """
    check_statistics_path(path)
    arrays = {"mu": features.mean.cpu().numpy(), "sigma": features.covariance.cpu().numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.cpu().numpy(), "sigma_s": spatial.covariance.cpu().numpy()}
    protocol = json.dumps({"extractor": extractor, "weights": weights, "resize": resize, "precision": precision})
    with atomic_path(path) as temporary:
        np.savez(temporary, n=features.count, protocol=protocol, **arrays)
