"""The tasks that train 1D and dual-codebook tokenizers and their generators: they run, repeat themselves, and export
what loads strictly and does what its card says.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vistok import zoo
from vistok.data.scenes import NUM_CLASSES, render, sample_scenes
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.kl import KLAutoencoder
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vistok.train.recipe import Optimization, Recipe
from vistok.train.tasks import build_task
from vistok.train.tasks.scenes.flextok import right_class
from vistok.train.tasks.scenes.probes import object_cells
from vistok.train.trainer import Trainer
from vistok.zoo.checkpoint import read_state_dict

SHORT = {"steps": 2, "log_every": 1, "save_every": 1, "optimization": Optimization(lr=1e-3, muon_lr=1e-3, warmup=1)}
ONE_D_PIECE = Recipe(
    name="one-d-piece-test",
    task="one-d-piece",
    batch_size=4,
    model={
        "encoder": [32, 1, 2],
        "decoder": [32, 1, 2],
        "num_tokens": 4,
        "codebook_size": 16,
        "token_size": 4,
        "legacy": False,
        "pixel_decoder": False,
        "variable_length": True,
        "image_size": 32,
        "patch_size": 8,
    },
    data={"seed": 3, "eval_pictures": 8, "revive_every": 1, "revive_until": 2},
    **SHORT,
)
FLEXTOK = Recipe(
    name="flextok-test",
    task="flextok",
    batch_size=4,
    model={
        "encoder": [32, 1],
        "decoder": [32, 2],
        "head_dim": 16,
        "registers": 4,
        "levels": [4, 4, 4],
        "latent_channels": 5,
        "latent_size": 16,
        "patch": 4,
        "time_features": 16,
    },
    init={"kl": "kl-mini"},
    data={
        "seed": 3,
        "pictures": 64,
        "eval_pictures": 4,
        "supervision": [0.1, 0.1, 0.1],
        "anchor": 0.3,
        "anchor_pictures": 64,
    },
    **SHORT,
)
WEIGHED = replace(FLEXTOK, data={**FLEXTOK.data, "supervision": [0.2, 0.3, 1.0]})
TOKENFLOW = Recipe(
    name="tokenflow-test",
    task="tokenflow",
    batch_size=2,
    model={
        "image_size": 64,
        "codebook_size": 64,
        "semantic_dim": 8,
        "scales": [1, 16],
        "semantic_width": 24,
        "semantic_depth": 1,
        "semantic_heads": 2,
    },
    init={"vq": "vq-mini", "teacher": "scenes-features"},
    data={"seed": 3, "semantic": 1.0, "eval_pictures": 8, "revive_every": 2, "revive_until": 3},
    **SHORT,
)


@pytest.mark.parametrize("recipe", [ONE_D_PIECE, FLEXTOK, TOKENFLOW], ids=lambda recipe: recipe.task)
def test_a_run_exports_a_tokenizer_of_its_family(recipe, tmp_path):
    metrics = Trainer(recipe, build_task(recipe), tmp_path).train()
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.startswith(("probe", "right", "codebook_u")))
    loaded = load_tokenizer(str(tmp_path / "export"))
    card = zoo.read_card(tmp_path / "export")
    assert card.steps == 2 and card.metrics.keys() == metrics.keys()
    assert card.files["model.safetensors"] == loaded.sha256
    can = loaded.tokenizer.capabilities
    images = render(sample_scenes(2, 7), can.image_size)
    tokens = loaded.tokenizer.encode(images)
    assert int(tokens.max()) < can.codebook_size
    for length in can.lengths:
        assert loaded.tokenizer.decode(tokens, length).shape == images.shape


@pytest.mark.parametrize("recipe", [ONE_D_PIECE, FLEXTOK], ids=lambda recipe: recipe.task)
def test_a_batch_is_a_function_of_its_step(recipe):
    first, again = build_task(recipe).batch(1, slice(0, 4)), build_task(recipe).batch(1, slice(0, 4))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    half = build_task(recipe).batch(1, slice(2, 4))
    for name, value in half.items():  # another process draws the rows that the whole batch has
        assert torch.allclose(value.float(), first[name][2:].float(), atol=2e-3), name
    other = build_task(recipe).batch(0, slice(0, 4))
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_frozen_teacher_and_frozen_latents_stay(tmp_path):
    for recipe, part in ((FLEXTOK, "vae"), (TOKENFLOW, "encoder_vqkd")):
        task = build_task(recipe)
        before = {name: value.clone() for name, value in getattr(task.tokenizer, part).state_dict().items()}
        Trainer(recipe, task, tmp_path / part).train()
        after = getattr(task.tokenizer, part).state_dict()
        assert before and all(torch.equal(value, after[name]) for name, value in before.items())


def test_every_term_of_flextok_trains_and_the_autoencoder_stays():
    task = build_task(WEIGHED)
    loss, metrics = task.model.train()(**task.batch(0, slice(0, 4)))
    assert set(metrics) == {"flow", "patches", "first", "silhouettes", "saturated", "anchor"}
    parts = [metrics["flow"], metrics["patches"], metrics["first"], metrics["silhouettes"]]
    expected = sum(w * x for w, x in zip((1.0, 0.2, 0.3, 1.0), parts, strict=True))
    torch.testing.assert_close(loss.detach(), expected + metrics["saturated"] + 0.3 * metrics["anchor"])
    loss.backward()
    trained = {name for name, p in task.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"silhouettes.weight", "patches.weight", "first.0.bias"} <= trained
    assert not any(".vae." in name for name in trained)


@pytest.mark.parametrize("embedded", [True, False])
def test_an_embedded_autoencoder_of_flextok_is_not_written_again(embedded, tmp_path):
    name = "kl-mini"
    if not embedded:
        name = str(tmp_path / "kl")
        KLAutoencoder.from_pretrained("kl-mini").save_pretrained(name)
    recipe = replace(FLEXTOK, init={"kl": name})
    task = build_task(recipe)
    Trainer(recipe, task, tmp_path).train()
    path = tmp_path / "export" / "model.safetensors"
    assert any(key.startswith("vae.") for key in read_state_dict(path)) != embedded
    loaded, trained = FlexTok.from_pretrained(path.parent).state_dict(), task.tokenizer.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(value, trained[key]) for key, value in loaded.items() if key.startswith("vae."))
    FlexTok.from_pretrained(path.parent).save_pretrained(tmp_path / "again")  # whole
    again = FlexTok.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in again.items())


def test_flextok_can_keep_its_tokens_while_what_paints_learns(tmp_path):
    recipe = replace(WEIGHED, data=WEIGHED.data | {"keep_tokens": True})
    task = build_task(recipe)
    images = render(sample_scenes(2, 7), task.tokenizer.config.image_size)
    before = {name: value.clone() for name, value in task.tokenizer.state_dict().items()}
    tokens = task.tokenizer.encode(images)
    Trainer(recipe, task, tmp_path).train()
    moved = {name for name, value in task.tokenizer.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("decoder.") for name in moved)
    assert torch.equal(FlexTok.from_pretrained(tmp_path / "export").encode(images), tokens)


def test_a_batch_of_flextok_is_the_same_however_it_is_split():
    task = build_task(WEIGHED)
    whole = task.batch(3, slice(0, 4))
    halves = [task.batch(3, slice(0, 2)), task.batch(3, slice(2, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), value)


def test_flextok_goes_on_under_other_laws_of_training(tmp_path):
    Trainer(FLEXTOK, build_task(FLEXTOK), tmp_path).train()
    late = replace(
        FLEXTOK, init={"tokenizer": str(tmp_path / "export")}, model={**FLEXTOK.model, "time_shift": 20.0}, seed=1
    )
    begun = build_task(late).tokenizer
    assert begun.config == replace(FlexTok.from_pretrained(tmp_path / "export").config, time_shift=20.0)
    plain = replace(begun.config, time_shift=1.0)
    drawn = begun.draw(64, torch.Generator().manual_seed(0)).sigma
    begun.config = plain
    same = begun.draw(64, torch.Generator().manual_seed(0)).sigma
    assert torch.allclose(drawn / (1 - drawn), 20 * same / (1 - same), rtol=1e-3)  # the odds of being late


def test_right_class_counts_what_the_detector_finds():
    scenes = sample_scenes(24, 5)
    images, kinds = render(scenes, 64), scenes.kinds_present
    assert kinds.sum(1).min() >= 1 and kinds.shape == (24, NUM_CLASSES)
    assert right_class(images, kinds) == 1
    assert right_class(images, ~kinds) == 0
    assert right_class(torch.zeros_like(images), kinds) == 0


def test_object_cells_show_their_object():
    scenes = sample_scenes(6, 5)
    inside, shape, colour = object_cells(scenes, 16)
    assert int(inside.sum()) == len(shape) == len(colour)
    for row in range(6):
        if int(scenes.present[row].sum()) == 1:
            mine = inside.flatten(1).sum(1)[:row].sum(), inside.flatten(1).sum(1)[: row + 1].sum()
            assert set(shape[mine[0] : mine[1]].tolist()) == {int(scenes.shape[row][scenes.present[row]])}


def test_a_generator_of_sequences_trains_and_stops_at_any_length(tmp_path):
    Trainer(ONE_D_PIECE, build_task(ONE_D_PIECE), tmp_path / "tokenizer").train()
    recipe = Recipe(
        name="llamagen-sequence-test",
        task="llamagen-sequence",
        batch_size=4,
        model={"dim": 32, "n_layer": 1, "n_head": 2, "multiple_of": 16},
        init={
            "vq": str(tmp_path / "tokenizer" / "export"),
            "text_encoder": str(zoo.WEIGHTS / "llamagen-mini" / "text_encoder"),
        },
        data={"size": 32, "seed": 3, "pictures": 8, "eval_pictures": 4},
        **SHORT,
    )
    metrics = Trainer(recipe, build_task(recipe), tmp_path / "gpt").train()
    assert metrics["held_out_loss"] > 0
    gpt = LlamaGen.from_pretrained(tmp_path / "gpt" / "export")
    assert (gpt.config.layout, gpt.config.block_size, gpt.config.vocab_size) == ("sequence", 4, 16)
    gpt.stop_at(2)
    assert gpt.config.block_size == 2
    with pytest.raises(VistokError, match="1 to 2 tokens"):
        gpt.stop_at(3)
    first = replace(recipe, data=recipe.data | {"tokens": 3})
    whole, start = build_task(recipe), build_task(first)
    assert start.model.gpt.config.block_size == 3
    assert torch.equal(start.batch(0, slice(0, 4))["tokens"], whole.batch(0, slice(0, 4))["tokens"][:, :3])
    with pytest.raises(VistokError, match="tokens"):
        build_task(replace(recipe, data=recipe.data | {"tokens": 5}))


def test_the_published_stages_follow_each_other(tmp_path):
    torch.manual_seed(0)
    shape = MaskGITVQGANConfig(codebook_size=16, codebook_dim=8, channels=32, channel_mult=(1, 1, 1, 1), res_blocks=1)
    MaskGITVQGAN(shape).save_pretrained(tmp_path / "proxy")
    entries = {"legacy": True, "proxy_size": 16, "proxy_dim": 8, "proxy_channels": 32, "proxy_res_blocks": 1}
    model = ONE_D_PIECE.model | entries | {"proxy_mult": (1, 1, 1, 1)}
    proxy = {"proxy": str(tmp_path / "proxy")}
    first = replace(ONE_D_PIECE, model=model, init=proxy)
    metrics = Trainer(first, build_task(first), tmp_path / "first").train()
    assert 0 < metrics["held_out_loss"] < 10
    data = ONE_D_PIECE.data | {"stage": 2, "adversarial_weight": 0.01, "adversarial_from": 1, "revive_every": 0}
    second = replace(first, init=proxy | {"tokenizer": str(tmp_path / "first" / "export")}, data=data)
    task = build_task(second)
    frozen = {name: value.clone() for name, value in task.tokenizer.encoder.state_dict().items()}
    painted = task.tokenizer.pixel_decoder.conv_out.weight.detach().clone()
    assert Trainer(second, task, tmp_path / "second").train()["psnr_4"] > 0
    assert all(torch.equal(value, task.tokenizer.encoder.state_dict()[name]) for name, value in frozen.items())
    assert not torch.equal(painted, task.tokenizer.pixel_decoder.conv_out.weight)
    losses = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0]["adversarial_loss"] and losses[1]["discriminator_loss"]
    assert load_tokenizer(str(tmp_path / "second" / "export")).tokenizer.config.pixel_decoder
    with pytest.raises(VistokError, match="stage 2 needs"):
        build_task(replace(second, init=proxy | {"tokenizer": str(tmp_path / "second" / "export")}))
