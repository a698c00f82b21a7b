"""The embedded 3D world: a function of its seed, physically sound, with questions that a perfect reader answers."""

from __future__ import annotations

import pytest
import torch

from vistok.data.scenes.world import PALETTE
from vistok.data.scenes3d import (
    MAX_OBJECTS,
    SHAPES,
    ask,
    draw_names,
    draw_questions,
    locations,
    mean_colours,
    point_clouds,
    sample_rooms,
    vocabulary,
)
from vistok.data.scenes3d.language import IGNORE, RELATIONS, SLOT, named, question_tokens, token_ids
from vistok.data.scenes3d.world import COLOUR_NOISE, GAP, POINT_NOISE
from vistok.errors import VistokError

ROOMS = sample_rooms(200, 3)


def test_a_room_does_not_depend_on_how_many_are_drawn():
    alone = sample_rooms(1, 3, 17)
    for name in ("present", "shape", "colour", "size", "centre", "support"):
        assert torch.equal(getattr(alone, name)[0], getattr(ROOMS, name)[17]), name
    assert torch.equal(point_clouds(alone)[0], point_clouds(ROOMS)[17])
    assert not torch.equal(sample_rooms(1, 4, 17).centre, alone.centre)


def test_solids_keep_apart_and_stand_on_something():
    for b in range(len(ROOMS)):
        there = ROOMS.present[b].nonzero()[:, 0].tolist()
        assert there
        for i in there:
            under = int(ROOMS.support[b, i])
            if under >= 0:
                assert ROOMS.shape[b, under] == SHAPES.index("box")
                assert ROOMS.centre[b, i, 2] == ROOMS.centre[b, under, 2] + ROOMS.radius[b, under] + ROOMS.radius[b, i]
                continue
            assert ROOMS.centre[b, i, 2] == ROOMS.radius[b, i]
            for j in there:
                if j != i and ROOMS.support[b, j] < 0:
                    gap = (ROOMS.centre[b, i] - ROOMS.centre[b, j])[:2].norm() - ROOMS.radius[b, i] - ROOMS.radius[b, j]
                    assert gap > GAP
        bearers = ROOMS.support[b][ROOMS.support[b] >= 0].tolist()
        assert len(bearers) == len(set(bearers))


def test_points_lie_on_the_surface_and_tell_place_size_and_colour():
    clouds = point_clouds(ROOMS, 64)
    there = ROOMS.present
    offset = (clouds[..., :3] - ROOMS.centre[:, :, None].float()) / ROOMS.radius[..., None, None].float()
    noise = 6 * POINT_NOISE / 0.05
    around = {"box": offset.abs().amax(-1), "ball": offset.norm(dim=-1)}
    around["cylinder"] = torch.maximum(offset[..., :2].norm(dim=-1), offset[..., 2].abs())
    for number, shape in enumerate(SHAPES):
        distance = (around[shape] - 1)[there & (ROOMS.shape == number)]
        assert distance.abs().max() < noise, shape
    colour = mean_colours(clouds)[:, :, 0, 1:][there]
    assert (colour - PALETTE[ROOMS.colour][there]).abs().max() < 4 * COLOUR_NOISE
    size = locations(clouds)[..., 3:][there]
    assert (size / (2 * ROOMS.radius[there][:, None]).float() - 1).abs().max() < 0.45
    assert (clouds[~there] == 0).all()


def test_every_question_and_answer_is_of_known_words_and_fits():
    ids = token_ids()
    names = draw_names(ROOMS)
    for row in ask(ROOMS, names):
        for question in row:
            words = [*question.text.split(), "assistant:", *question.answer.split()]
            assert len(words) <= SLOT and all(word in ids for word in words), question
    assert len(vocabulary()) == len(ids)
    tokens, targets = question_tokens(draw_questions(ROOMS, names, 6))
    assert tokens.shape == targets.shape == (200, 6, SLOT)
    assert ((targets != IGNORE).sum(-1) >= 2).all()


def test_relations_are_those_of_the_places():
    names = draw_names(ROOMS)
    for b, row in enumerate(ask(ROOMS, names)):
        owner = {named(int(number)): slot for slot, number in enumerate(names[b])}
        for question in row:
            if question.kind != "relation":
                continue
            words = question.text.split()
            relation = " ".join(words[2:-2])
            axis, direction = RELATIONS[relation]
            first, second = owner[words[1]], owner[words[-2]]
            offset = (ROOMS.centre[b, first, axis] - ROOMS.centre[b, second, axis]) * direction
            assert (offset > 0) == (question.answer == "yes")


def test_identifiers_are_a_permutation_that_differs_from_room_to_room():
    names = draw_names(ROOMS)
    assert torch.equal(names.sort(1).values, torch.arange(MAX_OBJECTS).expand(200, -1))
    assert len({tuple(row) for row in names.tolist()}) > 150


@pytest.mark.parametrize("objects", [(0, 3), (3, 2), (2, 9)])
def test_a_number_of_solids_that_no_room_holds_is_refused(objects):
    with pytest.raises(VistokError, match="1 to 8"):
        sample_rooms(1, 0, objects=objects)


def test_a_range_of_solids_is_kept():
    assert sample_rooms(100, 1, objects=(2, 4)).present.sum(1).max() <= 4
