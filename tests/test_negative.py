"""Prompts that guidance leads away from: every family that reads prompts has them, and no other pretends to."""

from __future__ import annotations

import json

import pytest
import torch

import vistok
from tests.cli.test_cli import vistok as command
from tests.models.test_masked import KINDS
from tests.test_families import fails
from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.xar import XAR, XARConfig
from vistok.samplers import Noise, SamplingParams
from vistok.zoo import WEIGHTS
from vistok.zoo.model_card import ModelCard, write_card

PROMPT, AVOIDED = "a red circle", "a green ring"
SAMPLERS = {"llamagen": "ar", "enat": "masked:steps=3", "maskgit": "masked:steps=3", "xar": "xar:num_steps=3"}
TOKENIZER = {"enat": "vq-mini", "maskgit": "vq-mini", "xar": "kl-mini"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Generators of captions, which the encoder of ``llamagen-mini`` reads."""
    root, width = tmp_path_factory.mktemp("captioned"), {"caption_dim": 128, "embed_dim": 16, "num_heads": 2}
    torch.manual_seed(0)
    models = {
        family: kind(config(grid=16, codebook_size=512, **width, **depths))
        for family, (kind, config, depths) in KINDS.items()
    }
    halves = {"encoder_depth": 1, "decoder_depth": 1}
    models["xar"] = XAR(XARConfig(64, 4, 1, 5, "cell:8", caption_tokens=32, **width, **halves))
    for family, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        model.save_pretrained(root / family)
        parts = {"tokenizer": TOKENIZER[family], "text_encoder": "llamagen-mini"}
        card = ModelCard(family, "text-to-image", family, 0, {}, str(root / family), "Apache-2.0", parts=parts)
        write_card(root / family, card)
    return root


def load(folders, family: str) -> vistok.pipelines.Pipeline:
    return vistok.pipeline("llamagen" if family == "llamagen" else str(folders / family))


@pytest.mark.parametrize("family", SAMPLERS)
def test_the_unguided_half_reads_the_negative_prompt(folders, family):
    pipe, sampler = load(folders, family), SAMPLERS[family]
    condition = pipe.condition([PROMPT])
    avoided = pipe.with_negative(AVOIDED).condition([PROMPT]).negative
    prepared = pipe.sampler(sampler).prepare(pipe.model, pipe.tokenizer)
    noise, params = Noise(0, torch.tensor([0])), SamplingParams(2.0)

    def draw(negative):
        given = Condition(condition.values, condition.mask, negative=negative)
        return prepared.sample(pipe.model, given, params, noise)[0][:, :40]

    assert torch.equal(
        draw(avoided), pipe.with_negative(AVOIDED)(PROMPT, sampler=sampler, params=params).tokens[:, :40]
    )
    assert not torch.equal(draw(avoided), draw(None))
    # Away from itself, a prompt is drawn as it is without guidance.
    itself = prepared.sample(
        pipe.model, Condition(condition.values, condition.mask, negative=condition), params, noise
    )[0]
    if family == "llamagen":
        assert torch.equal(itself, prepared.sample(pipe.model, condition, SamplingParams(1.0), noise)[0])


@pytest.mark.parametrize("family", TOKENIZER)
def test_captioned_generators_paint_the_same_in_any_batch_and_fill(folders, family, tmp_path):
    pipe = load(folders, family)
    assert (pipe.conditional_on, pipe.model.classes, pipe.model.text_width) == ("text", 0, 128)
    prompts = [PROMPT, "two large blue squares and a pink cross on a plain background", AVOIDED]
    together, alone = (pipe(prompts, seed=2, batch_size=size, sampler=SAMPLERS[family]) for size in (3, 1))
    if together.tokens.is_floating_point():
        torch.testing.assert_close(together.tokens, alone.tokens, atol=1e-4, rtol=0)
    else:
        assert torch.equal(together.tokens, alone.tokens)
    together.images[0].save(tmp_path / "scene.png")
    from PIL import Image

    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    filled = pipe.with_image(tmp_path / "scene.png", tmp_path / "mask.png")(AVOIDED, sampler=SAMPLERS[family])
    stays = filled.stats.step_of[0] == 0
    assert 0 < int(stays.sum()) < 256


@pytest.mark.parametrize("family", ["maskgit", "xar"])
def test_geneval_draws_by_the_plain_sampler_of_the_family(folders, family, tmp_path):
    call = ("eval", "geneval", "--model", str(folders / family), "--per-task", "1", "--per-prompt", "1")
    done = command(*call, "--out", str(tmp_path / "set"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) and list((tmp_path / "set" / "images").glob("*/samples/*.png"))


@pytest.mark.parametrize("encoder", ["llamagen-mini", str(WEIGHTS / "llamagen-mini" / "text_encoder")])
def test_a_caption_encoder_is_a_folder_or_a_generator_that_has_one(folders, tmp_path, encoder):
    kind, parts = KINDS["maskgit"][0], {"tokenizer": "vq-mini", "text_encoder": encoder}
    kind.from_pretrained(folders / "maskgit").save_pretrained(tmp_path)
    write_card(tmp_path, ModelCard("own", "text-to-image", "maskgit", 0, {}, "", "Apache-2.0", parts=parts))
    expected = vistok.pipeline("llamagen").condition([PROMPT]).values
    assert torch.equal(vistok.pipeline(str(tmp_path)).condition([PROMPT]).values, expected)  # as the card tells
    (tmp_path / "card.json").unlink()
    told = vistok.pipeline("maskgit", checkpoint=tmp_path, tokenizer="vq-mini", text_encoder=encoder)
    assert torch.equal(told.condition([PROMPT]).values, expected)


def test_the_command_guides_away_and_another_negative_is_another_job(folders, tmp_path):
    call = ("sample", "--model", str(folders / "maskgit"), "--prompt", PROMPT, "--sampler", "masked:steps=2")
    given = (*call, "--out", str(tmp_path / "job"), "--json")
    done = command(*given, "--negative", AVOIDED)
    assert done.returncode == 0 and json.loads(done.stdout)["pictures"] == 1, done.stderr
    assert json.loads(command(*given, "--negative", AVOIDED).stdout)["skipped"] == 1
    fails(command(*given, "--negative", PROMPT), "job")


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("mar", ("--class", "1", "--negative", AVOIDED), ("classes", "--negative")),
        ("maskgit", ("--prompt", PROMPT, "--negative", AVOIDED, "--cfg", "1"), ("negative", "--cfg")),
        ("maskgit", ("--prompt", PROMPT, "--negative", "a zebra"), ("zebra",)),
        ("maskgit", ("--prompt", PROMPT, "--negative", " "), ("empty",)),
        ("maskgit", ("--class", "1"), ("prompts",)),
    ],
)
def test_what_cannot_be_avoided_is_told(folders, tmp_path, model, more, said):
    name = str(folders / model) if (folders / model).exists() else model
    fails(command("sample", "--model", name, *more, "--out", str(tmp_path / "x.png")), *said)
    assert not (tmp_path / "x.png").exists()


def test_python_refuses_the_same(folders):
    with pytest.raises(VistokError, match="classes"):
        vistok.pipeline("mar").with_negative(AVOIDED)


def test_a_negative_prompt_is_not_dropped_by_saving(folders, tmp_path):
    with pytest.raises(VistokError, match="negative"):
        load(folders, "maskgit").with_negative(AVOIDED).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
