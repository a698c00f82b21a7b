"""Samplers on one model: the same prompts and seeds, target forwards, accepted lengths, seconds, and scores of the
pictures.

Scores are the share of GenEval scene prompts that the exact detector finds fulfilled, and the Frechet distance to
held-out scenes where the scene features are installed; both are those of the pictures that were timed. A first line
says what a forward pass costs by its width.

Example: ``python benchmarks/samplers.py --per-task 8 --repeats 3 --out samplers/``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vistok.data.images import to_pil
from vistok.data.scenes import COLOURS, SHAPES, render, sample_scenes
from vistok.errors import VistokError
from vistok.eval.geneval import scene_prompts
from vistok.eval.geneval.evaluate import score_images
from vistok.eval.geneval.load import load_detector
from vistok.pipelines import EMBEDDED_GUIDANCE, Pipeline, Sample, pipeline
from vistok.samplers import Law
from vistok.samplers.bench import bench, plot, standard_samplers, table
from vistok.samplers.stats import Stats
from vistok.samplers.window import best_window, forward_cost
from vistok.zoo import cards

HELD_OUT = 2_000_003  # a world that no recipe trains on


def painter(pipe: Pipeline, prompts: list[str], law: Law, seed: int, batch_size: int):
    """Draws the pictures of all prompts with a sampler."""
    samples = [Sample(i, prompt) for i, prompt in enumerate(prompts)]

    def paint(sampler) -> tuple[Tensor, Stats]:
        parts = [output for _, output in pipe.iterate(samples, sampler, law, seed, batch_size)]
        return torch.cat([part.tokens for part in parts]), Stats.merged([part.stats for part in parts])

    return paint


def scorer(pipe: Pipeline, records: list[dict]) -> Callable[[Tensor], Mapping[str, float]]:
    """Judges codes by the pictures that they stand for."""
    detector, colours = load_detector("scenes")
    distance = frechet(pipe.size)

    @torch.inference_mode()
    def score(tokens: Tensor) -> Mapping[str, float]:
        grid = pipe.model.config.grid
        images = pipe.vq.decode(tokens.view(-1, grid, grid)).float()
        pictures = zip(records, to_pil(images), map(str, range(len(records))), strict=True)
        right = [record["correct"] for record in score_images(pictures, detector, colours)]
        return {"detector": sum(right) / len(right)} | ({"FID": distance(images)} if distance else {})

    return score


def frechet(size: int, held_out: int = 2048) -> Callable[[Tensor], float] | None:
    """Frechet distance of pictures to held-out scenes, or None where the features are not installed."""
    from vistok.eval.frechet import frechet_distance
    from vistok.eval.scenes_features import load_scene_features
    from vistok.eval.statistics import FeatureStatistics

    try:
        network = load_scene_features()
    except VistokError:
        return None
    with torch.inference_mode():
        chunks = [render(sample_scenes(64, HELD_OUT, start), size) for start in range(0, held_out, 64)]
        real = FeatureStatistics.of(torch.cat([network(chunk)["features"] for chunk in chunks]))
    return lambda images: frechet_distance(real, FeatureStatistics.of(network(images.clamp(-1, 1))["features"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llamagen")
    parser.add_argument("--cfg", type=float, default=EMBEDDED_GUIDANCE)
    parser.add_argument("--per-task", type=int, default=8, help="prompts of each of the six GenEval tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", help="samplers whose names contain one of these words, after plain decoding"
    )
    parser.add_argument("--out", type=Path, help="folder for rows.json and speed.png")
    args = parser.parse_args()
    pipe = pipeline(args.model)
    law = Law(guidance=args.cfg)
    rows_of_batch = args.batch_size * (2 if law.guided else 1)
    cost = forward_cost(pipe.model, rows_of_batch)
    widths = ", ".join(f"{width}: {seconds * 1e3:.2f} ms" for width, seconds in cost.items())
    print(
        f"forward pass of {rows_of_batch} rows by tokens of a row: {widths}; window {best_window(cost)}\n", flush=True
    )
    drafter = any(card.name == "llamagen-mini-eagle" and card.embedded for card in cards())
    samplers = standard_samplers(pipe.vq.quantize.embedding.weight, drafter)
    if args.only:
        kept = [name for name in samplers if name == "ar" or any(word in name for word in args.only)]
        samplers = {name: samplers[name] for name in kept}
    records = scene_prompts(list(SHAPES), list(COLOURS), args.seed, args.per_task)
    paint = painter(pipe, [record["prompt"] for record in records], law, args.seed, args.batch_size)
    paint(samplers["ar"][0])  # warms up
    rows = bench(samplers, paint, scorer(pipe, records), args.repeats, lambda row: print(row.name, flush=True))
    print(f"\n{len(records)} pictures, batch {args.batch_size}, {torch.get_num_threads()} threads\n{table(rows)}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        document = {"forward_cost": cost, "rows": [row.to_dict() for row in rows]}
        (args.out / "rows.json").write_text(json.dumps(document, indent=2) + "\n")
        plot(rows, args.out / "speed.png")


if __name__ == "__main__":
    main()
