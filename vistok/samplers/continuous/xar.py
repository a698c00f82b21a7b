"""xAR sampling (Ren et al., arXiv 2502.20388, section 3.3): entity behind entity, each by flow matching.

Guidance grows with the number of the entity, from none. Where it is none, the unconditional half does not run. A
finished entity enters the cache, in both halves; the one that is being drawn is written behind the rows in use and
forgotten again. Of an entity that is known in part, the known tokens follow their own straight path to the noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.models.interface import Condition
from vistok.models.xar import XAR
from vistok.samplers.continuous.flow import Velocity, euler, euler_maruyama, midpoint
from vistok.samplers.continuous.noise import TokenNoise
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer

STOCHASTIC = "euler-maruyama"
DETERMINISTIC = {"euler": euler, "midpoint": midpoint}
SOLVERS = (STOCHASTIC, *DETERMINISTIC)
LEAST_STEPS = 3


def guidance_scales(scale: float, entities: int) -> list[float]:
    """Returns the scale of classifier-free guidance of each entity: from 1 for the first to ``scale`` for the last."""
    if entities == 1:
        return [scale]
    return [1 + (scale - 1) * k / (entities - 1) for k in range(entities)]


class GuidedXAR:
    """An xAR with its condition, guidance and cache inside: what the flow of the next entity asks.

    Args:
        model: the network.
        condition: of B images.
        guided: whether the unconditional half is carried along.

    Attributes:
        forwards: passes so far; ``rows`` counts the sequences in all of them, both halves.
    """

    def __init__(self, model: XAR, condition: Condition, guided: bool):
        self.model, self.batch, self.values = model, len(condition), condition.values
        if guided:
            avoided = condition.negative
            null = model.null_condition(self.batch) if avoided is None else avoided.values
            self.values = torch.cat([self.values, null])
        self.cache = model.new_cache(len(self.values))
        self.forwards = self.rows = 0
        if model.conditional_on == "text":
            model.read(self.values, self.cache)
            self.forwards, self.rows = 1, len(self.values)

    def velocities(self, x: Tensor, t: Tensor, rows: int) -> Tensor:
        """Velocities [rows, n, D] of the next entity's states [B, n, D]: of B rows conditional, of 2 B both halves."""
        x = x.repeat(rows // self.batch, 1, 1)
        self.forwards, self.rows = self.forwards + 1, self.rows + rows
        return self.model.decode(x, t, self.values[:rows], self.cache.narrow(rows))

    def guided(self, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity of the next entity at a scale of guidance, as solvers ask for it."""

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            if scale <= 1:
                return self.velocities(x, t, self.batch)
            conditional, without = self.velocities(x, t, 2 * self.batch).double().chunk(2)
            return without + scale * (conditional - without)

        return velocity

    def keep(self, entity: Tensor) -> None:
        """Put a finished entity [B, n, D] into the cache."""
        zero = torch.zeros((), dtype=torch.float64, device=entity.device)
        self.velocities(entity, zero, len(self.values))
        self.cache.advance(entity.shape[1])


def around(velocity: Velocity, given: Tensor, noise: Tensor, keep: Tensor) -> Velocity:
    """Returns the velocity of states in which some tokens are known: these are put where they are at each time.

    Args:
        velocity: of whole entities.
        given: the known tokens, [n, D].
        noise: where all began, [B, n, D].
        keep: which are known, bool [n, 1].
    """

    def known_velocity(x: Tensor, t: Tensor) -> Tensor:
        return velocity(torch.where(keep, (1 - t) * given + t * noise, x), t)

    return known_velocity


def draw_entities(
    guided: GuidedXAR,
    scales: list[float],
    start: Tensor,
    solve: Callable[[int, Velocity, Tensor], Tensor],
    progress: Callable[[int], None] | None = None,
    known: Tensor | None = None,
    stays: Tensor | None = None,
) -> Tensor:
    """Returns the sequence of all entities, float32 [B, N, D].

    Args:
        guided: the model.
        scales: guidance of each entity.
        start: standard normals [B, N, D].
        solve: takes the number of an entity, its velocity and its start to where its flow ends.
        progress: called with the tokens of each finished entity.
        known: a sequence [N, D] whose tokens ``stays``, bool [N], are kept; none if None.
    """
    drawn: list[Tensor] = []
    sizes = guided.model.entities.sizes
    known = torch.zeros_like(start[0]) if known is None else known.to(start)
    stays = torch.zeros_like(start[0, :, 0], dtype=torch.bool) if stays is None else stays
    parts = zip(start.split(sizes, 1), known.split(sizes), stays[:, None].split(sizes), scales, strict=True)
    for k, (first, given, keep, scale) in enumerate(parts):
        if bool(keep.all()):
            entity = given.expand_as(first)
        else:
            velocity = guided.guided(scale)
            if bool(keep.any()):
                velocity = around(velocity, given.double(), first.double(), keep)
            entity = torch.where(keep, given.double(), solve(k, velocity, first))
        drawn.append(entity.float())
        if k + 1 < len(sizes):
            guided.keep(drawn[-1])
        if progress is not None:
            progress(sizes[k])
    return torch.cat(drawn, 1)


@dataclass(frozen=True)
class NextEntity:
    """xAR's sampler: one entity after the other, each by flow matching.

    Attributes:
        num_steps: of the solver for each entity.
        solver: ``euler-maruyama``, the published stochastic one; ``euler``, its deterministic twin; or ``midpoint``, of
            second order, whose steps are two passes each.
    """

    num_steps: int = 40
    solver: str = "euler-maruyama"

    interface = "entities"
    honours = frozenset({"guidance"})
    lossless = True
    fills = True

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise unknown_name("solver of xAR", self.solver, list(SOLVERS))
        if self.num_steps < LEAST_STEPS:
            raise VistokError(f"xAR needs at least {LEAST_STEPS} steps an entity, got num_steps {self.num_steps}.")

    def prepare(self, model: XAR, tokenizer: Tokenizer | None = None) -> NextEntity:
        """Returns the sampler itself: it needs nothing but the model."""
        return self

    @torch.inference_mode()
    def sample(
        self,
        model: XAR,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, ContinuousStats]:
        """Draws a batch of images: scaled tokens [B, L, D] in raster order; see ``Sampler.sample``."""
        began = time.perf_counter()
        guided = GuidedXAR(model, condition, params.guided)
        entities, batch = model.entities, len(condition)
        numbers, dim = TokenNoise(noise), model.config.token_dim
        place = torch.arange(sum(entities.sizes), device=condition.values.device)
        stochastic = self.num_steps - 1 if self.solver == STOCHASTIC else 0

        def normals(places: Tensor) -> Tensor:  # [steps + 1, B, n, D], the start last
            rows = torch.arange(batch, device=place.device).repeat_interleave(len(places))
            return numbers.paths(rows, places.repeat(batch), stochastic, dim).unflatten(1, (batch, len(places)))

        known = stays = None
        if condition.known is not None:
            known = entities.split(condition.known.tokens[None])[0]
            stays = entities.split(condition.known.mask[None, :, None].float())[0, :, 0] == 1
        paths = [normals(places) for places in place.split(entities.sizes)]

        def solve(k: int, velocity: Velocity, start: Tensor) -> Tensor:
            if stochastic:
                return euler_maruyama(velocity, start, paths[k][:-1])
            return DETERMINISTIC[self.solver](velocity, start, self.num_steps)

        sequence = draw_entities(
            guided,
            guidance_scales(params.guidance, len(entities.sizes)),
            torch.cat([path[-1] for path in paths], 1),
            solve,
            progress,
            known,
            stays,
        )
        step_of = 1 + entities.join(model.numbers[None, :, None].expand(batch, -1, -1))[..., 0]
        if condition.known is not None:
            step_of = step_of.masked_fill(condition.known.mask, 0)
        stats = ContinuousStats(
            step_of.cpu(),
            torch.zeros(batch, dtype=torch.int64),
            seconds=time.perf_counter() - began,
            target_prefixes=guided.forwards * batch,
            target_calls=guided.forwards,
            target_rows=guided.rows,
        )
        return entities.join(sequence), stats
