"""The flow tokenizer's task: what its objective is told, and what it trains."""

from __future__ import annotations

import torch

from vistok.train.recipe import Recipe
from vistok.train.tasks.flextok import FlexTokTask

RECIPE = Recipe(
    name="flextok-test",
    task="flextok",
    steps=2,
    batch_size=4,
    model={
        "encoder": [64, 1],
        "decoder": [64, 2],
        "head_dim": 32,
        "groups": 1,
        "registers": 4,
        "levels": [4, 4],
        "latent_channels": 5,
        "latent_size": 16,
        "patch": 2,
        "time_features": 16,
        "repa_layer": 0,
    },
    init={"kl": "kl-mini"},
    data={
        "seed": 9,
        "scenes": 32,
        "eval_scenes": 4,
        "anchor": 0.3,
        "anchor_scenes": 32,
        "supervision": [0.2, 0.3, 1.0],
    },
)


def test_every_term_trains_and_the_autoencoder_stays():
    task = FlexTokTask(RECIPE)
    loss, metrics = task.model.train()(**task.batch(0, slice(0, 4)))
    assert set(metrics) == {"flow", "patches", "first", "silhouettes", "saturated", "anchor"}
    parts = [metrics["flow"], metrics["patches"], metrics["first"], metrics["silhouettes"]]
    expected = sum(w * x for w, x in zip((1.0, 0.2, 0.3, 1.0), parts, strict=True))
    torch.testing.assert_close(loss.detach(), expected + metrics["saturated"] + 0.3 * metrics["anchor"])
    loss.backward()
    trained = {name for name, p in task.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"silhouettes.weight", "patches.weight", "first.0.bias"} <= trained
    assert not any(".vae." in name for name in trained)


def test_a_batch_is_the_same_however_it_is_split():
    task = FlexTokTask(RECIPE)
    whole = task.batch(3, slice(0, 4))
    halves = [task.batch(3, slice(0, 2)), task.batch(3, slice(2, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), value)
