"""What Pink's self-consistent bootstrapping adds where half of the boxes have no expression (arXiv 2310.00582).

All there is are some pictures of objects that differ, with their boxes, every second of which has expressions. A Pink
is trained on these. It describes the others, finds its descriptions again, and training goes on for equally many steps
with what agrees, without, and with the true expressions of all boxes, which is the most that bootstrapping could give.

    python benchmarks/pink_bootstrapping.py --out runs/pink-bootstrapping
    python benchmarks/pink_bootstrapping.py --start runs/pink-mini --scale 0.7 --seed 1 --out runs/pink-smaller

The second goes on from a run of the recipe, in pictures that it has not seen and whose objects are smaller. Found are
boxes of held-out phrases with an overlap above 0.5. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.data.boxes import AGREES, box_text, overlap, parse_box
from vistok.data.images import to_pil
from vistok.data.scenes import COLOURS, SHAPES, SIZES, Scenes, render, sample_scenes, shrink
from vistok.data.scenes.box_tasks import draw_box_tasks
from vistok.data.scenes.language import groups
from vistok.data.scenes.referring import phrases
from vistok.data.scenes.render import boxes
from vistok.data.scenes.splits import HELD_OUT
from vistok.errors import VistokError
from vistok.eval.decoding.estimate import ratio_estimate
from vistok.ops.noise import derive_seed
from vistok.projectors.grounding.pink import Pink, bootstrap
from vistok.projectors.grounding.second_look import TURN
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.pink import PinkTask
from vistok.train.trainer import Trainer

RECIPE = Path(__file__).parents[1] / "recipes" / "pink-mini.yaml"
SIDE, BATCH = 64, 64
LEAST_AREA = 20.0  # of a box that is described, in pixels


class Referred(NamedTuple):
    """A box in fractions of the picture, the expressions that lead to it, and the one that describes it."""

    box: tuple[float, ...]
    expressions: list[str]
    description: str


def annotate(scenes: Scenes) -> list[list[Referred]]:
    """Returns each object of scenes whose objects differ, with all expressions that lead to it."""
    named, around = groups(scenes), boxes(scenes, 1).clamp(0, 1).tolist()
    out = []
    for b, scene in enumerate(named):
        said = [(phrase.group, phrase.text) for phrase in phrases(scene)]
        row = []
        for slot in scenes.present[b].nonzero()[:, 0].tolist():
            kinds = ((SIZES, scenes.size), (COLOURS, scenes.colour), (SHAPES, scenes.shape))
            words = [names[int(column[b, slot])] for names, column in kinds]
            expressions = [text for group, text in said if group == int(scenes.group[b, slot])]
            row.append(Referred(tuple(around[b][slot]), expressions, " ".join(["the", *words])))
        out.append(row)
    return out


def different(count: int, seed: int, scale: float = 1.0) -> Scenes:
    """Returns scenes of a seed, the first in which no two objects are alike."""
    scenes = sample_scenes(3 * count, seed)
    return shrink(scenes[scenes.group.amax(1) + 1 == scenes.present.sum(1)][:count], scale)


def halves(everything: list[list[Referred]]) -> tuple[list[list[Referred]], list[list[Referred]]]:
    """Returns the boxes that have expressions and those whose are withheld, every second one of each picture."""
    return tuple(
        [
            [entry for slot, entry in enumerate(row) if (slot + number) % 2 == odd]
            for number, row in enumerate(everything)
        ]
        for odd in (0, 1)
    )


class PooledPink(PinkTask):
    """Pink's task on pictures that are shown again and again.

    Args:
        recipe: of the ``pink`` task.
        images: the pictures [N, 3, S, S].
        pool: of each, the boxes that have expressions.
    """

    def __init__(self, recipe: Recipe, images: Tensor, pool: list[list[Referred]]):
        super().__init__(recipe)
        self.images, self.pool = images, pool
        self.told = [number for number, row in enumerate(pool) if row]

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns questions about pictures drawn from the pool, half of them for a box and half for a description."""
        shown, pairs = [], []
        for row in range(rows.start, rows.stop):
            rng = random.Random(derive_seed(self.data.seed, step * self.recipe.batch_size + row))
            shown.append(rng.choice(self.told))
            pairs.append([self._ask(rng, rng.choice(self.pool[shown[-1]])) for _ in range(self.data.questions)])
        questions, targets = self._tokens(pairs)
        none = (float("inf"),) * 4
        told = [[parse_box(said, (1, 1), self.data.decimals) or none for _, said in row] for row in pairs]
        return {
            "images": self.images[shown],
            "questions": questions,
            "targets": targets,
            "boxes": torch.tensor(told),
        }

    def _ask(self, rng: random.Random, referred: Referred) -> tuple[str, str]:
        box = box_text(referred.box, (1, 1), self.data.decimals)
        if rng.random() < 0.5:
            return f"where is {rng.choice(referred.expressions)}?", box
        return f"what is {box}?", referred.description

    def evaluate(self) -> dict[str, float]:
        """Returns nothing: what is exported is measured."""
        return {}


