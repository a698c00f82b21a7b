"""Phrases and referring tasks of scenes mean what their masks, boxes and answers say."""

from __future__ import annotations

import pytest
import torch

from vistok.data.boxes import overlap, parse_box
from vistok.data.scenes import boxes, groups, render_masks, sample_scenes, shrink
from vistok.data.scenes.box_tasks import TASKS, draw_box_tasks
from vistok.data.scenes.details import asked_about, detail_boxes, draw_details
from vistok.data.scenes.referring import draw_phrases, phrase_boxes, phrase_masks, phrases
from vistok.data.scenes.vqa import token_ids
from vistok.data.scenes.world import COLOURS, SHAPES, SIZES
from vistok.errors import VistokError
from vistok.projectors.grounding.pink import WORDS
from vistok.train.tasks.scenes.pink import spelt

SCENES = sample_scenes(150, 21)
DRAWN = draw_phrases(SCENES, 5)


def test_a_phrase_by_attributes_fits_its_group_and_no_other():
    for scene in groups(SCENES):
        for phrase in phrases(scene):
            if phrase.kind == "relation":
                continue
            words = phrase.text.split()
            fits = []
            for number, group in enumerate(scene):
                told = [w for w in words if w in (*SIZES, *COLOURS)]
                shapes = [s for s in SHAPES if s in words or f"{s}s" in words or f"{s}es" in words]
                ok = all(w in (group.size, group.colour) for w in told) and all(s == group.shape for s in shapes)
                fits += [number] if ok else []
            assert fits == [phrase.group], phrase


def test_an_absent_kind_is_not_there():
    scenes = groups(SCENES)
    absent = [(scenes[b], phrase) for b, row in enumerate(DRAWN) for phrase in row if phrase.kind == "absent"]
    assert len(absent) > 50
    for scene, phrase in absent:
        *_, colour, shape = phrase.text.split()
        assert phrase.group == -1 and (colour, shape) not in {(g.colour, g.shape) for g in scene}


def test_masks_and_boxes_are_those_of_the_group():
    masks, around = phrase_masks(SCENES, DRAWN, 64), phrase_boxes(SCENES, DRAWN, 64)
    alone, each = render_masks(SCENES, 64), boxes(SCENES, 64)
    for b, row in enumerate(DRAWN):
        for k, phrase in enumerate(row):
            slots = (SCENES.group[b] == phrase.group).nonzero()[:, 0] if phrase.group >= 0 else []
            assert torch.allclose(masks[b, k], sum((alone[b, s] for s in slots), torch.zeros(64, 64)).clamp(max=1))
            if len(slots):
                assert torch.allclose(around[b, k, :2], each[b, slots, :2].amin(0).clamp(min=0))
            else:
                assert (around[b, k] == 0).all() and (masks[b, k] == 0).all()


def test_phrases_do_not_depend_on_the_batch():
    assert draw_phrases(SCENES[10:12], 5) == DRAWN[10:12]
    assert draw_box_tasks(SCENES[10:12], 3) == draw_box_tasks(SCENES, 3)[10:12]


@pytest.mark.parametrize("task", TASKS)
def test_a_referring_task_is_in_known_words_and_its_boxes_are_objects(task):
    known = {*token_ids(), *WORDS}
    every = boxes(SCENES, 1).clamp(0, 1)
    seen = 0
    for b, row in enumerate(draw_box_tasks(SCENES, 2, (task,))):
        for entry in row:
            seen += entry.task == task
            assert {*spelt(entry.question).split(), *spelt(entry.answer).split()} <= known, entry
            for text in [
                part for part in f"{entry.question.strip('?')} {entry.answer}".split() if part.startswith("[")
            ]:
                box = torch.tensor(parse_box(text, (1, 1)))
                assert overlap(box, every[b][SCENES.present[b]].double()).max() > 0.97
    assert seen > 20


def test_an_unknown_referring_task_is_refused_by_name():
    with pytest.raises(VistokError, match="'pointing'"):
        draw_box_tasks(SCENES, 1, ("pointing",))


def test_a_detail_is_about_the_object_in_its_box():
    small = shrink(SCENES, 0.4)
    details = draw_details(small)
    around = detail_boxes(small, details, 128)
    for b, (detail, box) in enumerate(zip(details, around, strict=True)):
        word = {"colour": COLOURS[int(small.colour[b, detail.slot])], "shape": SHAPES[int(small.shape[b, detail.slot])]}
        assert detail.answer == word[detail.kind]
        assert 0 < float((box[2:] - box[:2]).max()) < 128 * 0.2


def test_a_question_about_a_detail_has_the_same_answer_whichever_object_it_is_about():
    details = draw_details(SCENES)
    about = asked_about(SCENES, details)
    several = 0
    for b, detail in enumerate(details):
        slots = about[b].nonzero()[:, 0].tolist()
        told, answer = ("shape", "colour") if detail.kind == "colour" else ("colour", "shape")
        assert detail.slot in slots and bool(SCENES.present[b, slots].all())
        assert len({int(getattr(SCENES, told)[b, slot]) for slot in slots}) == 1
        assert len({int(getattr(SCENES, answer)[b, slot]) for slot in slots}) == 1
        several += len(slots) > 1
    assert 0 < several < len(details)
