"""The sampler of masked codes (MaskGIT, arXiv 2202.04200; ENAT, arXiv 2411.06959): all hidden codes are drawn at once,
and the least confident are hidden again.

Both guidance branches run in one batch and carry states of their own. The first step is not guided, so that its
unconditional half does not run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.models.interface import Condition, MaskedGenerator
from vistok.ops import combine_guidance
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.interface import Partial, Watch
from vistok.samplers.masked.schedule import MaskPlan
from vistok.samplers.noise import DRAW, SAMPLE, Noise
from vistok.samplers.params import SamplingParams

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer

ORDERS = ("confidence", "logit", "random")
Draw = Callable[[int, Tensor, float], Tensor]  # step, log probabilities [B, L, V] and temperature to codes [B, L]
Spread = Callable[[int], Tensor]  # step to noise on the confidences [B, L]


class GuidedMasked:
    """A masked generator with its conditions, guidance and states inside.

    Args:
        model: the network.
        condition: of B images.
        guided: whether the unconditional half runs, in the same batch.

    Attributes:
        forwards: passes so far; ``rows`` counts the sequences in all of them.
    """

    def __init__(self, model: MaskedGenerator, condition: Condition, guided: bool):
        self.model, self.batch, self.guided = model, len(condition), guided
        self.values = condition.mean
        if guided:
            avoided = condition.negative
            null = model.null_condition(self.batch) if avoided is None else avoided.mean
            self.values = torch.cat([self.values, null.to(self.values.dtype)])
        self.state = None
        self.forwards = self.rows = 0

    def logits(self, codes: Tensor, scale: float) -> Tensor:
        """Guided logits [B, L, V] of all codes, given those of them that are not hidden, [B, L].

        Where nothing is known yet and the scale is 1, the unconditional half does not run: it would have no state to
        leave.
        """
        begins = scale == 1 and bool((codes == self.model.mask_id).all())
        both = self.guided and not begins
        self.forwards, self.rows = self.forwards + 1, self.rows + len(codes) * (1 + both)
        values = self.values if both else self.values[: self.batch]
        logits, self.state = self.model.predict(codes.repeat(1 + both, 1), values, self.state)
        if begins:
            self.state = None
        if both:
            return combine_guidance(*logits.chunk(2), scale)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def fill(
    guided: GuidedMasked,
    plan: MaskPlan,
    codes: Tensor,
    draw: Draw,
    spread: Spread,
    order: str = "confidence",
    progress: Callable[[int], None] | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    show: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns whole pictures of codes [B, L], and the step from 1 that decided each; 0 where it was known.

    Args:
        guided: the model.
        plan: of the hidden codes, as many in each row as it says.
        codes: at first, [B, L]; ``mask_id`` where hidden.
        draw, spread: the random numbers of the run.
        order: ``confidence`` keeps the codes that the model is surest of; ``logit`` likewise, by their logits as they
            are; ``random`` keeps any, by ``spread`` alone.
        progress: called with the codes that each picture gained.
        watch: called with the codes fed in a step and those drawn in it.
        show: shown the codes after each step.
    """
    mask = guided.model.mask_id
    hidden = codes == mask
    step_of = torch.zeros_like(codes)
    before = plan.hidden
    for number, step in enumerate(plan):
        logits = guided.logits(codes, step.guidance)
        logp = logits.log_softmax(-1)
        drawn = draw(number, logp, step.temperature)
        if watch is not None:
            watch(codes, drawn)
        noise = spread(number)
        confidence = noise
        if order != "random":
            confidence = (logits if order == "logit" else logp).gather(-1, drawn[..., None])[
                ..., 0
            ] + step.choice * noise
        confidence = confidence.masked_fill(~hidden, torch.inf)
        codes = torch.where(hidden, drawn, codes)
        left = torch.zeros_like(hidden).scatter(1, confidence.argsort(1)[:, : step.hidden], True)
        step_of = step_of.masked_fill(hidden & ~left, number + 1)
        codes, hidden = codes.masked_fill(left, mask), left
        if progress is not None:
            progress(before - step.hidden)
        if show is not None:
            show(Partial(codes, ~hidden, number + 1))
        before = step.hidden
    return codes, step_of


@dataclass(frozen=True)
class Masked:
    """MaskGIT's sampler: predicts all hidden codes at once, again and again, and keeps the surest of each step.

    Attributes:
        steps: forwards.
        annealed: temperature of the first draws, falling to none over the steps; 0 keeps it at 1.
        choice: scale of the noise on the confidences, falling likewise.
        schedule: ``cosine``, ``linear`` or ``arccos``, see ``MaskPlan``.
        order: ``confidence``; ``logit``, confidences that are no probabilities, as TiTok's; or ``random``: with
            ``linear``, as many steps as codes, and ``annealed`` 0 this is autoregression in a random order.
        guidance_schedule: ``linear``, ``power-cosine`` or ``constant``, see ``MaskPlan``.
    """

    steps: int = 8
    annealed: float = 6.0
    choice: float = 1.5
    schedule: str = "cosine"
    order: str = "confidence"
    guidance_schedule: str = "linear"

    interface = "masked"
    honours = frozenset({"guidance", "temperature", "top_k", "top_p", "greedy"})
    lossless = False
    fills = True

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown_name("order of a masked sampler", self.order, list(ORDERS))
        for name in ("annealed", "choice"):
            if not 0 <= getattr(self, name) < math.inf:
                raise VistokError(f"{name} of a masked sampler must be 0 or more, got {getattr(self, name)}.")
        self._plan(self.steps)  # mistakes come early

    def _plan(self, hidden: int, guidance: float = 1.0, temperature: float = 1.0) -> MaskPlan:
        options = (self.annealed, self.choice, self.guidance_schedule)
        return MaskPlan(hidden, self.steps, self.schedule, guidance, temperature, *options)

    def prepare(self, model: MaskedGenerator, tokenizer: Tokenizer | None = None) -> Masked:
        """Returns the sampler itself.

        Raises:
            VistokError: it has more steps than the generator has codes.
        """
        self._plan(model.tokens.length)
        return self

    @torch.inference_mode()
    def sample(
        self,
        model: MaskedGenerator,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, ContinuousStats]:
        """Draws a batch of images: codes [B, L] in raster order; see ``Sampler.sample``."""
        began = time.perf_counter()
        batch, length, device = len(condition), model.tokens.length, condition.values.device
        codes = torch.full((batch, length), model.mask_id, device=device)
        hidden = length
        if condition.known is not None:
            hidden = condition.known.hidden
            codes = torch.where(condition.known.mask, condition.known.tokens, codes)
        positions = torch.arange(length, device=device).expand(batch, -1)
        plan = self._plan(hidden, params.guidance if params.guided else 1.0, params.temperature)

        def draw(step: int, logp: Tensor, temperature: float) -> Tensor:
            law = replace(params, temperature=temperature)
            uniform = noise.uniform(positions, DRAW, step)
            return law.draw(logp.flatten(0, 1), uniform.flatten()).view(batch, length)

        def spread(step: int) -> Tensor:
            return -(-noise.uniform(positions, SAMPLE, step).log()).log()  # standard Gumbel

        guided = GuidedMasked(model, condition, params.guided)
        codes, step_of = fill(guided, plan, codes, draw, spread, self.order, progress, show=watch)
        stats = ContinuousStats(
            step_of.cpu(),
            torch.zeros(batch, dtype=torch.int64),
            seconds=time.perf_counter() - began,
            target_prefixes=guided.forwards * batch,
            target_calls=guided.forwards,
            target_rows=guided.rows,
        )
        return codes, stats
