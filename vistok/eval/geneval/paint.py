"""Pictures for GenEval from a vistok pipeline, and the ceiling that its tokenizer sets on the embedded world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vistok.data.images import to_pil
from vistok.eval.geneval import metadata as prompts_of
from vistok.eval.geneval.evaluate import score_images
from vistok.eval.geneval.folder import write_prompt_folder
from vistok.eval.geneval.load import load_detector
from vistok.eval.geneval.summary import GenEvalSummary, summarise
from vistok.jobs import ShardedJob
from vistok.progress import progress
from vistok.runtime import processes

if TYPE_CHECKING:
    from vistok.pipelines import Pipeline
    from vistok.samplers import Sampler, SamplingParams
    from vistok.tokenizers.interface import Tokenizer

RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


class PromptSample(NamedTuple):
    """One picture of a set, as a pipeline draws it: its number, and the prompt."""

    index: int
    condition: str


def paint_set(
    root: str | Path,
    records: Sequence[dict],
    pipe: Pipeline,
    per_prompt: int = 4,
    sampler: Sampler | None = None,
    params: SamplingParams | None = None,
    seed: int = 0,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Paints a prompt set in the published folder layout; prompts whose folder is complete are passed over.

    A manifest beside the folders says what paints them, so that a set never mixes the pictures of two models.

    Args:
        root: the set's folder.
        records: prompts with their metadata; number ``i`` goes to folder ``i``.
        pipe: what paints.
        per_prompt: pictures of each prompt.
        sampler, params, seed, batch_size: as in :meth:`vistok.pipelines.Pipeline.iterate`.
        rank, world: of this process, which paints every ``world``-th prompt.

    Raises:
        VistokError: a prompt that the model cannot follow, or a folder that holds another set.
    """
    pipe.check([record["prompt"] for record in records])
    identity = {
        **pipe.identity,
        "sampler": repr(sampler),
        "law": None if params is None else asdict(params),
        "seed": seed,
        "per_prompt": per_prompt,
        "prompts": prompts_of.digest(records),
    }
    job = ShardedJob(root, identity, len(records), "", (f"{i:05d}" for i in range(len(records))))
    todo = [i for i in range(rank, len(records), world) if not (Path(root) / f"{i:05d}" / "metadata.jsonl").exists()]
    samples = [PromptSample(i * per_prompt + j, records[i]["prompt"]) for i in todo for j in range(per_prompt)]
    waiting: list = []
    with progress("paint", len(samples) * pipe.model.tokens.length) as advance:
        for batch, output in pipe.iterate(samples, sampler, params, seed, batch_size, advance):
            job.claim()
            waiting += zip(batch, output.images, strict=True)
            while len(waiting) >= per_prompt:
                done, waiting = waiting[:per_prompt], waiting[per_prompt:]
                number = done[0][0].index // per_prompt
                write_prompt_folder(root, number, records[number], [image for _, image in done])


def scene_records(count: int, seed: int) -> Iterator[tuple[dict, int]]:
    """Yields metadata that hold of scenes, with the number of the scene each was read off.

    Args:
        count: how many scenes are looked at; one scene can serve several tasks.
        seed: which world.
    """
    from vistok.data.scenes import groups, relation, sample_scenes

    for number, scene in enumerate(groups(sample_scenes(count, seed))):
        first = scene[0]
        if len(scene) == 1 and first.count == 1:
            yield prompts_of.single_object(first.shape), number
            yield prompts_of.colors(first.shape, first.colour), number
        elif len(scene) == 1:
            yield prompts_of.counting(first.shape, first.count), number
        elif len(scene) == 2 and all(g.count == 1 for g in scene):
            second = scene[1]
            yield prompts_of.two_object(first.shape, second.shape), number
            yield prompts_of.color_attr((first.shape, first.colour), (second.shape, second.colour)), number
            if (where := relation(first.centre, second.centre)) is not None:
                yield prompts_of.position(first.shape, RELATION_WORDS[where], second.shape), number


@torch.inference_mode()
def reconstruction_ceiling(
    tokenizer: Tokenizer,
    side: int,
    count: int = 500,
    length: int | None = None,
    device: torch.device | str = "cpu",
) -> GenEvalSummary:
    """Returns what perfect pictures score after a tokenizer's reconstruction: no generator can be expected to beat it.

    Args:
        tokenizer: encodes and decodes.
        side: of the scenes in pixels.
        count: scenes that are looked at.
        length: how many first tokens of a picture are decoded; all if None.
        device: where the tokenizer runs.
    """
    from vistok.data.scenes import render, sample_scenes
    from vistok.data.scenes.splits import GENEVAL_CEILING

    scenes = sample_scenes(count, GENEVAL_CEILING)
    pictures = []
    for start in range(0, count, 64):
        images = render(scenes[start : start + 64], side).to(device)
        pictures += to_pil(tokenizer.decode(tokenizer.encode(images)[:, :length]))
    detector, colours = load_detector("scenes")
    read = [(record, pictures[number], f"scene {number}") for record, number in scene_records(count, GENEVAL_CEILING)]
    return summarise(list(score_images(read, detector, colours)))


def paint_for_eval(
    root: Path,
    pipe: Pipeline,
    metadata: Path | None,
    per_prompt: int,
    per_task: int,
    params: Mapping[str, Any],
    sampler: str | None,
    seed: int,
    batch_size: int,
    ceiling: bool,
) -> GenEvalSummary | None:
    """Paints this process's share of a prompt set.

    Args:
        root: the set's folder.
        pipe: what paints.
        metadata: prompts; those of the embedded world, ``per_task`` of each task, if None.
        per_prompt, seed, batch_size: see :func:`paint_set`.
        sampler: its name with options; the model's plain one if None.
        params: arguments of :meth:`vistok.pipelines.Pipeline.sampling_params`.
        ceiling: whether to measure what the tokenizer's reconstruction allows.

    Returns:
        The ceiling, or None if it was not asked for or another process measures it.
    """
    from vistok.data.scenes import COLOURS, SHAPES

    state = processes()
    if metadata is None:
        records = prompts_of.scene_prompts(SHAPES, COLOURS, seed, per_task)
    else:
        records = prompts_of.read_metadata(metadata)
    chosen = pipe.sampler(sampler)
    rank, world = state.process_index, state.num_processes
    paint_set(root, records, pipe, per_prompt, chosen, pipe.sampling_params(**params), seed, batch_size, rank, world)
    state.wait_for_everyone()
    if not ceiling or not state.is_main_process:
        return None
    drawn = pipe.model.tokens.length if pipe.tokenizer.capabilities.layout == "sequence" else None
    return reconstruction_ceiling(pipe.tokenizer, pipe.size, length=drawn, device=pipe.device)
