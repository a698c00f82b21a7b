"""The plan of a scene: what is in each cell, and what is still to come."""

from __future__ import annotations

from dataclasses import replace

import torch

from vistok.data.scenes import BACKGROUNDS, COLOURS, NUM_CLASSES, SHAPES, SIZES, render_masks, sample_scenes, statements
from vistok.data.scenes.language import RELATIONS, Group, Statement
from vistok.train.tasks.scenes.captions import FACT_SIZES, facts
from vistok.train.tasks.scenes.plans import SILHOUETTE, plan, silhouette_loss, silhouettes
from vistok.train.tasks.scenes.reader import SceneReader


def test_plans_hold_every_object_once():
    scenes = sample_scenes(64, seed=5)
    cells, kinds, begins = plan(scenes, 16)
    assert ((begins >= 0) == scenes.present).all()
    for row in range(64):
        seen = set(cells[row].tolist()) - {NUM_CLASSES}
        assert seen == set(kinds[row][scenes.present[row]].tolist())
        first = int((cells[row] < NUM_CLASSES).nonzero()[0])
        assert first == int(begins[row][scenes.present[row]].min())


def read(reader, scenes, states):
    cells, kinds, begins = plan(scenes, 16)
    told = torch.tensor([facts(s) for s in statements(scenes)])
    return reader(states, cells[:, : states.shape[1]], kinds, begins, told)


def test_the_loss_is_small_only_for_the_right_counts():
    scenes = sample_scenes(1, seed=8)
    _, kinds, begins = plan(scenes, 16)
    reader = SceneReader(4, 16)
    states = torch.zeros(1, 256, 4)
    torch.nn.init.zeros_(reader.left.weight)
    coming = sum((begins[0, o] >= 0) * torch.eye(NUM_CLASSES)[kinds[0, o].long()] for o in range(4))
    right = torch.where(coming[:, None] > torch.arange(4), 20.0, -20.0)  # before anything is painted
    reader.left.bias.data = right.flatten()
    early = begins[0][begins[0] >= 0].min()
    assert read(reader, scenes, states[:, : early + 1])["left"] < 1e-6
    reader.left.bias.data = -right.flatten()
    assert read(reader, scenes, states)["left"] > 100


def test_the_next_object_is_the_one_that_begins_first():
    scenes = sample_scenes(1, seed=8)
    _, kinds, begins = plan(scenes, 16)
    first = begins[0].where(begins[0] >= 0, 256).argmin()
    place = int(begins[0, first])
    reader = SceneReader(4, 16)
    torch.nn.init.zeros_(reader.next.weight)
    bias = torch.full((NUM_CLASSES + 1 + 32,), -20.0)
    bias[[int(kinds[0, first]), NUM_CLASSES + 1 + place // 16, NUM_CLASSES + 1 + 16 + place % 16]] = 20.0
    reader.next.bias.data = bias
    states = torch.zeros(1, 256, 4)
    assert read(reader, scenes, states[:, : place + 1])["next"] < 1e-6
    assert read(reader, scenes, states)["next"] > 1


def test_facts_are_told_by_shape_by_place_and_by_colour():
    groups = (Group("ring", "blue", "small", 2, (0.2, 0.5)), Group("circle", "red", "large", 1, (0.8, 0.5)))
    said = Statement(groups, True, True, "left", BACKGROUNDS[2], "", 0)
    told = facts(said)
    assert len(told) == len(FACT_SIZES)
    assert all(0 <= number < size for number, size in zip(told, FACT_SIZES, strict=True))
    shape, colour = SHAPES.index, COLOURS.index
    ring, circle = (told[4 * shape(name) : 4 * shape(name) + 4] for name in ("ring", "circle"))
    assert ring == [2, 1 + colour("blue"), 1 + SIZES.index("small"), 1 + list(RELATIONS).index("left")]
    assert circle == [1, 1 + colour("red"), 1 + SIZES.index("large"), 1 + list(RELATIONS).index("right")]
    assert told[24] == 3
    assert told[25 + 2 * list(RELATIONS).index("left") :][:2] == [1 + shape("ring"), 1 + colour("blue")]
    assert told[25 + 2 * list(RELATIONS).index("right") :][:2] == [1 + shape("circle"), 1 + colour("red")]
    painted = {name: number for name, number in zip(COLOURS, told[33:], strict=True) if number}
    assert painted == {"blue": 1 + shape("ring"), "red": 1 + shape("circle")}
    assert sum(1 for number in told if number) == 4 + 4 + 1 + 4 + 2
    unsaid = facts(replace(said, with_size=False, with_colour=False, where=None, background=None))
    assert sorted(unsaid) == [0] * (len(told) - 2) + [1, 2]  # two rings and a circle, no more


def test_the_facts_of_a_caption_are_read():
    scenes = sample_scenes(1, seed=8)
    reader = SceneReader(4, 16)
    torch.nn.init.zeros_(reader.told.weight)
    told = facts(statements(scenes)[0])
    right = torch.cat([20.0 * torch.eye(size)[value] for size, value in zip(FACT_SIZES, told, strict=True)])
    states = torch.zeros(1, 256, 4)
    reader.told.bias.data = right
    assert read(reader, scenes, states)["told"] < 1e-4
    reader.told.bias.data = -right
    assert read(reader, scenes, states)["told"] > 100


def test_silhouettes_are_what_objects_cover_of_each_part():
    scenes = sample_scenes(8, seed=5)
    told = silhouettes(scenes, 8).view(8, 8, 8, SILHOUETTE, SILHOUETTE)
    masks = render_masks(scenes, 64).amax(1)
    for row, column, y, x in ((2, 3, 0, 3), (4, 4, 3, 1), (5, 2, 2, 2)):
        top, left = 8 * row + 2 * y, 8 * column + 2 * x
        covered = masks[:, top : top + 2, left : left + 2].mean((1, 2)) * 255
        assert (told[:, row, column, y, x].float() - covered).abs().max() <= 0.5
    assert 0 < (told > 0).float().mean() < 0.5
    certain = torch.where(told > 127, 30.0, -30.0)
    edges = ((told > 0) & (told < 255)).float().mean()
    assert silhouette_loss(certain, told) < 16 * edges < silhouette_loss(-certain, told)
