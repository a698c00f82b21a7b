"""SEED's stages: what each trains, whose embeddings are learned, and mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.tiny import tiny
from vistok.errors import VistokError
from vistok.tokenizers import Seed
from vistok.train.tasks.seed import SeedTask
from vistok.train.trainer import Trainer

SHAPE = {"width": 32, "layers": 2, "heads": 2, "hidden": 64, "decode_layers": 1, "decode_heads": 2, "pixel_layers": 1}


def recipe(**sections):
    base = tiny("seed-mini")
    entries = {name: getattr(base, name) | more for name, more in sections.items()}
    return replace(base, **{"model": base.model | SHAPE} | entries)


def trained(task: SeedTask, step: int) -> set[str]:
    """Parts of the tokenizer that a step's loss moves."""
    task.model.zero_grad()
    task.model(**task.batch(step, slice(0, 4)))[0].backward()
    return {name.split(".")[0] for name, p in task.tokenizer.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_stages_train_what_the_paper_says():
    task = SeedTask(recipe())
    assert trained(task, 0) == {"query_tokens", "Qformer", "ln_vision"}
    codes = {"encode_task_layer", "quantize", "decode_task_layer", "pos_embed", "blocks"}
    image = {"pos_embed_image", "blocks_image", "image_down", "distill_image_proj"}
    assert trained(task, 1) == codes | image
    assert trained(task, 2) == {"pixel_head"}


def test_what_paints_predicts_hidden_codes_alone():
    """Its loss depends on no code that it is shown, and on those that are hidden by what is said of them alone."""
    task = SeedTask(recipe())
    batch = task.batch(2, slice(0, 4))
    assert batch["hidden"].any(1).all() and not batch["hidden"].all(1).any()
    head, seen = task.tokenizer.pixel_head, []
    head.register_forward_hook(lambda _, inputs, output: seen.append((inputs[1], output)))
    loss, _ = task.model(**batch)
    (shown, logits), hidden = seen[0], batch["hidden"]
    assert shown[hidden].eq(head.mask_id).all() and torch.equal(shown[~hidden], batch["codes"][~hidden])
    expected = -logits.log_softmax(-1)[hidden].gather(-1, batch["codes"][hidden][:, None]).mean()
    torch.testing.assert_close(loss, expected)


def test_tokens_stay_while_it_learns_to_paint(tmp_path):
    first = replace(recipe(), steps=2)
    Trainer(first, SeedTask(first), tmp_path / "codes").train()
    then = recipe(init={"tokenizer": str(tmp_path / "codes" / "export"), "tower": None, "text_encoder": None})
    then = replace(then, data=then.data | {"queries_until": 0, "codes_until": 0})
    Trainer(then, SeedTask(then), tmp_path / "pixels").train()
    before, after = (Seed.from_pretrained(tmp_path / each / "export") for each in ("codes", "pixels"))
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed and all(name.startswith("pixel_head.") for name in changed)


def test_the_feature_of_a_picture_is_its_last_query():
    task = SeedTask(recipe())
    batch = task.batch(0, slice(0, 4))
    loss, _ = task.model(**batch)
    with torch.no_grad():
        states = task.tokenizer.states(task.tokenizer.features(batch["images"]))
        images = torch.nn.functional.normalize(task.model.image(states[:, -1]), dim=-1)
        texts = torch.nn.functional.normalize(task.model.text(batch["captions"]), dim=-1)
        logits = images @ texts.T / 0.07
        own = torch.arange(4)
        expected = sum(torch.nn.functional.cross_entropy(x, own) for x in (logits, logits.T)) / 2
    torch.testing.assert_close(loss.detach(), expected, atol=1e-4, rtol=1e-4)


def test_codes_begin_at_latents():
    task = SeedTask(recipe())
    before = task.tokenizer.quantize.embedding.weight.clone()
    task.after_step(0)
    assert torch.equal(task.tokenizer.quantize.embedding.weight, before)
    task.after_step(1)
    assert not torch.equal(task.tokenizer.quantize.embedding.weight, before)


def test_a_run_goes_on_from_its_export(tmp_path):
    first = recipe()
    Trainer(first, SeedTask(first), tmp_path).train()
    again = recipe(init={"tokenizer": str(tmp_path / "export"), "tower": None}, data={"queries_until": 0})
    task = SeedTask(again)
    assert type(task.tokenizer) is Seed and "captions" not in task.batch(0, slice(0, 2))


def test_a_clip_of_transformers_teaches(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1, image_size=32, patch_size=16,
        projection_dim=6,
    )  # fmt: skip
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    task = SeedTask(recipe(init={"teacher": str(tmp_path)}))
    assert task.tokenizer.config.embed_dim == 6
    assert task.model(**task.batch(1, slice(0, 2)))[0].isfinite()


@pytest.mark.parametrize(
    ("sections", "culprit"),
    [
        ({"init": {"text_encoder": None}}, "text_encoder"),
        ({"init": {"tower": None}}, "init.tower"),
        ({"model": {"tower": "eva", "tower_width": 64, "tower_heads": 2, "tower_layers": 1}}, "tower"),
        ({"model": {"reconstruct": False}}, "reconstruct"),
        ({"model": {"image_size": 32}}, "64 pixels"),
        ({"model": {"embed_dim": 7}}, "embed_dim"),
        ({"model": {"pixels": None}}, "codes_until"),
        ({"data": {"pictures": None}}, "data.pictures"),
    ],
)
def test_recipes_that_make_no_sense(sections, culprit):
    with pytest.raises(VistokError, match=culprit):
        SeedTask(recipe(**sections))
