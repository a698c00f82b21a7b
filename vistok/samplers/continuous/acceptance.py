"""When a drafted token is kept, and what replaces it: continuous speculative decoding (arXiv 2411.11925).

Draft q and target p are denoising chains. A drafted path is x_T, ..., x_1, x_0 with x_0 the token.

``reference`` is what the published code does. Draft and target walk their own paths from the same start with the same
noise, so the exponentials of all steps but the last cancel, and a token is kept by the last step's Gaussians times the
ratio of the other steps' normalisers. The two paths are different points, so this is an approximation; and the
published factor has the opposite sign to the derivation, and an inner temperature of 42 flattens the last step's
exponentials. None of it keeps the target's law (measured in docs/continuous.md).

``exact`` scores the target on the draft's own path. The ratio of the two path densities is then exact, a path is kept
with probability min(1, p/q), and a rejected one is replaced by a path of the target that is kept with probability
max(0, 1 - q/p): together the token has the target's law. All steps of the target run in one call. The last step adds
its noise here, for otherwise a token would be a point and no draft could ever hit it; the noise has the head's own last
deviation, which is about 0.006 of a latent's.

All ratios are in log space.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vistok.samplers.continuous.head import DenoisingChain, Path, draw_path

MAX_PROPOSALS = 1024  # of a rejected token; a token then keeps a plain draw with probability below 1 / (e * 1024)
WIDEST = 64  # proposals of a token in a call
MOST_ROUNDS = 32  # of the published residual loop at a time
Chains = Callable[
    [Tensor], tuple[DenoisingChain, DenoisingChain]
]  # numbers of tokens, with repeats, to their draft and target chains


@dataclass(frozen=True)
class LastStep:
    """The Gaussian of the last step of denoising chains, and what the other steps contribute to their density.

    Attributes:
        mean, log_std: [N, D].
        trajectory: sum of the other steps' log standard deviations, [N, D].
    """

    mean: Tensor
    log_std: Tensor
    trajectory: Tensor

    @classmethod
    def of(cls, path: Path) -> LastStep:
        """Returns the last steps of drawn paths."""
        return cls(path.mean, path.log_std[0], path.trajectory_log_std)

    def log_kernel(self, x: Tensor, inner_temperature: float = 1.0) -> Tensor:
        """Returns the logarithm of the Gaussian's exponential, with its deviations widened by a factor, [N]."""
        return -0.5 * ((x - self.mean) / (self.log_std.exp() * inner_temperature)).square().sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """Returns the log density of the tokens, [N]."""
        return self.log_kernel(x) - (self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def reference_log_ratio(draft: LastStep, target: LastStep, x: Tensor, inner_temperature: float) -> Tensor:
    """Returns the logarithm of the published acceptance ratio of tokens x [N, D], [N]."""
    trajectory = (target.trajectory - draft.trajectory).sum(-1)
    kernels = target.log_kernel(x, inner_temperature) - draft.log_kernel(x, inner_temperature)
    return trajectory + kernels + (draft.log_std - target.log_std).sum(-1)


def derived_log_ratio(draft: LastStep, target: LastStep, x: Tensor) -> Tensor:
    """Returns the logarithm of the acceptance ratio that the paper derives for aligned trajectories, with its own sign
    and no inner temperature, [N].
    """
    return (draft.trajectory - target.trajectory).sum(-1) + target.log_density(x) - draft.log_density(x)


def reference_residual_weight(draft: LastStep, target: LastStep, y: Tensor) -> Tensor:
    """Returns the published probability of keeping a proposal y of the target's last step, [N]."""
    trajectory = (target.trajectory - draft.trajectory).sum(-1)
    return -torch.expm1((draft.log_density(y) - trajectory - target.log_density(y)).clamp(max=0))


def reference_resample(
    draft: LastStep,
    target: LastStep,
    rejected: Tensor,
    fallback: Tensor,
    proposal: Callable[[Tensor], tuple[Tensor, Tensor]],
    rounds: int = 100,
) -> tuple[Tensor, int, int]:
    """Draws replacements of rejected tokens by the published loop, many of its rounds at a time.

    Every token of the window gets proposals, accepted ones too, and takes its last one that is kept; the rounds end
    when each token has had one, for which a token that both models agree on may wait in vain. Where the published code
    leaves a token at zero after the last round, it takes ``fallback``.

    Args:
        draft, target: last steps of N tokens.
        rejected: which of them need one, bool [N]; only how many fell back depends on it.
        fallback: the target's own aligned tokens [N, D].
        proposal: standard normals [R, N, D] and uniforms [R, N] of rounds [R].
        rounds: the most.

    Returns:
        Values [N, D], meaningful where ``rejected``, the number of those that fell back, and of rounds that counted.
    """
    values, found = fallback.clone(), torch.zeros_like(rejected)
    done, width = 0, 2
    while done < rounds and not bool(found.all()):
        normal, uniform = proposal(torch.arange(done, min(done + width, rounds), device=values.device))
        y = target.mean + target.log_std.exp() * normal
        kept = uniform < reference_residual_weight(draft, target, y)
        enough = (kept.cumsum(0).bool() | found).all(1).tolist()  # from which round on every token has a value
        counted = enough.index(True) + 1 if True in enough else len(enough)
        latest = (kept[:counted] * torch.arange(1, counted + 1, device=values.device)[:, None]).amax(0)
        own = y.take_along_dim((latest - 1).clamp(min=0)[None, :, None], dim=0)[0]
        values = torch.where((latest > 0)[:, None], own, values)
        found = found | (latest > 0)
        done, width = done + counted, min(2 * width, MOST_ROUNDS)
    return values, int((rejected & ~found).sum()), done


def path_log_ratio(path: Path, other: DenoisingChain) -> Tensor:
    """Returns the log density of drawn paths under another chain minus that under their own, float64 [N]; all steps in
    one call.
    """
    mean, log_std = other.transitions(path.states)
    after = torch.cat([path.value[None], path.states[:-1]])
    standard = (after - mean) * (-log_std).exp()
    terms = path.log_std - log_std + 0.5 * (path.noise.square() - standard.square())
    return terms.double().sum((0, 2))


class Proposals(Protocol):
    """The random numbers of residual draws."""

    def path(self, tokens: Tensor, attempt: Tensor, steps: int, dim: int) -> Tensor:
        """Normals [T + 1, M, D] of the paths of some tokens [M] at their attempts [M]."""

    def uniform(self, tokens: Tensor, attempt: Tensor) -> Tensor:
        """Uniforms [M] that decide about these paths."""


def exact_resample(chains: Chains, tokens: Tensor, dim: int, proposals: Proposals) -> tuple[Tensor, int]:
    """Draws from the residual of the target's path law over the draft's.

    The number of proposals in a call doubles: most tokens need few, and each round costs T calls of the head whatever
    its width.

    Args:
        chains: draft and target chains of tokens.
        tokens: numbers of the rejected tokens, int64 [M].
        dim: D.
        proposals: random numbers.

    Returns:
        Values [M, D] and the number of tokens that had no draw kept after ``MAX_PROPOSALS`` and took the last one.
    """
    values = torch.zeros(len(tokens), dim, device=tokens.device)
    left = torch.arange(len(tokens), device=tokens.device)
    tried, width = 0, 1
    while len(left) and tried < MAX_PROPOSALS:
        rows = tokens[left].repeat_interleave(width)
        attempt = tried + torch.arange(width, device=tokens.device).repeat(len(left))
        draft, target = chains(rows)
        path = draw_path(target, proposals.path(rows, attempt, target.steps, dim), last_noise=True)
        weight = -torch.expm1(path_log_ratio(path, draft).clamp(max=0))
        kept = (proposals.uniform(rows, attempt) < weight).view(-1, width)
        first = torch.where(kept.any(1), kept.int().argmax(1), width - 1)
        values[left] = path.value.view(-1, width, dim)[torch.arange(len(left), device=tokens.device), first]
        left = left[~kept.any(1)]
        tried, width = tried + width, min(2 * width, WIDEST)
    return values, len(left)
