"""SEED-LLaMA: what it reads, that it draws and describes after training, and mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import vistok
from tests.train.tiny import tiny
from vistok.data.scenes import BACKGROUNDS, groups, sample_scenes, statements
from vistok.errors import VistokError
from vistok.models.codes.seed_llama import SeedLlamaGenerator
from vistok.samplers import SamplingParams
from vistok.train.tasks.scenes.contrast import untrue
from vistok.train.tasks.scenes.seed_llama import SeedLlamaTask, holds, truths
from vistok.train.trainer import Trainer
from vistok.zoo.transformers import load_causal_lm

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    base = tiny("seed-llama-mini", steps=2)
    recipe = replace(base, model=base.model | SHAPE | {"num_key_value_heads": 2})
    folder = tmp_path_factory.mktemp("seed-llama")
    Trainer(recipe, SeedLlamaTask(recipe), folder).train()
    return folder / "export"


@pytest.fixture(scope="module")
def pipe(exported):
    return vistok.pipeline(str(exported))


def test_every_other_picture_stands_before_its_caption():
    task = SeedLlamaTask(tiny("seed-llama-mini"))
    batch = task.batch(0, slice(0, 4))
    begin = task.vocabulary.convert_tokens_to_ids("<img>")
    first = (batch["input_ids"] == begin).long().argmax(1) == 1
    assert first.sum() == 2
    assert (batch["drawn"].sum(1) == 8).all()
    again = task.batch(len(task.source) // 4, slice(0, 4))  # the same pictures in the next pass
    assert torch.equal((again["input_ids"] == begin).long().argmax(1) == 1, ~first)


def test_it_draws_the_tokens_of_its_seed_as_its_network_predicts_them(pipe):
    out = pipe("a red circle", n=2, seed=3, params=SamplingParams(temperature=0.0))
    assert out.tokens.shape == (2, 8) and out.images[0].size == (64, 64)
    reader, model = pipe.model.reader, pipe.model
    ids = reader(["a red circle"]).ids
    for place in range(8):
        logits = model.network(input_ids=ids).logits[0, -1, model.plan.ids]
        assert int(logits.argmax()) == out.tokens[0, place]
        ids = torch.cat([ids, model.plan.ids[out.tokens[:1, place]][:, None]], 1)


def test_speculation_draws_the_same(pipe):
    params = SamplingParams(temperature=0.0, guidance=2.0)
    plain = pipe("two green squares", n=3, params=params)
    assert torch.equal(pipe("two green squares", n=3, params=params, sampler="sjd:window=4").tokens, plain.tokens)


def test_it_describes_pictures(pipe):
    said = pipe.model.describe(torch.zeros(2, 8, dtype=torch.long), length=5)
    assert len(said) == 2 and all("<img" not in text for text in said)
    with pytest.raises(VistokError, match="0 times"):
        pipe.model.describe(torch.zeros(1, 8, dtype=torch.long), "what is this?")


def test_a_language_model_without_the_codes_is_refused(pipe):
    network, vocabulary = load_causal_lm("text-mini")
    with pytest.raises(VistokError, match="<img>"):
        SeedLlamaGenerator(network, vocabulary, pipe.tokenizer)


def test_a_tokenizer_that_is_no_seed_is_refused(exported):
    with pytest.raises(VistokError, match="SEED"):
        vistok.pipeline(str(exported), tokenizer="vq-mini")
    base = tiny("seed-llama-mini")
    with pytest.raises(VistokError, match="SEED"):
        SeedLlamaTask(replace(base, init={"tokenizer": "vq-mini"}))
    with pytest.raises(VistokError, match="captions of scenes"):
        SeedLlamaTask(replace(base, data=base.data | {"source": "folder", "path": "pictures"}))


def test_true_captions_hold_and_untrue_ones_do_not():
    scenes = sample_scenes(64, seed=4)
    counted = 0
    for variant in range(4):
        for said, scene, behind in zip(
            statements(scenes, variant), groups(scenes), scenes.background.tolist(), strict=True
        ):
            true = truths(scene, BACKGROUNDS[behind])
            assert holds(said.text, true) and holds(said.text.replace(",", " ,"), true)
            other = untrue(said)
            if other is not None:
                assert not holds(other.text, true)
                counted += 1
    assert counted > 50
