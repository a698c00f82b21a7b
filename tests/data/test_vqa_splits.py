"""Harder held-out scenes, and questions about what is there and what is not."""

from __future__ import annotations

import pytest
import torch

from vistok.data.scenes import groups, render, render_masks, sample_scenes, shrink
from vistok.data.scenes.language import plural
from vistok.data.scenes.vqa import (
    KINDS,
    UNKNOWN,
    draw_questions,
    named_places,
    object_questions,
    place_questions,
    question_tokens,
    token_ids,
)
from vistok.data.scenes.vqa_splits import MANY, POPE_SPLITS, pope_questions, split_questions, split_scenes
from vistok.errors import VistokError


def test_smaller_objects_stay_in_their_places():
    scenes = sample_scenes(16, 3)
    small = shrink(scenes, 0.5)
    assert torch.equal(small.centre, scenes.centre)
    area, least = (render_masks(s, 64).sum((2, 3)) for s in (scenes, small))
    here = scenes.present
    torch.testing.assert_close(least[here] / area[here], torch.full_like(area[here], 0.25), atol=0.02, rtol=0)
    assert torch.equal(render(shrink(scenes, torch.ones(16)), 32), render(scenes, 32))
    assert torch.equal(small[3:5].radius, small.radius[3:5])


def test_every_further_question_is_known_and_true():
    scenes = sample_scenes(64, 5)
    for scene in groups(scenes):
        for entry in place_questions(scene) + object_questions(scene):
            assert all(word in token_ids() for word in entry["question"].replace("?", " ?").split())
        there = {entry["question"] for entry in object_questions(scene) if entry["answer"] == "yes"}
        assert there == {f"are there {g.colour} {plural(g.shape)}?" for g in scene}
        for group in scene:
            for name, inside in (("left", group.centre[0] < 0.5), ("above", group.centre[1] < 0.5)):
                said = [e["answer"] for e in place_questions(scene) if e["question"] == f"is the {group.shape} {name}?"]
                assert said in ([], ["yes" if inside else "no"])
    assert UNKNOWN not in {word for word in token_ids() if word.isalpha()}


def test_kinds_are_drawn_as_often_as_asked_for():
    scenes = sample_scenes(200, 7)
    drawn = draw_questions(scenes, 2, kinds={"count": 4.0, "exists": 1.0})
    kinds = [question.kind for row in drawn for question in row]
    assert set(kinds) == {"count", "exists"}
    assert kinds.count("count") > 2 * kinds.count("exists")
    assert {q.kind for row in draw_questions(scenes, 40, kinds=dict.fromkeys(KINDS, 1.0)) for q in row} == set(KINDS)
    small = draw_questions(shrink(scenes, 0.6), 60, kinds=dict.fromkeys(KINDS, 1.0))
    assert "size" not in {question.kind for row in small for question in row}
    assert draw_questions(scenes, 4) == draw_questions(scenes, 4, kinds=None)


def test_words_that_name_an_object_know_its_centre():
    scenes = sample_scenes(32, 9)
    with pytest.raises(VistokError, match="kinds"):
        question_tokens(draw_questions(scenes, 6, kinds={"relation": 1.0}))
    questions, _ = question_tokens(draw_questions(scenes, 6, kinds={"relation": 1.0, "place": 1.0, "exists": 0.1}))
    places = named_places(scenes, questions)
    told = ~places[..., 0].isnan()
    assert told.any()
    for b, k, word in told.nonzero().tolist():
        distances = (scenes.centre[b].float() - places[b, k, word]).abs().sum(-1)
        assert distances[scenes.present[b]].min() < 1e-6


@pytest.mark.parametrize("split", ["plain", "small", "hard"])
def test_splits_are_what_they_say(split):
    scenes = split_scenes(split, 40)
    assert len(scenes) == 40
    assert scenes.scale.unique().tolist() == [{"plain": 1.0, "small": 0.6, "hard": 0.4}[split]]
    if split == "hard":
        assert (scenes.present.sum(1) >= MANY).all()
    assert torch.equal(split_scenes(split, 8).centre, scenes[:8].centre)
    kinds = {question.kind for row in split_questions(scenes, split, 8, None) for question in row}
    assert ("object" in kinds) == (split != "plain")


@pytest.mark.parametrize("split", POPE_SPLITS)
def test_pope_asks_about_as_many_absent_objects_as_present_ones(split):
    scenes = split_scenes("plain", 60)
    near = 0
    for scene, row in zip(groups(scenes), pope_questions(scenes, split), strict=True):
        truth = {entry["question"]: entry["answer"] for entry in object_questions(scene)}
        assert all(truth[question.text] == question.answer for question in row)
        answers = [question.answer for question in row]
        assert answers.count("yes") == answers.count("no") == len({(g.colour, g.shape) for g in scene})
        words = [q.text.rstrip("?").split()[2:] for q in row if q.answer == "no"]
        near += all(any(c == g.colour for g in scene) or any(s == plural(g.shape) for g in scene) for c, s in words)
    assert (near == 60) == (split == "adversarial")


def test_unknown_splits_get_the_nearest():
    with pytest.raises(VistokError, match=r"adversarial"):
        pope_questions(sample_scenes(1, 1), "adversary")
    with pytest.raises(VistokError, match="hard"):
        split_scenes("harder", 2)
