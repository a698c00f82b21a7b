"""Recipes of the repository at a size that a test can run: a few pictures, three steps, in float32."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vistok.data.scenes import captions, sample_scenes
from vistok.models.vision.scenes import DIM
from vistok.tokenizers.seed import Seed
from vistok.tokenizers.seed_config import SeedConfig
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task
from vistok.train.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {
    "eval_pictures": 8,
    "eval_rooms": 8,
    "pictures": 16,
    "anchor_pictures": 16,
    "start_pictures": 24,
    "vocabulary": 512,
    "own": {"share": 0.5, "count": 4, "every": 2, "iterations": 4},
    "eval_samples": 2,
    "probe_scenes": 16,
    "queries_until": 1,
    "codes_until": 2,
    "prompt": 6,
    "passages": 4,
    "swaps": 2,
    "needles": 4,
    "packages": [],
}
LONG, SEED = "runs/text-mini-long/export", "runs/seed-mini/export"  # where other recipes write
STAGES = [{"length": 64, "needles": 2, "steps": 2}, {"length": 96, "needles": 3, "steps": 1}]
NEW_VQ = {"codebook_size": 64, "codebook_dim": 16, "channels": 32, "channel_mult": [1, 1, 2], "res_blocks": 1}
FROM_NOTHING = {  # what the recipes' comments say, where new weights take another way through a task
    "vq-mini": {"init": {}, "model": NEW_VQ | {"z_channels": 32, "commitment": 0.25}},
    "kl-mini": {
        "init": {},
        "model": {"channels": 32, "channel_mult": [1, 1, 2], "res_blocks": 1, "z_channels": 5}
        | {"encoder_attention": [2], "decoder_attention": []},
    },
    "flextok-mini": {"init": {"kl": "kl-mini"}},
    "enat-mini": {"init": {"tokenizer": "vq-mini"}},
    "llamagen-mini": {"init": {"vq": "vq-mini", "text_encoder": "llamagen-mini"}},
    "llamagen-one-d-piece-mini": {
        "init": {"vq": "one-d-piece-mini", "blocks": "llamagen-mini", "text_encoder": "llamagen-mini"},
    },
    "mar-mini": {"init": {"kl": "kl-mini"}},
}
CASES = [*sorted(path.stem for path in RECIPES.glob("*.yaml")), *(f"{name} from nothing" for name in FROM_NOTHING)]


@functools.cache
def seed_folder() -> str:
    """Returns the folder of an untrained SEED of the shape of seed-mini."""
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    Seed(SeedConfig(**Recipe.load(RECIPES / "seed-mini.yaml").model, embed_dim=DIM)).save_pretrained(folder)
    return folder


def init_of(recipe: Recipe) -> dict[str, Any]:
    """Returns where a recipe starts, with what is here in the place of what other recipes write."""
    here = {LONG: lambda: "text-mini", SEED: seed_folder}
    return {
        name: here[value]() if isinstance(value, str) and value in here else value
        for name, value in recipe.init.items()
    }


def tiny(case: str, steps: int = 3) -> Recipe:
    """Returns a recipe of the repository by its case, for ``steps`` steps of four pictures."""
    name, _, new = case.partition(" ")
    recipe = replace(Recipe.load(RECIPES / f"{name}.yaml"), **FROM_NOTHING[name] if new else {})
    small = SMALL | ({"eval_pictures": 64} if recipe.task.startswith(("vq", "kl")) else {})
    if recipe.task == "needles":
        small |= {"stages": STAGES}
    if recipe.task == "long-text" or LONG in recipe.init.values():
        small |= {"length": 256, "chunk": 32}
    data = recipe.data | {key: value for key, value in small.items() if key in recipe.data}
    return replace(
        recipe,
        init=init_of(recipe),
        steps=steps,
        batch_size=4,
        precision="fp32",
        compile=False,
        log_every=1,
        eval_every=100,
        save_every=100,
        data=data,
    )


def texts(split: str) -> list[str]:
    """Stands for the corpus of the ``text`` task, which is another one under each version of Python."""
    return captions(sample_scenes(400, 5 if split == "train" else 6))


def pure_batch(task) -> dict[str, torch.Tensor]:
    """Returns a batch of four rows, once it is sure that it depends on its step alone and can be shared out."""
    batch = task.batch(2, slice(0, 4))
    parts = [task.batch(2, slice(at, at + 2)) for at in (0, 2)]
    assert all(torch.equal(value, task.batch(2, slice(0, 4))[name]) for name, value in batch.items())
    shapes = {name: torch.cat([part[name] for part in parts]).shape for name in batch}
    assert shapes == {name: value.shape for name, value in batch.items()}
    return batch


def figures(recipe: Recipe, directory: Path) -> dict:
    """Returns the losses of a run's steps and its held-out metrics."""
    metrics = Trainer(recipe, build_task(recipe), directory).train()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {"loss": [line["loss"] for line in lines if "loss" in line], "held_out": metrics}
