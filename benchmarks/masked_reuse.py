"""What ENAT's re-use saves: counted operations and seconds of a picture against recomputing, and against MaskGIT.

Shapes are those of the recipes enat-mini and maskgit-mini; weights are new, for neither figure depends on them.

    python benchmarks/masked_reuse.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from vistok.eval.decoding.operations import count_operations
from vistok.models.enat import ENAT, ENATConfig
from vistok.models.interface import Condition
from vistok.models.maskgit import MaskGIT, MaskGITConfig
from vistok.samplers import Masked, Noise, SamplingParams
from vistok.train.recipe import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"
CODES = {"grid": 16, "codebook_size": 512, "num_classes": 48}


class Recomputed(ENAT):
    """An ENAT that begins anew in every step."""

    def predict(self, codes, values, state=None):
        return super().predict(codes, values, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    enat = ENATConfig(**CODES, **Recipe.load(RECIPES / "enat-mini.yaml").model)
    maskgit = MaskGITConfig(**CODES, **Recipe.load(RECIPES / "maskgit-mini.yaml").model)
    networks = {"ENAT": ENAT(enat), "ENAT recomputed": Recomputed(enat), "MaskGIT": MaskGIT(maskgit)}
    for name, network in networks.items():
        network.eval().requires_grad_(False)

        def paint(network=network) -> float:
            began = time.perf_counter()
            condition, noise = Condition(torch.tensor([1])), Noise(0, torch.tensor([0]))
            Masked(options.steps).sample(network, condition, SamplingParams(3.0), noise)
            return time.perf_counter() - began

        paint()
        seconds = [paint() for _ in range(options.repeats)]
        size = sum(p.numel() for p in network.parameters())
        operations = count_operations(paint) / 1e9
        print(f"{name}: {size:,} parameters, {operations:.2f} GFLOP, {statistics.median(seconds):.3f} s a picture")


if __name__ == "__main__":
    main()
