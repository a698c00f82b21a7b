"""From samples to files: one picture, one grid, or a folder job that goes on where it was killed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vistok.data.caption_lines import METADATA
from vistok.data.images import Upscale, grid, save_image
from vistok.errors import VistokError
from vistok.files import atomic_path, is_folder_target
from vistok.jobs import ShardedJob
from vistok.progress import progress
from vistok.runtime import process_rank, processes
from vistok.samplers.stats import Stats
from vistok.samplers.trace import paint_trace

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.pipelines import Output, Pipeline, Sample
    from vistok.samplers import Sampler, SamplingParams

Part = tuple[int, Stats | None]  # images that a process drew, and the statistics of their batches
CODES = ".npy"  # suffix of files of codes, where there is no decoder
NO_DECODER = (
    "transformers has no decoder for this model's codes, so codes are saved: give --tokenizer vqgan.ckpt for pictures."
)
TRACED = 16  # samples on the sheet of ``trace``


@dataclass
class Summary:
    """What a job did.

    Attributes:
        pictures: painted now; ``skipped`` ones were there from an earlier run.
        skipped: see above.
        seconds: wall time of the painting, loading of the model not counted.
        out: where the pictures are.
        stats: of the sampler, None if nothing was left to do.
    """

    pictures: int
    skipped: int
    seconds: float
    out: Path
    stats: Stats | None

    def to_dict(self) -> dict:
        """As plain JSON values."""
        figures = {"pictures": self.pictures, "skipped": self.skipped, "seconds": self.seconds, "out": str(self.out)}
        if self.stats is None:
            return figures
        # The sampler's own seconds are the sum over all processes.
        return self.stats.summary() | figures | {"tokens_per_second": self.tokens_per_second}

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all pictures over the wall time."""
        return 0.0 if self.stats is None else self.stats.step_of.numel() / self.seconds

    def __str__(self) -> str:
        done = f"{self.pictures} picture{'' if self.pictures == 1 else 's'} in {self.out}"
        if self.skipped:
            done += f" ({self.skipped} were already there)"
        if self.stats is None:
            return f"{done}: nothing was left to do"
        figures = self.stats.summary()
        return (
            f"{done}: {figures['target_forwards']:.0f} steps a picture, "
            f"{figures['mean_accepted_length']:.2f} tokens a step, "
            f"{self.tokens_per_second:.0f} tokens a second, {self.seconds:.1f} s"
        )


