"""Features of any number of pictures: decoded by workers, computed in shards, resumable, spread over processes.

Pictures travel as uint8; the network runs channels-last and nothing is read back from the device before a shard ends.
The composition of every batch is fixed by its position, and shards are reduced in order, so the result is the same for
any number of processes and after any number of interruptions.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vistok.errors import VistokError
from vistok.eval.sets.extractors import Extractor
from vistok.eval.sets.pictures import Pictures
from vistok.eval.sets.statistics import FeatureStatistics, check_finite
from vistok.files import atomic_path, check_writable
from vistok.jobs import ShardedJob
from vistok.progress import progress
from vistok.runtime import processes


class _Batches(Dataset):
    """Batches of decoded pictures; a user's mistake travels as a value, since a worker would bury it in a traceback."""

    def __init__(
        self, pictures: Pictures, decode: Callable[[Tensor], Tensor] | None, bounds: list[tuple[int, int]]
    ) -> None:
        self.pictures, self.decode, self.bounds = pictures, decode, bounds

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> list[Tensor] | VistokError:
        """Pictures of one batch as stacks of equal size [k, 3, H, W], in order."""
        try:
            pictures = self.pictures.batch(*self.bounds[index])
        except VistokError as error:
            return error
        if self.decode is not None:
            pictures = [self.decode(picture) for picture in pictures]
        if all(picture.shape == pictures[0].shape for picture in pictures):
            return [torch.stack(pictures)]  # one tensor to hand over instead of many
        return [picture[None] for picture in pictures]


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps float32 what it says while it lasts: TF32 would move resized pixels and scores in the third digit."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@dataclass
class FeatureShards:
    """Features on disk, in the order of the pictures.

    Args:
        job: the complete job.
        count: number of pictures.
        computed: pictures that this process computed in this run (the others were there).
        seconds: time that took.
    """

    job: ShardedJob
    count: int
    computed: int
    seconds: float

    def shards(self, output: str = "features") -> Iterator[Tensor]:
        """Yields shards [n, D] of one output, in order."""
        for shard in range(self.job.shards):
            yield load_file(self.job.path(shard))[output]

    def load(self, output: str = "features") -> Tensor:
        """Returns all of one output at once, [count, D]."""
        return torch.cat(list(self.shards(output)))

    def statistics(self, output: str = "features") -> FeatureStatistics:
        """Returns mean and covariance of one output; the memory does not depend on the number of pictures."""
        statistics = None
        for features in self.shards(output):
            statistics = statistics or FeatureStatistics.empty(features.shape[1])
            statistics.update(features)
        return statistics


def _bounds(shards: list[int], shard_size: int, batch_size: int, count: int) -> list[tuple[int, int]]:
    """Batches of the given shards; none crosses the end of its shard."""
    return [
        (start, min(start + batch_size, (shard + 1) * shard_size, count))
        for shard in shards
        for start in range(shard * shard_size, min((shard + 1) * shard_size, count), batch_size)
    ]


@torch.inference_mode()
def extract_features(
    pictures: Pictures,
    extractor: Extractor,
    folder: str | Path,
    batch_size: int = 64,
    shard_size: int = 1024,
    workers: int = 2,
    outputs: tuple[str, ...] = ("features",),
) -> FeatureShards:
    """Returns the features of all pictures, in a folder of shards that a later call goes on from.

    Under ``accelerate launch`` every process computes its share; all need the same ``folder``.

    Args:
        pictures: what to look at.
        extractor: what looks; moved to this process's device.
        folder: shards and manifest of the job, in a folder named by the pictures' fingerprint.
        batch_size: pictures a forward pass.
        shard_size: pictures a file; at most this many are computed again after a kill.
        workers: processes that decode; 0 decodes in this one.
        outputs: which outputs of the network are kept.

    Raises:
        VistokError: an unreadable picture, one whose features are no numbers, or a folder that holds another job.
    """
    state = processes()
    identity = {
        "pictures": f"{pictures.name} {len(pictures)} {pictures.fingerprint}",
        "extractor": f"{extractor.name} {extractor.weights}",
        "resize": extractor.resize,
        "precision": extractor.precision,
        "batch_size": batch_size,
        "shard_size": shard_size,
        "outputs": list(outputs),
    }
    # Pictures that were written again get a place of their own: a cache is never stale, and need not be cleared.
    job = ShardedJob(Path(folder) / pictures.fingerprint, identity, -(-len(pictures) // shard_size), ".safetensors")
    pending = job.pending(state.process_index, state.num_processes)
    bounds = _bounds(pending, shard_size, batch_size, len(pictures))
    loader = DataLoader(
        _Batches(pictures, extractor.decode, bounds),
        batch_size=None,
        num_workers=min(workers, len(bounds)),
        pin_memory=state.device.type == "cuda",
    )
    extractor.network.to(state.device, memory_format=torch.channels_last)
    start = time.perf_counter()
    done: list[dict[str, Tensor]] = []
    with full_precision(), progress("features", sum(stop - first for first, stop in bounds)) as advance:
        for (_, stop), batch in zip(bounds, loader, strict=True):
            if isinstance(batch, VistokError):
                raise batch
            pixels = torch.cat([extractor.prepare(group.to(state.device, non_blocking=True)) for group in batch])
            result = extractor.run(pixels)
            done.append({name: result[name] for name in outputs})
            if stop % shard_size == 0 or stop == len(pictures):
                tensors = {name: torch.cat([part[name] for part in done]).cpu() for name in outputs}
                check_finite(*tensors.values())
                job.claim()
                with atomic_path(job.path((stop - 1) // shard_size)) as temporary:
                    save_file(tensors, temporary)
                done.clear()
                advance(len(tensors[outputs[0]]))
    seconds = time.perf_counter() - start
    state.wait_for_everyone()
    job.check_complete()
    return FeatureShards(job, len(pictures), sum(stop - first for first, stop in bounds), seconds)


@contextmanager
def work_folder(cache: str | Path | None, name: str) -> Iterator[Path]:
    """Yields where the shards of a set live: kept under ``cache``, or in a temporary folder of all processes."""
    if cache is not None:
        check_writable(cache, folder=True)
        yield Path(cache) / name
        return
    from accelerate.utils import broadcast_object_list

    state = processes()
    with tempfile.TemporaryDirectory(prefix="vistok-") as own:
        shared = [own]
        if state.num_processes > 1:
            broadcast_object_list(shared)
        yield Path(shared[0]) / name
        state.wait_for_everyone()
