"""Distillation of a guided MAR into a smaller one that drafts for it.

In the spirit of DistillSpec (arXiv 2310.08461), with guidance learnt as by Meng et al. (arXiv 2210.03142). The
published loss asks a head for the noise of a token, most of which nothing predicts. Here a head is asked for the law of
each denoising step that its target takes when it samples, under guidance. So a draft learns what speculative decoding
compares, needs no second branch, and has no errors of two branches that guidance would multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.mar import MAR
from vistok.models.mar.diffusion import gaussian_divergence
from vistok.models.mar.model import check_same_tokens
from vistok.ops import combine_guidance
from vistok.samplers.continuous import MaskedAutoregressive
from vistok.samplers.continuous.head import head_process
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.train.options import Fraction


@dataclass(frozen=True)
class Sampling:
    """How the teacher samples.

    Attributes:
        guidance: its constant scale.
        head_steps, spacing: see ``MaskedAutoregressive``.
    """

    guidance: float
    head_steps: int
    spacing: str = "even"


@dataclass(frozen=True)
class OwnShare:
    """Pictures that a student draws itself.

    Attributes:
        share: of a batch.
        count: pictures of a pool.
        every: training steps that a pool serves.
        iterations: steps over a picture.
    """

    share: Fraction
    count: int
    every: int
    iterations: int


class OwnPictures:
    """A pool of pictures that a student drew itself, on which its teacher corrects it (arXiv 2306.13649).

    Args:
        sampling: how the teacher samples.
        own: how many pictures, and how they are drawn.
    """

    def __init__(self, sampling: Sampling, own: OwnShare):
        self.share, self.count, self.every = own.share, own.count, own.every
        self.sampler = MaskedAutoregressive(own.iterations, sampling.head_steps, spacing=sampling.spacing)
        self._drawn, self._latents, self._labels = -1, None, None

    def mix(self, student: MAR, step: int, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns latents [B, c, H, W] and classes [B] of a batch, their last rows replaced by own pictures."""
        if self._drawn != step // self.every:
            self._drawn = step // self.every
            self._draw(student, step)
        real = len(labels) - round(len(labels) * self.share)
        chosen = torch.randint(self.count, (len(labels) - real,))
        return torch.cat([latents[:real], self._latents[chosen]]), torch.cat([labels[:real], self._labels[chosen]])

    def _draw(self, student: MAR, step: int) -> None:
        device, training = student.mask_token.device, student.training
        numbers = torch.arange(self.count, device=device)
        labels = numbers % student.config.class_num
        tokens, _ = self.sampler.sample(student.eval(), Condition(labels), SamplingParams(1.0), Noise(step, numbers))
        student.train(training)
        self._latents, self._labels = student.image_tokens(tokens).clone().cpu(), labels.cpu()


class Distances(NamedTuple):
    """How far a MAR is from its teacher; scalars.

    Attributes:
        means, variances: what the means and the variances of a denoising step add to the divergence of its law from the
            teacher's, in nats a token. Each is taken at the teacher's other one, so that variances do not grow to cover
            means that miss.
        conditions: mean squared difference of the teacher's conditions, with a class and without, and what a linear map
            reads from the student's.
    """

    means: Tensor
    variances: Tensor
    conditions: Tensor


class Distillation(nn.Module):
    """What is measured of a student against a frozen teacher under guidance.

    Args:
        student, teacher: generators of the same tokens and classes; the student trains no null condition.
        sampling: how the teacher samples.

    Raises:
        VistokError: they are not.
    """

    def __init__(self, student: MAR, teacher: MAR, sampling: Sampling):
        super().__init__()
        check_same_tokens(student, teacher, "student", "teacher")
        if student.config.label_drop_prob:
            raise VistokError("a distilled MAR learns the guided law and no null condition: set label_drop_prob to 0.")
        self.teacher = teacher.requires_grad_(False).eval()
        self.guidance = sampling.guidance
        self.process = head_process(sampling.spacing, sampling.head_steps)
        self.read = nn.Linear(student.config.decoder_embed_dim, 2 * teacher.config.decoder_embed_dim)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays as it generates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, student: MAR, tokens: Tensor, z: Tensor, mask: Tensor, labels: Tensor) -> Distances:
        """Compares both on hidden tokens, at one step of each and one noise.

        Args:
            student: the generator that is trained.
            tokens, mask, labels: see MAR; every row hides the same number.
            z: the student's conditions [B, L, Ed].
        """
        with torch.no_grad():
            condition = torch.cat([self.teacher.condition(labels), self.teacher.null_condition(len(labels))])
            hidden = mask.repeat(2, 1)
            theirs = self.teacher.conditions(tokens.repeat(2, 1, 1), hidden, condition, hidden)
        conditions = F.mse_loss(self.read(z[mask]).float(), torch.cat(theirs.chunk(2), -1).float())
        x0, z = student.hidden_rows(mask, tokens, z)
        theirs = torch.cat([half.repeat(student.config.diffusion_batch_mul, 1) for half in theirs.chunk(2)])
        step = torch.randint(len(self.process), (len(x0),), device=x0.device)
        t = self.process.timesteps.to(x0.device)[step]
        x = self.process.q_sample(x0, step, torch.randn_like(x0))
        with torch.no_grad():
            guided, free = self.teacher.diffloss.net(x.repeat(2, 1), t.repeat(2), theirs).float().chunk(2)
            eps, v = guided.chunk(2, dim=-1)
            eps = combine_guidance(eps, free[:, : eps.shape[-1]], self.guidance)
            law = self.process.transition(x, step, eps, v)
        own = self.process.transition(x, step, *student.diffloss.net(x, t, z).chunk(2, dim=-1))
        means = gaussian_divergence(law.mean, law.log_variance, own.mean, law.log_variance)
        variances = gaussian_divergence(law.mean, law.log_variance, law.mean, own.log_variance)
        return Distances(means.sum(-1).mean(), variances.sum(-1).mean(), conditions)
