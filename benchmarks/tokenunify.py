"""TokenUnify's claim on scenes: the segmentation probe after its mixture, next-token and random (masked) prediction.

    python benchmarks/tokenunify.py --steps 600 --seeds 3

Every objective takes equally many steps of the same network and pictures, and has its learning rate searched among the
same values, by the first seed's probe; the others train at the best. The first line is what the probe reads from new
networks, which have learned nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from vistok.train.recipe import Recipe
from vistok.train.tasks.tokenunify import TokenUnifyTask
from vistok.train.trainer import learning_rate_scale, parameter_groups

RECIPE = Path(__file__).parents[1] / "recipes" / "tokenunify-mini.yaml"


def stages(objective: str, steps: int) -> list[dict]:
    """The stages of an objective: the published mixture trains random prediction first."""
    if objective == "mixture":
        return [{"start": 0, "random": 1.0}, {"start": steps // 2, "next": 1.0, "next_all": 1.0}]
    if objective == "together":
        return [{"random": 1.0, "next": 1.0, "next_all": 1.0}]
    return [{objective: 1.0}]


def run(objective: str, rate: float, seed: int, steps: int) -> float:
    """Trains, and returns the probe's mean intersection over union."""
    recipe = Recipe.load(RECIPE)
    data = recipe.data | {"stages": stages(objective, steps), "seed": 51 + seed}
    optimization = replace(recipe.optimization, lr=rate, muon_lr=rate)
    recipe = replace(recipe, seed=seed, steps=steps, data=data, optimization=optimization)
    task = TokenUnifyTask(recipe)
    optimizers = parameter_groups(task.model, optimization)
    task.model.train()
    for step in range(steps):
        loss, _ = task.model(**task.batch(step, slice(0, recipe.batch_size)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), optimization.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_scale(step, steps, optimization)
            optimizer.step()
            optimizer.zero_grad()
    task.model.eval()
    return task.evaluate()["probe_miou"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each objective at its best rate")
    parser.add_argument("--rates", default="5e-4,2e-3", help="learning rates that are tried, by commas")
    parser.add_argument("--objectives", default="mixture,together,next,random", help="by commas; next_all is one too")
    options = parser.parse_args()
    untrained = [run("random", 0.0, seed, 1) for seed in range(options.seeds)]
    print(json.dumps({"objective": "none", "miou": untrained, "mean": statistics.mean(untrained)}), flush=True)
    rates = [float(each) for each in options.rates.split(",")]
    for objective in options.objectives.split(","):
        tried = {rate: run(objective, rate, 0, options.steps) for rate in rates}
        best = max(tried, key=tried.__getitem__)
        found = [tried[best], *(run(objective, best, seed, options.steps) for seed in range(1, options.seeds))]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        told = {"objective": objective, "rate": best, "miou": found, "mean": statistics.mean(found), "sd": spread}
        print(json.dumps(told | {"tried": {str(rate): value for rate, value in tried.items()}}), flush=True)


if __name__ == "__main__":
    main()
