"""The tasks that start from a small LLaVA: each trains what transformers later runs."""

from __future__ import annotations

import pytest
import torch

from tests.train.small_llava import assert_asked_alone, small_llava
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.vqa import draw_questions, prompt, question_tokens, scene_side
from vistok.eval.answers.ask import ask, load
from vistok.projectors import TokenPacker
from vistok.projectors.apply.compress import active
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task
from vistok.train.tasks.scenes.tower import tower_states
from vistok.train.tasks.scenes.vqa_anyres import anyres_views

KINDS = {
    "vqa-anyres": ({}, 64 + 16 * 17),
    "vqa-tokenpacker": ({"num_heads": 2, "scale_factor": 2, "states": [1, 2, 3, 4]}, 16),
    "vqa-pvc": ({"temporal_layers": 2}, 16),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return small_llava(tmp_path_factory.mktemp("start"))


def build(kind: str, start: str):
    data = {"seed": 1, "questions": 2, "eval_pictures": 64}
    task = build_task(
        Recipe(name="small", task=kind, steps=1, batch_size=2, model=KINDS[kind][0], data=data, init={"llava": start})
    )
    task.model.eval()
    return task


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_is_what_loads(kind, start, tmp_path):
    """Packed logits of the task are those of the exported model on the processor's prompts."""
    task = build(kind, start)
    scenes = sample_scenes(2, 9)
    drawn = draw_questions(scenes, 2)
    questions, _ = question_tokens(drawn)
    pixels = task.pictures(scenes)
    for parameter in task.model.parameters():
        parameter.data = parameter.data.half().float()  # the export keeps half precision
    with torch.no_grad():
        packed = task.model.answer_logits(task.model.visual_tokens(pixels)[0], questions)
    task.export(tmp_path, {"exact_match": 0.0}, 1)
    model, processor = load(str(tmp_path), "cpu")
    pictures = to_pil(render(scenes, scene_side(model.config)))
    for picture, trained_on in zip(pictures, pixels, strict=True):
        given = processor(images=picture, text=prompt("what?"), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(given.reshape(trained_on.shape), trained_on, atol=0.02, rtol=0)
    assert_asked_alone(model, processor, pictures, pixels, drawn, questions, packed, atol=5e-5, rtol=0)
    answer, _ = ask(model, processor, pictures[0], drawn[0][0].text, None, 1)
    assert answer.visual_tokens == KINDS[kind][1]
    assert (active(model) is not None) == (kind == "vqa-tokenpacker")


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reaches_what_is_trained(kind, start):
    task = build(kind, start)
    loss, metrics = task.model(**task.batch(0, slice(0, 2)))
    loss.backward()
    assert torch.isfinite(loss)
    assert set(metrics) == {"answers", "patches", "scene"}
    untouched = {n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None}
    assert not untouched


def test_views_of_larger_pictures():
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    views = anyres_views(images)
    assert views.shape == (2, 5, 3, 4, 4)
    assert torch.equal(views[:, 2], images[:, :, :4, 4:])
    assert torch.equal(views[:, 3], images[:, :, 4:, :4])


def test_patches_of_crops_are_told_as_seen_from_them(start):
    """An object that a crop shows whole has offsets that point at its centre, in sides of the crop."""
    task = build("vqa-anyres", start)
    scenes = sample_scenes(32, 3)
    classes, offsets = task.patch_targets(scenes)
    assert classes.shape == (32, 3, 5 * 64)
    assert offsets.shape == (32, 2, 5 * 64)
    line = (torch.arange(8) + 0.5) / 8
    places = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1)
    for crop, corner in ((1, (0, 0)), (2, (1, 0)), (3, (0, 1)), (4, (1, 1))):
        at = slice(64 * crop, 64 * (crop + 1))
        shown = (classes[:, 0, at] > 0)[:, None]
        centres = (offsets[..., at] + places + torch.tensor(corner)[:, None]) / 2  # in sides of the picture
        distances = (centres[:, None] - scenes.centre.float()[..., None]).abs().sum(2)  # [B, slots, N]
        assert (distances.amin(1)[shown[:, 0]] < 1e-5).all()


def test_progressive_tower_starts_as_the_clip_tower_it_comes_from(start):
    """Closed temporal layers: each frame's patches are close to CLIP's, whose embedding norm is only averaged."""
    task = build("vqa-pvc", start)
    images = render(sample_scenes(8, 5), 64)
    from vistok.train.tasks.scenes.llava import load_llava

    clip = load_llava(start).model.vision_tower
    with torch.no_grad():
        mine, _ = task.model.llava.model.vision_tower.pvc.patches(images)
        theirs = tower_states(clip, images)[-2][:, 1:]
    assert torch.equal(mine[:, 0], mine[:, 3])
    cosine = torch.cosine_similarity(mine[:, 0] - mine[:, 0].mean(-1, True), theirs - theirs.mean(-1, True), dim=-1)
    assert cosine.mean() > 0.9


def test_tokenpacker_round_trip(tmp_path):
    packer = TokenPacker(4, 8, 2, 6, 2, states=(1, 2)).eval()
    packer.save_pretrained(tmp_path)
    again = TokenPacker.from_pretrained(tmp_path)
    x = torch.randn(1, 16, 8)
    fine = torch.randn(1, 16, 16)
    assert torch.equal(packer(x, fine), again(x, fine))
    assert again.states == (1, 2)
