"""Distillation of a MAR into a smaller one that drafts for it, in the spirit of DistillSpec (arXiv 2310.08461).

The published loss asks a head for the noise of a token, most of which nothing predicts. The teacher's answer to the
same question is free of that part, so a draft learns from far fewer pictures, and learns what speculative decoding
needs: the law of its own target.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.mar import MAR
from vistok.models.mar.diffusion import gaussian_divergence
from vistok.models.mar.model import check_same_tokens


class Distances(NamedTuple):
    """How far a MAR is from its teacher; scalars.

    Attributes:
        noise: mean squared difference of the noise that the heads predict.
        bits: divergence of the student's denoising steps from the teacher's, in bits per value; passes gradients to the
            variances alone, as the published variational term does.
        conditions: mean squared difference of the teacher's conditions and what a linear map reads from the student's.
    """

    noise: Tensor
    bits: Tensor
    conditions: Tensor


class Distillation(nn.Module):
    """What is measured of a student against a frozen teacher.

    Args:
        student, teacher: generators of the same tokens and classes.

    Raises:
        VistokError: they are not.
    """

    def __init__(self, student: MAR, teacher: MAR):
        super().__init__()
        check_same_tokens(student, teacher, "student", "teacher")
        self.teacher = teacher.requires_grad_(False).eval()
        self.read = nn.Linear(student.config.decoder_embed_dim, teacher.config.decoder_embed_dim)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher stays as it generates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, student: MAR, tokens: Tensor, z: Tensor, mask: Tensor, labels: Tensor, dropped: Tensor
    ) -> Distances:
        """Compare both on hidden tokens, at one noise and one step of each.

        Args:
            student: the generator that is trained.
            tokens, mask, labels: see MAR.
            z: the student's conditions [B, L, Ed].
            dropped: rows under the null condition, bool [B].
        """
        with torch.no_grad():
            theirs = self.teacher.conditions(tokens, mask, self.teacher.condition(labels, dropped))
        conditions = F.mse_loss(self.read(z[mask]).float(), theirs[mask].float())
        x0, z, theirs = student.hidden_rows(mask, tokens, z, theirs)
        process = student.diffloss.process
        t = torch.randint(len(process), (len(x0),), device=x0.device)
        x = process.q_sample(x0, t, torch.randn_like(x0))
        with torch.no_grad():
            target, target_v = self.teacher.diffloss.net(x, t, theirs).float().chunk(2, dim=-1)
        eps, v = student.diffloss.net(x, t, z).float().chunk(2, dim=-1)
        law, other = process.transition(x, t, target, target_v), process.transition(x, t, eps.detach(), v)
        nats = gaussian_divergence(law.mean, law.log_variance, other.mean, other.log_variance)
        return Distances(F.mse_loss(eps, target), nats.mean() / math.log(2), conditions)
