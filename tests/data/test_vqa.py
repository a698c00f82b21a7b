"""The embedded multimodal models' language, and the task that trains them."""

from __future__ import annotations

import pytest
import torch

from tests.train.small_llava import recipe
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.vqa import (
    IGNORE,
    SLOT,
    UNKNOWN,
    draw_questions,
    llava_processor,
    prompt,
    question_tokens,
    token_ids,
    tokenizer,
    vocabulary,
)
from vistok.projectors import Compressor, Kept, compress
from vistok.train.tasks.scenes.packing import thinned
from vistok.train.tasks.scenes.tower import PATCH_CLASSES, patch_targets, scene_targets
from vistok.train.tasks.scenes.vqa import VqaTask


@pytest.fixture(scope="module")
def task() -> VqaTask:
    task = VqaTask(recipe())
    task.model.eval()
    return task


def test_every_question_is_known_and_fits_its_slot():
    scenes = sample_scenes(200, 5)
    text = tokenizer()
    for row in draw_questions(scenes, 16):
        for question in row:
            ids = text(question.text + " ASSISTANT: " + question.answer)["input_ids"]
            assert token_ids()[UNKNOWN] not in ids
            assert len(ids) - 1 <= SLOT
    assert len(vocabulary()) == len(set(vocabulary()))


def test_questions_are_drawn_evenly_and_reproducibly():
    scenes = sample_scenes(400, 5)
    drawn = draw_questions(scenes, 4)
    assert drawn == draw_questions(scenes, 4) != draw_questions(scenes, 4, variant=1)
    assert drawn[7:9] == draw_questions(scenes[7:9], 4)
    assert all(len({q.text for q in row}) == 4 for row in drawn)
    yes = [q.answer == "yes" for row in drawn for q in row if q.kind == "exists"]
    assert 0.4 < sum(yes) / len(yes) < 0.6


def test_targets_are_the_answer_and_the_end():
    questions, targets = question_tokens(draw_questions(sample_scenes(3, 5), 4))
    assert questions.shape == targets.shape == (3, 4, SLOT)
    assert ((targets != IGNORE).sum(-1) == 2).all()
    asked = (questions == token_ids()["assistant:"]).nonzero()
    row, slot, place = asked.T
    assert torch.equal(targets[row, slot, place], questions[row, slot, place + 1])
    assert (targets[row, slot, place + 1] == token_ids()["</s>"]).all()


def test_packed_questions_are_answered_as_if_asked_alone(task):
    """Logits behind "ASSISTANT:" of packed questions are those of the transformers model on the processor's input."""
    scenes = sample_scenes(2, 9)
    drawn = draw_questions(scenes, 3)
    questions, _ = question_tokens(drawn)
    images = render(scenes, 64)
    processor = llava_processor(64, 8)
    with torch.no_grad():
        packed = task.model.answer_logits(task.model.visual_tokens(images)[0], questions)
        for row, picture in enumerate(to_pil(images)):
            for k, question in enumerate(drawn[row]):
                inputs = processor(images=picture, text=prompt(question.text), return_tensors="pt")
                inputs["pixel_values"] = images[row : row + 1]  # the picture's own 8 bits would blur the comparison
                place = (questions[row, k] == token_ids()["assistant:"]).nonzero().item()
                alone = task.model.llava(**inputs).logits[0, -1]
                torch.testing.assert_close(packed[row, k, place], alone, atol=2e-5, rtol=0)


def test_tokens_left_out_in_training_are_as_if_compressed_away(task):
    """Masked tokens give the logits of the same choice under ``compress``, positions included."""

    class Chosen(Compressor):
        def select(self, image):
            return [Kept(kept[0].nonzero().squeeze(1))]

    scenes = sample_scenes(1, 9)
    (question,) = draw_questions(scenes, 1)[0]
    questions, _ = question_tokens([[question]])
    images = render(scenes, 64)
    kept = thinned(torch.zeros(1, 64, dtype=torch.bool), seed=2)
    assert 0 < kept.sum() < 64
    inputs = llava_processor(64, 8)(images=to_pil(images)[0], text=prompt(question.text), return_tensors="pt")
    inputs["pixel_values"] = images
    place = (questions[0, 0] == token_ids()["assistant:"]).nonzero().item()
    with torch.no_grad():
        packed = task.model.answer_logits(task.model.visual_tokens(images)[0], questions, kept)[0, 0, place]
        with compress(task.model.llava, Chosen()):
            alone = task.model.llava(**inputs).logits[0, -1]
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=0)


def test_thinning_keeps_the_drawn_shares_and_leans():
    shown = torch.arange(64).expand(4000, -1) < 16
    kept = thinned(shown, seed=0)
    assert sorted(kept.sum(1).unique().tolist()) == [8, 16, 32, 64]
    assert 0.37 < (kept.sum(1) == 64).float().mean() < 0.43
    few = kept[kept.sum(1) == 16]
    objects = few[:, :16].sum(1)
    assert (objects == 16).float().mean() > 0.2  # leaning 1 keeps objects alone
    assert (objects <= 4).float().mean() > 0.2  # leaning to background, and none
    assert torch.equal(kept, thinned(shown, seed=0))


def test_processor_gives_the_training_pictures():
    images = render(sample_scenes(1, 9), 64)
    pixels = llava_processor(64, 8).image_processor(images=to_pil(images)[0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, images, atol=0.005, rtol=0)


def test_patch_and_scene_targets():
    scenes = sample_scenes(64, 3)
    classes, offsets = patch_targets(scenes, 64, 8)
    assert classes.shape == (64, len(PATCH_CLASSES), 64)
    assert offsets.shape == (64, 2, 64)
    shown = classes[:, 0] > 0
    assert ((classes > 0).all(1) == shown).all()
    assert shown.any(1).all()
    assert offsets.abs().amax() < 0.25  # a patch of an object lies near its centre
    assert (offsets.abs().sum(1)[~shown] == 0).all()
    assert (scene_targets(scenes)[:, :6].sum(1) == scenes.present.sum(1)).all()


def test_a_step_lowers_the_loss_and_the_export_loads(task, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    fresh = VqaTask(recipe())
    batch = fresh.batch(0, slice(0, 2))
    optimizer = torch.optim.SGD(fresh.model.parameters(), lr=1e-4)
    first, _ = fresh.model(**batch)
    first.backward()
    assert all(p.grad is not None for n, p in fresh.model.named_parameters() if "vision_tower" not in n)
    optimizer.step()
    assert fresh.model(**batch)[0] < first
    metrics = fresh.evaluate()
    assert 0 <= metrics["exact_match"] <= 1
    fresh.export(tmp_path, metrics, 1)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=to_pil(batch["images"])[0], text=prompt("what is the background?"), return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 64
    assert model.generate(**inputs, max_new_tokens=1).shape[1] == inputs["input_ids"].shape[1] + 1