def train(recipe: Recipe, images: Tensor, pool: list[list[Referred]], folder: Path, start: Path | None = None) -> Pink:
    """Returns a Pink trained on a pool, from the averaged weights of the run in ``start`` if one is named."""
    task = PooledPink(recipe, images, pool)
    if start is not None:
        weights = torch.load(start / "checkpoint.pt", weights_only=True)["average"]
        if task.model.load_state_dict(weights, strict=False).unexpected_keys:
            raise VistokError(f"'{start}' is no run of this recipe: name the folder of one.")
    Trainer(recipe, task, folder).train()
    return Pink.from_pretrained(folder / "export")


def find(model: Pink, pictures: int, scale: float) -> list[float]:
    """Returns the overlap of what a model finds with what is meant, of a phrase about each of so many held-out pictures
    that have one."""
    out = []
    for start in range(0, pictures, BATCH):
        scenes = shrink(sample_scenes(min(BATCH, pictures - start), HELD_OUT, start), scale)
        drawn = [row[0] for row in draw_box_tasks(scenes, 1, ("grounding",), model.wording.decimals)]
        rows = [b for b, entry in enumerate(drawn) if entry.task == "grounding"]
        said = model.say_all(to_pil(render(scenes[rows], SIDE)), [TURN.format(text=drawn[b].question) for b in rows])
        meant = (parse_box(drawn[b].answer, (1, 1), model.wording.decimals) for b in rows)
        boxes_said = (parse_box(text, (1, 1), model.wording.decimals) or (0.0,) * 4 for text in said)
        pair = (torch.tensor(list(part)) for part in (boxes_said, meant))
        out += overlap(*pair).tolist()
    return out


def bootstrapped(model: Pink, images: Tensor, withheld: list[list[Referred]]) -> list[list[Referred]]:
    """Returns what bootstrapping keeps of the withheld boxes, with the model's own words for them."""
    shown = [[tuple(SIDE * v for v in entry.box) for entry in row] for row in withheld]
    kept: list[list[Referred]] = [[] for _ in withheld]
    for picture, box, text in bootstrap(model, zip(to_pil(images), shown, strict=True), least_area=LEAST_AREA):
        kept[picture].append(Referred(tuple(v / SIDE for v in box), [text], text))
    return kept


def share_true(kept: list[list[Referred]], withheld: list[list[Referred]]) -> float:
    """Returns the share of a model's own expressions that are true of their boxes."""
    right = []
    for row, true in zip(kept, withheld, strict=True):
        meant = {entry.box: {entry.description, *entry.expressions} for entry in true}
        right += [entry.description in meant[entry.box] for entry in row]
    return sum(right) / max(1, len(right))


def tell(arm: str, overlaps: list[float], without: list[float] | None = None) -> None:
    """Prints how often an arm finds what is meant, and how much oftener than the one without bootstrapping."""
    ones = [1.0] * len(overlaps)
    hits = [float(value > AGREES) for value in overlaps]
    row = {"arm": arm, "phrases": len(hits), "overlap": sum(overlaps) / len(hits)}
    row["found"] = asdict(ratio_estimate(hits, ones))
    if without is not None:
        gain = [hit - float(value > AGREES) for hit, value in zip(hits, without, strict=True)]
        row["gain"] = asdict(ratio_estimate(gain, ones))
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=512, help="that there are")
    parser.add_argument("--steps", type=int, default=1000, help="of the training on half of the boxes")
    parser.add_argument("--more", type=int, default=500, help="steps that follow")
    parser.add_argument("--eval-pictures", type=int, default=1536)
    parser.add_argument("--start", type=Path, help="folder of a run of pink-mini.yaml to go on from")
    parser.add_argument("--scale", type=float, default=1.0, help="of the objects' radii")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    recipe = Recipe.load(RECIPE)
    data = recipe.data | {"seed": recipe.data["seed"] + options.seed}
    first = replace(recipe, seed=options.seed, steps=options.steps, data=data)
    slower = replace(recipe.optimization, lr=recipe.optimization.lr / 2)
    following = replace(first, steps=options.more, optimization=slower)
    scenes = different(options.pictures, data["seed"], options.scale)
    images, everything = render(scenes, SIDE), annotate(scenes)
    half, withheld = halves(everything)

    model = train(first, images, half, options.out / "half", options.start)
    tell("half", find(model, options.eval_pictures, options.scale))
    kept = bootstrapped(model, images, withheld)
    told = {"boxes": sum(map(len, half)), "withheld": sum(map(len, withheld)), "kept": sum(map(len, kept))}
    print(json.dumps(told | {"true": share_true(kept, withheld)}), flush=True)
    pools = {
        "without": half,
        "bootstrapped": [[*a, *b] for a, b in zip(half, kept, strict=True)],
        "all": everything,
    }
    found: dict[str, list[float]] = {}
    for name, pool in pools.items():
        model = train(following, images, pool, options.out / name, options.out / "half")
        found[name] = find(model, options.eval_pictures, options.scale)
        tell(name, found[name], found["without"])


if __name__ == "__main__":
    main()
