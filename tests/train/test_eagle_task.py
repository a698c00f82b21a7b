"""The ``eagle`` task on pictures that the target draws, and going on from a trained drafter."""

from __future__ import annotations

import torch

from vistok.models.heads.eagle import EagleNetwork
from vistok.models.interface import Condition
from vistok.samplers import Autoregressive, Noise, SamplingParams
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw
from vistok.train.tasks.eagle import EagleTask

DATA = {"size": 64, "seed": 1, "pictures": 2, "eval_pictures": 2, "guidance": 2.0, "token_weight": 1.0, "noise": 1.0}


def test_a_target_draws_the_pictures_that_its_drafter_goes_on_learning_from():
    data = DATA | {"drawn": True, "temperature": 0.9}
    init = {"gpt": "llamagen-mini", "vq": "vq-mini", "drafter": "llamagen-mini-eagle"}
    task = EagleTask(
        Recipe("tiny", "eagle", steps=1, batch_size=2, model={"intermediate_size": 768}, data=data, init=init)
    )
    trained = EagleNetwork.from_pretrained("llamagen-mini-eagle").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in task.model.drafter.state_dict().items())
    batch = task.batch(0, slice(0, 2))
    index = torch.arange(2)
    condition, mask = task.text(task.source.captions(Draw(index, torch.zeros_like(index))))
    law, noise = SamplingParams(2.0, temperature=0.9), Noise(0, index)
    drawn, _ = Autoregressive().sample(task.gpt, Condition(condition, mask), law, noise)
    assert torch.equal(batch["tokens"], drawn)
    task.model(batch["features"], batch["tokens"])[0].backward()
    assert task.model.drafter.fc.weight.grad.abs().sum() > 0
