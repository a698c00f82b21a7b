"""What a number format costs and gains: distance of its law from float32's, scores and time, over the same prompts and
seeds.

The law is that of each token (with guidance, temperature and truncation) behind the same tokens, those of float32's own
pictures. *Total variation* is half the sum of differences of the probabilities, which is also how often a token must
differ; KL is of float32 from the other in nats. The detector's score is the share of pictures that the detector of
scenes finds fulfilled, and its difference from float32's over the same prompts, both with 95 % intervals. Formats take
turns, batch by batch; times are of the processor.

    python benchmarks/dtypes.py --prompts-per-task 8 --batch-size 8 --threads 1
    python benchmarks/dtypes.py --products 1 2 16 --threads 1     # instead: the products of a GPT-B decode step
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import vistok
from vistok.data.scenes import COLOURS, SHAPES
from vistok.eval.decoding.comparison import Entry, Trial, run_in_turn
from vistok.eval.decoding.estimate import ratio_estimate
from vistok.eval.decoding.images import images_of, timed
from vistok.eval.decoding.scores import DETECTOR, DISTANCE, GAIN, score_trials
from vistok.eval.geneval.metadata import scene_prompts
from vistok.ops import combine_guidance
from vistok.ops.linear import Int8Linear, PackedLinear
from vistok.pipelines import Pipeline, Sample, expand

FORMATS = {"float32": PackedLinear, "bfloat16": PackedLinear, "int8": Int8Linear}
BLOCK, HEAD, LAYERS = ((2304, 768), (768, 768), (4096, 768), (768, 2048)), (16384, 768), 12  # of a GPT-B, [out, in]


@torch.inference_mode()
def product_times(rows: Sequence[int], turns: int = 7) -> None:
    """Print the least processor time of all products of a GPT-B step, by format and number of rows."""
    shapes = [shape for _ in range(LAYERS) for shape in BLOCK] + [HEAD]
    plain = [nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes]
    dtypes = {name: torch.bfloat16 if name == "bfloat16" else torch.float32 for name in FORMATS}
    layers = {}
    for name, kind in FORMATS.items():
        layers[name] = [kind.from_linear(copy.deepcopy(layer).to(dtypes[name])) for layer in plain]
    print("| rows | " + " | ".join(f"{name}, ms" for name in layers) + " |\n|" + "---|" * (1 + len(layers)))
    for count in rows:
        least = dict.fromkeys(layers, float("inf"))
        for _ in range(turns):
            for name, those in layers.items():
                inputs = {width: torch.randn(count, width, dtype=dtypes[name]) for width in (768, 2048)}
                began = time.process_time()
                for layer in those:
                    layer(inputs[layer.in_features])
                least[name] = min(least[name], time.process_time() - began)
        print(f"| {count} | " + " | ".join(f"{seconds * 1e3:.1f}" for seconds in least.values()) + " |", flush=True)


@torch.inference_mode()
def laws(pipe: Pipeline, prompts: Sequence[str], tokens: torch.Tensor) -> torch.Tensor:
    """Law of every token behind those before it: [B, n, V] of pictures' tokens [B, n]."""
    params, condition, model = pipe.sampling_params(), pipe.condition(list(prompts)), pipe.model
    null = model.null_condition(len(tokens)).to(condition.values.dtype)
    mask = None if condition.mask is None else condition.mask.repeat(2, 1)
    logits = model(tokens[:, :-1].repeat(2, 1), torch.cat([condition.values, null]), mask)
    return params.probabilities(combine_guidance(*logits.chunk(2), params.guidance))


def distance(pipes: dict[str, Pipeline], prompts: Sequence[str], tokens: torch.Tensor, size: int) -> dict[str, dict]:
    """Means over all tokens of total variation and KL, and the share of tokens whose most likely code is another."""
    first, *others = pipes
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in others}
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size], tokens[start : start + size]
        p = laws(pipes[first], *part).double()
        for name in others:
            q = laws(pipes[name], *part).double()
            kl = torch.where(p > 0, p * (p / q.clamp_min(1e-30)).log(), 0.0).sum(-1)
            moved = (p.argmax(-1) != q.argmax(-1)).double()
            sums[name] += torch.stack([(p - q).abs().sum(-1).sum() / 2, kl.sum(), moved.sum()])
    names = ("total_variation", "kl", "other_mode")
    return {name: dict(zip(names, (total / tokens.numel()).tolist(), strict=True)) for name, total in sums.items()}


def draw(pipes: dict[str, Pipeline], samples: Sequence[Sample], seed: int, batch_size: int) -> list[Trial]:
    """The same samples in every format, batch by batch in turn."""
    trials = [Trial(Entry(name, pipe)) for name, pipe in pipes.items()]
    for pipe in pipes.values():
        list(pipe.iterate(samples[:1], seed=seed))  # packs the weights

    def turn(trial: Trial, batch: Sequence[Sample]) -> vistok.pipelines.Output:
        pipe = trial.entry.method
        ((_, output),) = pipe.iterate(batch, timed(trial, pipe.sampler()), seed=seed, batch_size=batch_size)
        return output

    run_in_turn(trials, [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)], turn)
    return trials


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model", default="llamagen", help="that paints scenes, token behind token")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"], help="to compare with float32")
    parser.add_argument("--prompts-per-task", type=int, default=8, help="of each of the six GenEval tasks")
    parser.add_argument("--num", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--products", type=int, nargs="+", metavar="ROWS", help="instead: times of products alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.products:
        product_times(options.products)
        return
    pipes = {dtype: vistok.pipeline(options.model, dtype=dtype) for dtype in ("float32", *options.dtypes)}
    records = scene_prompts(list(SHAPES), list(COLOURS), options.seed, options.prompts_per_task)
    samples = expand([record["prompt"] for record in records], options.num)
    trials = draw(pipes, samples, options.seed, options.batch_size)
    tokens = torch.cat([output.tokens for output in trials[0].results]).flatten(1)
    apart = distance(pipes, [sample.condition for sample in samples], tokens, options.batch_size)
    scores = score_trials(records, options.num, [images_of(trial) for trial in trials])
    print(
        "| dtype | total variation | KL, nats | other mode | s a picture | of float32 | same pictures | detector | ",
        end="",
    )
    print("less float32's | FD |\n|---|---|---|---|---|---|---|---|---|---|")
    found = []
    for trial, score in zip(trials, scores, strict=True):
        name = trial.entry.name
        faster = ratio_estimate(trials[0].cpu_seconds, trial.cpu_seconds)
        pairs = zip(trial.results, trials[0].results, strict=True)
        same = sum(int((a.tokens == b.tokens).flatten(1).all(1).sum()) for a, b in pairs) / len(samples)
        row = {"dtype": name, **apart.get(name, {}), "seconds": sum(trial.cpu_seconds) / len(samples)}
        row |= {"faster": str(faster), "same": same, **{key: str(value) for key, value in score.items()}}
        found.append(row)
        law = [f"{row[key]:.4f}" if key in row else "" for key in ("total_variation", "kl", "other_mode")]
        cells = [name, *law, f"{row['seconds']:.3f}", f"{faster}x", f"{same:.2f}", str(score[DETECTOR])]
        print(
            "| " + " | ".join([*cells, str(score[GAIN]), f"{score.get(DISTANCE, float('nan')):.2f}"]) + " |", flush=True
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