def paint_to(
    out: str | Path,
    pipe: Pipeline,
    samples: Sequence[Sample],
    sampler: Sampler,
    params: SamplingParams,
    seed: int = 0,
    batch_size: int = 8,
    trace: str | Path | None = None,
    upscale: Upscale | None = None,
) -> Summary | None:
    """Paints samples into a picture file (several make a grid), or into a folder, one PNG each.

    A folder also gets ``metadata.jsonl`` and a manifest, with its first picture and not before; the same call goes on
    where an earlier one was killed. Under ``accelerate launch`` the processes share a folder job. Where a model has no
    decoder, codes are saved instead of pictures, in the format of ``numpy.load``.

    Args:
        out: a file, or a folder.
        pipe: the model.
        samples: what to paint.
        sampler, params, seed: as of ``Pipeline.iterate``.
        batch_size: pictures that are drawn together.
        trace: file for a sheet of the maps of accepted tokens, of at most 16 samples.
        upscale: enlarges each picture that is written.

    Returns:
        What was done; None on all processes but the first.

    Raises:
        VistokError: the folder holds another job, several processes were asked for one file, or a trace of what is no
            picture.
    """
    rank, world = process_rank()
    out, codes_only, is_file = Path(out), pipe.tokenizer is None, not is_folder_target(out)
    if is_file and world > 1:
        raise VistokError(f"{world} processes cannot share the one file '{out}': give a folder as --out.")
    if trace is not None:
        _check_trace(pipe)
    if codes_only:
        print(f"vistok: {NO_DECODER}", file=sys.stderr)
        out = out.with_suffix(CODES) if is_file else out
    job = None if is_file else _folder_job(out, pipe, samples, sampler, params, seed, upscale)
    if job is not None and getattr(sampler, "window", None) == "auto":  # one window for all processes and resumes
        settled = job.settle("window", lambda: getattr(sampler.tuned(pipe.model, params, batch_size), "window", 1))
        sampler = sampler.with_window(settled)
    wanted = list(samples) if job is None else [samples[i] for i in job.pending(rank, world)]
    save: Callable[[Any, Path], None] = save_codes if codes_only else save_image
    began = time.perf_counter()
    stats: list[Stats] = []
    sheet: list[Any] = []  # arrays of codes where there is no decoder
    traces: list[Image] = []
    with progress(f"paint {len(wanted)}", len(wanted) * pipe.model.tokens.length) as advance:
        for batch, output in pipe.iterate(wanted, sampler, params, seed, batch_size, advance):
            stats.append(output.stats)
            if trace is not None and len(traces) < TRACED:
                maps = [paint_trace(x, output.stats, i, pipe.model.tokens.line) for i, x in enumerate(output.images)]
                traces += maps[: TRACED - len(traces)]
            drawn = _drawn(output, codes_only, upscale)
            if job is None:
                sheet += drawn
                continue
            if len(stats) == 1:
                _begin(job, pipe, samples, seed, rank)
            for sample, each in zip(batch, drawn, strict=True):
                save(each, job.path(sample.index))
    if job is None:
        save(np.stack(sheet) if codes_only else sheet[0] if len(sheet) == 1 else grid(sheet), out)
    if trace is not None and rank == 0:
        if traces:
            save_image(grid(traces), trace)
        else:
            print("vistok: there was nothing left to draw, and so there is no trace of it.", file=sys.stderr)
    part = (len(wanted), type(stats[0]).merged(stats) if stats else None)
    parts = [part] if world == 1 else _gathered(part)  # waits for all processes, whose pictures are counted below
    seconds = time.perf_counter() - began
    if rank != 0:
        return None
    painted, stats = sum(count for count, _ in parts), [each for _, each in parts if each is not None]
    return Summary(painted, len(samples) - painted, seconds, out, type(stats[0]).merged(stats) if stats else None)


def _check_trace(pipe: Pipeline) -> None:
    """Raise VistokError where there is no picture that a trace could be painted beside."""
    if pipe.model.tokens.layout == "sequence":
        raise VistokError("a trace maps tokens onto a picture, and a sequence has no places in it: leave --trace out.")
    if pipe.tokenizer is None:
        raise VistokError("a trace is painted beside a picture, and there is no decoder: give --tokenizer.")


def _drawn(output: Output, codes_only: bool, upscale: Upscale | None) -> list[Image] | list[np.ndarray]:
    """What is written of a batch: its codes, or its pictures."""
    if codes_only:
        return [codes.numpy() for codes in output.tokens]
    return output.images if upscale is None else [upscale(image) for image in output.images]


def save_codes(codes: np.ndarray, path: Path) -> None:
    """Write codes as ``numpy.load`` reads them; the file is whole or absent."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, codes)


def _gathered(part: Part) -> list[Part]:
    """What each process of the job drew."""
    from accelerate.utils import gather_object

    processes()  # joins the others
    return gather_object([part])


def _folder_job(
    out: Path,
    pipe: Pipeline,
    samples: Sequence[Sample],
    sampler: Sampler,
    params: SamplingParams,
    seed: int,
    upscale: Upscale | None,
) -> ShardedJob:
    """The job of a folder, whose identity is everything that its pictures depend on."""
    asked = json.dumps([[s.index, s.condition] for s in samples])
    identity = {
        **pipe.identity,
        "sampler": repr(sampler),
        "law": asdict(params),
        "seed": seed,
        "conditions": hashlib.sha256(asked.encode()).hexdigest(),
    }
    if upscale is not None:
        identity["upscale"] = asdict(upscale)
    return ShardedJob(out, identity, len(samples), CODES if pipe.tokenizer is None else ".png", [METADATA])


def _begin(job: ShardedJob, pipe: Pipeline, samples: Sequence[Sample], seed: int, rank: int) -> None:
    """Makes the folder the job's own, once there are pictures to write; the first process names them all."""
    job.claim()
    if rank != 0:
        return
    with atomic_path(job.folder / METADATA) as path, path.open("w", encoding="utf-8") as file:
        for s in samples:
            line = {"file": job.path(s.index).name, pipe.conditional_on: s.condition, "seed": seed, "index": s.index}
            file.write(json.dumps(line) + "\n")
