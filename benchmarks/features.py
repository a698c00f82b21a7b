"""Features of pictures a second: this package's extraction against a plain loop in the style of pytorch-fid.

Both use the FID Inception network with the same (random) weights and resize, and in float32 give the same features. The
plain loop: workers decode to float tensors, the network runs as it was written in float32, and every batch is copied
back at once.

    python benchmarks/features.py --pictures 64 --threads 1
    python benchmarks/features.py --pictures 5000 --batch-size 128 --workers 8     # on a GPU
    python benchmarks/features.py --pictures 64 --threads 1 --precision bfloat16   # ours in bfloat16: another protocol
    python benchmarks/features.py --memory 1000 10000 50000                        # peak memory, small network
    python benchmarks/features.py --frechet 2048 --threads 1                       # the distance beside other packages

CPU seconds (of the process and its workers) are printed beside the rate: on a shared machine they are what compares.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vistok.data.images import ImageFolder
from vistok.eval.sets.extractors import Extractor, load_extractor
from vistok.eval.sets.features import extract_features
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.pictures import FolderPictures
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.models.vision.inception import FidInception, load_inception
from vistok.runtime import processes

Result = TypeVar("Result")


def to_float(image: Image.Image) -> Tensor:
    """Decoded picture -> float32 [3, H, W] in [0, 1], as torchvision's ToTensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def plain_loop(folder: Path, network: torch.nn.Module, device: torch.device, batch_size: int, workers: int) -> Tensor:
    """Features [N, 2048] as pytorch-fid takes them."""
    network = network.to(device).eval()
    loader = DataLoader(ImageFolder(folder, to_float), batch_size=batch_size, num_workers=workers)
    features = np.empty((len(loader.dataset), 2048))
    start = 0
    for batch in loader:
        with torch.no_grad():
            pixels = F.interpolate(batch.to(device), size=(299, 299), mode="bilinear", align_corners=False)
            found = network(2 * pixels - 1)["features"].cpu().numpy()
        features[start : start + len(found)] = found
        start += len(found)
    return torch.from_numpy(features)


def cpu_seconds() -> float:
    """CPU time of this process and of its finished workers."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in usage)


def measure(run: Callable[[], Result], pictures: int) -> tuple[Result, float, float]:
    """Result, pictures a second, CPU seconds a picture."""
    before, start = cpu_seconds(), time.perf_counter()
    result = run()
    return result, pictures / (time.perf_counter() - start), (cpu_seconds() - before) / pictures


def write_pictures(folder: Path, count: int, side: int) -> None:
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")


def compare_speed(arguments: argparse.Namespace, root: Path) -> None:
    """Both ways, one after the other, the given number of times; medians."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures, weights = root / "pictures", root / "inception.pt"
    pictures.mkdir()
    write_pictures(pictures, arguments.pictures, arguments.side)
    torch.manual_seed(0)
    torch.save(FidInception().state_dict(), weights)
    plain, ours = load_inception(weights), load_extractor("inception", weights, "pytorch-fid", arguments.precision)
    options = {"batch_size": arguments.batch_size, "workers": arguments.workers}
    processes()  # imports accelerate, which is start-up and not extraction
    rates: dict[str, list[tuple[float, float]]] = {"plain loop": [], "vistok": []}
    for repeat in range(arguments.repeats):
        expected, *speed = measure(lambda: plain_loop(pictures, plain, device, **options), arguments.pictures)
        rates["plain loop"].append(tuple(speed))
        folder = root / f"features-{repeat}"
        source = FolderPictures(pictures)
        run = measure(lambda: extract_features(source, ours, folder, **options).load(), arguments.pictures)  # noqa: B023
        found, *speed = run
        rates["vistok"].append(tuple(speed))
        difference = (found - expected).abs().max() / expected.abs().max()
        print(f"run {repeat}: largest difference of a feature, relative to the largest feature: {difference:.1e}")
    medians = {name: np.median(values, axis=0) for name, values in rates.items()}
    for name, (rate, cpu) in medians.items():
        print(f"{name:12} {rate:8.2f} pictures/s {cpu:8.4f} CPU seconds/picture")
    (slow, slow_cpu), (fast, fast_cpu) = medians["plain loop"], medians["vistok"]
    print(f"ratio: {fast / slow:.2f}x by the clock, {slow_cpu / fast_cpu:.2f}x by CPU time")


class Mean(torch.nn.Module):
    """A network that costs nothing, so that the memory is that of the extraction."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": F.adaptive_avg_pool2d(pixels, 8).flatten(1)}


def peak_memory(arguments: argparse.Namespace, root: Path) -> None:
    """Highest resident memory after each of growing sets, in one process: it must not rise with the number."""
    extractor = Extractor("mean", Mean(), "", "none", "x/255", prepare=lambda images: images.float() / 255)
    for count in sorted(arguments.memory):
        folder = root / str(count)
        folder.mkdir()
        write_pictures(folder, count, 8)
        shards = extract_features(FolderPictures(folder), extractor, root / f"features-{count}", workers=0)
        shards.statistics()
        print(f"{count:8d} pictures: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB")


def pytorch_fid(mean1, cov1, mean2, cov2) -> float:
    from pytorch_fid.fid_score import calculate_frechet_distance

    return calculate_frechet_distance(mean1, cov1, mean2, cov2)


def clean_fid(mean1, cov1, mean2, cov2) -> float:
    from cleanfid.fid import frechet_distance as theirs

    return theirs(mean1, cov1, mean2, cov2)


def torch_fidelity(mean1, cov1, mean2, cov2) -> float:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    sides = ({"mu": mean, "sigma": cov} for mean, cov in ((mean1, cov1), (mean2, cov2)))
    return fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


def torchmetrics(mean1, cov1, mean2, cov2) -> float:
    from torchmetrics.image.fid import _compute_fid

    return _compute_fid(*map(torch.from_numpy, (mean1, cov1, mean2, cov2)))


def compare_frechet(dim: int) -> None:
    """CPU seconds and value of the Frechet distance, here and in the packages that are installed."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -3, dim, dtype=torch.float64)
    features = (torch.randn(2 * dim, dim, generator=generator, dtype=torch.float64) * spectrum for _ in range(2))
    a, b = (FeatureStatistics.of(x) for x in features)
    moments = [x.numpy() for side in (a, b) for x in (side.mean, side.covariance)]
    ours, _, fast = measure(lambda: frechet_distance(a, b), 1)
    print(f"{'vistok':15} {ours:.12g} in {fast:.2f} CPU seconds")
    for package in (pytorch_fid, clean_fid, torch_fidelity, torchmetrics):
        try:
            package(*(x[..., :8][:8] for x in moments))  # imports, on a corner of the statistics
        except ImportError:
            print(f"{package.__name__:15} is not installed")
            continue
        theirs, _, slow = measure(lambda: float(package(*moments)), 1)  # noqa: B023
        print(f"{package.__name__:15} {theirs:.12g} in {slow:.2f} CPU seconds: {slow / fast:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of torch; by default all cores")
    parser.add_argument("--precision", default="float32", help="of this package's extraction: float32 or bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", help="instead of the speed: peak memory at these numbers")
    parser.add_argument(
        "--frechet", type=int, metavar="DIM", help="instead of the speed: the distance at this dimension"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.frechet:
        compare_frechet(arguments.frechet)
        return
    with tempfile.TemporaryDirectory() as root:
        (peak_memory if arguments.memory else compare_speed)(arguments, Path(root))


if __name__ == "__main__":
    main()
