"""A draft MAR learns its target's law: distances vanish where the two agree, and shrink in training."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vistok.errors import VistokError
from vistok.models.mar import MAR, MARConfig
from vistok.models.mar.diffusion import gaussian_divergence
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task
from vistok.train.tasks.mar import draw_mask
from vistok.train.tasks.mar_distillation import Distillation, OwnPictures, OwnShare, Sampling
from vistok.train.tasks.scenes.mar import SupervisedMAR

SAMPLING = Sampling(guidance=2.0, head_steps=10, spacing="root")


def small_mar(seed: int, width: int = 32, **changes) -> MAR:
    shape = {"img_size": 16, "vae_stride": 4, "vae_embed_dim": 3, "class_num": 5, "buffer_size": 2}
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("depth", 1), ("num_heads", 2))}
    widths = {"encoder_embed_dim": width, "decoder_embed_dim": width, "diffloss_w": width, "diffloss_d": 1}
    torch.manual_seed(seed)
    model = MAR(
        MARConfig(
            **shape | sizes | widths | {"attn_dropout": 0.0, "proj_dropout": 0.0, "label_drop_prob": 0.0} | changes
        )
    )
    for parameter in model.parameters():  # published weights of the head begin at zero, where all models agree
        torch.nn.init.normal_(parameter, std=0.1) if not parameter.abs().any() else None
    return model


def batch(size: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randn(size, 16, 3, generator=generator),
        "mask": draw_mask(size, 16, 0.5),
        "labels": torch.arange(size) % 5,
    }


def distances(distillation: Distillation, student: MAR):
    torch.manual_seed(1)
    inputs = batch()
    z = student.conditions(inputs["tokens"], inputs["mask"], student.condition(inputs["labels"]))
    return distillation(student, z=z, **inputs)


def test_divergence_of_gaussians():
    mean, other = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([0.5, 1.0, 3.0])
    log_variance, other_log_variance = torch.tensor([0.0, -1.0, 2.0]), torch.tensor([1.0, -1.0, -0.5])
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(other, (0.5 * other_log_variance).exp()))
    torch.testing.assert_close(gaussian_divergence(mean, log_variance, other, other_log_variance), expected)


def test_a_copy_of_an_unguided_teacher_is_at_no_distance_and_another_network_is():
    teacher = small_mar(0)
    student = deepcopy(teacher)
    unguided = Sampling(guidance=1.0, head_steps=10)
    found = distances(Distillation(student, teacher, unguided), student)
    assert found.means.abs() < 1e-5 and found.variances.abs() < 1e-5
    other = small_mar(2, width=16)
    found = distances(Distillation(other, teacher, unguided), other)
    assert found.means > 1e-3 and found.variances > 1e-3


def test_guidance_is_what_a_copy_lacks():
    teacher = small_mar(0)
    student = deepcopy(teacher)
    little, much = (distances(Distillation(student, teacher, Sampling(g, 10)), student).means for g in (1.5, 2.0))
    assert little > 1e-5  # with the same variances, a divergence grows with the square of what guidance adds
    torch.testing.assert_close(much, 4 * little, rtol=1e-3, atol=0)
    assert distances(Distillation(student, teacher, SAMPLING), student).variances.abs() < 1e-5


def test_training_comes_closer_and_leaves_the_teacher_alone():
    teacher, student = small_mar(0), small_mar(2, width=16)
    before = deepcopy(teacher.state_dict())
    objective = SupervisedMAR(student, Distillation(student, teacher, SAMPLING), (0.1, 0.1)).train()
    assert not teacher.training
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 1e-2)
    first = distances(objective.distillation, student)
    inputs = batch()
    silhouettes = torch.zeros(6, 16, 16, dtype=torch.uint8)
    for _ in range(60):
        latents = student.image_tokens(inputs["tokens"])
        loss, metrics = objective(latents, inputs["labels"], inputs["mask"], silhouettes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(metrics) == {"means", "variances", "conditions", "token", "silhouette"}
    last = distances(objective.distillation, student)
    assert last.means < 0.5 * first.means and last.conditions < 0.5 * first.conditions
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_of_other_tokens_is_refused():
    with pytest.raises(VistokError, match="class_num 7"):
        Distillation(small_mar(0), small_mar(0, class_num=7), SAMPLING)


def test_a_student_with_a_null_condition_is_refused():
    with pytest.raises(VistokError, match="set label_drop_prob to 0"):
        Distillation(small_mar(0, label_drop_prob=0.1), small_mar(0), SAMPLING)


def test_own_pictures_fill_their_share_of_a_batch_and_are_drawn_anew():
    student = small_mar(0).train()
    own = OwnPictures(SAMPLING, OwnShare(share=0.25, count=5, every=10, iterations=4))
    latents, labels = torch.zeros(8, 3, 4, 4), torch.full((8,), 4)
    first, told = own.mix(student, 0, latents, labels)
    assert student.training and not first.requires_grad
    assert torch.equal(first[:6], latents[:6]) and (first[6:] != 0).all()
    pool = own._latents
    for picture, label in zip(first[6:], told[6:], strict=True):
        assert torch.equal(picture, pool[label]), "five classes, five pictures: each with its own class"
    own.mix(student, 9, latents, labels)
    assert own._latents is pool
    own.mix(student, 10, latents, labels)
    assert not torch.equal(own._latents, pool)


DRAFT = Recipe(
    name="draft",
    task="mar",
    steps=1,
    batch_size=2,
    init={"kl": "kl-mini", "teacher": "mar-mini", "mar": "mar-mini-draft"},
    data={"size": 64, "pictures": 4},
)
OWN = {"share": 0.5, "count": 2, "every": 10, "iterations": 4}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({}, r"give data\.teacher"),
        ({"teacher": {"guidance": 3.0, "head_steps": 25}, "own": OWN, "supervision": [0.1, 0]}, "no silhouettes"),
    ],
)
def test_a_recipe_that_cannot_be_distilled_gets_a_sentence(data, match):
    with pytest.raises(VistokError, match=match):
        build_task(replace(DRAFT, data=DRAFT.data | data))
