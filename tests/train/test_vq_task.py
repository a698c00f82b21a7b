"""The adversarial term: each side learns from its own loss, and only from the step that the recipe names."""

from dataclasses import replace

import torch

from tests.train.test_trainer import VQ
from vistok.tokenizers.discriminator import PatchDiscriminator
from vistok.train.tasks.adversary import Adversary
from vistok.train.tasks.vq import VQTask
from vistok.train.trainer import Trainer

ADVERSARIAL = replace(VQ, data=VQ.data | {"adversarial_weight": 0.5, "adversarial_from": 2})


def gradients(task, step):
    loss, metrics = task.model(**task.batch(step, slice(0, 4)))
    loss.backward()
    found = {n: p.grad.abs().sum() for n, p in task.model.named_parameters() if p.grad is not None}
    task.model.zero_grad()
    return found, metrics


def test_the_adversary_joins_at_its_step():
    task = VQTask(ADVERSARIAL)
    early, late = gradients(task, 1)[0], gradients(task, 2)[0]
    plays = [n for n in late if n.startswith("adversary.")]
    assert plays
    assert all(early[n] == 0 for n in plays)
    assert all(late[n] > 0 for n in plays if n.endswith("weight"))


def test_each_loss_reaches_its_own_weights():
    torch.manual_seed(0)
    adversary = Adversary()
    images = torch.randn(2, 3, 32, 32)
    reconstruction = torch.randn(2, 3, 32, 32, requires_grad=True)
    fooled, told = adversary(images, reconstruction)
    weights = list(adversary.parameters())
    assert all(g is None for g in torch.autograd.grad(fooled, weights, retain_graph=True, allow_unused=True))
    assert torch.autograd.grad(told, [reconstruction], retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(fooled, reconstruction)[0].abs().sum() > 0


def test_an_adversarial_run_trains_both(tmp_path):
    task = VQTask(ADVERSARIAL)
    before = {n: p.detach().clone() for n, p in task.model.adversary.named_parameters()}
    Trainer(ADVERSARIAL, task, tmp_path).train()
    assert any((p != before[n]).any() for n, p in task.model.adversary.named_parameters())
    assert isinstance(task.model.adversary.discriminator, PatchDiscriminator)
