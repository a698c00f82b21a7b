"""The sampler of masked codes (MaskGIT, arXiv 2202.04200; ENAT, arXiv 2411.06959): all hidden codes are drawn at once,
and the least confident are hidden again.

What is decided first is decided from next to nothing, and the published samplers never mend it. A revision, which is
ours, hides the half of the codes that was decided longest ago and fills it anew from the other half; of one code it is
a Gibbs step, which leaves the law as it is.

Both guidance branches run in one batch and carry states of their own. The first step, and a revision in one step, is
not guided, so that its unconditional half does not run.
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

    def logits(self, codes: Tensor, scale: float, last: bool = False) -> Tensor:
        """Guided logits [B, L, V] of all codes, given those of them that are not hidden, [B, L].

        Where the scale is 1, the unconditional half runs for the state that it leaves alone: not where nothing is known
        yet, nor in the ``last`` step.
        """
        alone = scale == 1 and self.state is None and (last or bool((codes == self.model.mask_id).all()))
        both = self.guided and not alone
        self.forwards, self.rows = self.forwards + 1, self.rows + len(codes) * (1 + both)
        values = self.values if both else self.values[: self.batch]
        logits, self.state = self.model.predict(codes.repeat(1 + both, 1), values, self.state)
        if alone:
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
    first: int = 0,
    progress: Callable[[], None] | None = None,
    watch: Callable[[Tensor, Tensor], None] | None = None,
    show: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns whole pictures of codes [B, L], and the step that decided each; 0 where it was known.

    Args:
        guided: the model.
        plan: of the hidden codes, as many in each row as it says.
        codes: at first, [B, L]; ``mask_id`` where hidden.
        draw, spread: the random numbers of the run.
        order: ``confidence`` keeps the codes that the model is surest of; ``logit`` likewise, by their logits as they
            are; ``random`` keeps any, by ``spread`` alone.
        first: steps that were taken before; the next has the number behind it.
        progress: called after each step.
        watch: called with the codes fed in a step and those drawn in it.
        show: shown the codes after each step.
    """
    mask = guided.model.mask_id
    hidden = codes == mask
    step_of = torch.zeros_like(codes)
    for number, step in enumerate(plan, first):
        logits = guided.logits(codes, step.guidance, last=step.hidden == 0)
        logp = logits.log_softmax(-1)
        drawn = draw(number, logp, step.temperature)
        if watch is not None:
            watch(codes, drawn)
        codes = torch.where(hidden, drawn, codes)
        left = torch.zeros_like(hidden)
        if step.hidden:
            confidence = spread(number)
            if order != "random":
                sure = (logits if order == "logit" else logp).gather(-1, drawn[..., None])[..., 0]
                confidence = sure + step.choice * confidence
            confidence = confidence.masked_fill(~hidden, torch.inf)
            left = left.scatter(1, confidence.argsort(1)[:, : step.hidden], True)
        step_of = step_of.masked_fill(hidden & ~left, number + 1)
        codes, hidden = codes.masked_fill(left, mask), left
        if progress is not None:
            progress()
        if show is not None:
            show(Partial(codes, ~hidden, number + 1))
    return codes, step_of


def oldest(step_of: Tensor, count: int, ties: Tensor) -> Tensor:
    """Returns which of the codes that were drawn were decided longest ago, bool [B, L].

    Args:
        step_of: the step that decided each, [B, L]; 0 where it was known.
        count: how many of each row.
        ties: uniforms [B, L], by which codes of one step are told apart.
    """
    known = step_of == 0
    age = (step_of + ties).masked_fill(known, torch.inf)
    return torch.zeros_like(known).scatter(1, age.argsort(1)[:, :count], True)


@dataclass(frozen=True)
class Masked:
    """MaskGIT's sampler: predicts all hidden codes at once, again and again, and keeps the surest of each step.

    Attributes:
        steps: forwards, before revisions.
        annealed: temperature of the first draws, falling to none over the steps; 0 keeps it at 1.
        choice: scale of the noise on the confidences, falling likewise.
        schedule: ``cosine``, ``linear`` or ``arccos``, see ``MaskPlan``.
        order: ``confidence``; ``logit``, confidences that are no probabilities, as TiTok's; or ``random``: with
            ``linear``, as many steps as codes, and ``annealed`` 0 this is autoregression in a random order.
        guidance_schedule: ``linear``, ``power-cosine`` or ``constant``, see ``MaskPlan``.
        revisions: how often the half of the codes that was decided longest ago is decided anew; 0, as published.
        revision_steps: forwards of each revision; no more than it decides codes.
    """

    steps: int = 8
    annealed: float = 6.0
    choice: float = 1.5
    schedule: str = "cosine"
    order: str = "confidence"
    guidance_schedule: str = "linear"
    revisions: int = 0
    revision_steps: int = 2

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
        if self.revisions < 0:
            raise VistokError(f"revisions of a masked sampler must be 0 or more, got {self.revisions}.")
        self._plan(self.steps, self.steps)  # mistakes come early
        self._plan(self.revision_steps, self.revision_steps)

    def _plan(self, hidden: int, steps: int, guidance: float = 1.0, temperature: float = 1.0) -> MaskPlan:
        options = (self.annealed, self.choice, self.guidance_schedule)
        return MaskPlan(hidden, steps, self.schedule, guidance, temperature, *options)

    def prepare(self, model: MaskedGenerator, tokenizer: Tokenizer | None = None) -> Masked:
        """Returns the sampler itself.

        Raises:
            VistokError: it has more steps than the generator has codes.
        """
        self._plan(model.tokens.length, self.steps)
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
        guidance = params.guidance if params.guided else 1.0
        plan = self._plan(hidden, self.steps, guidance, params.temperature)
        half = hidden // 2
        revision_steps = min(self.revision_steps, half)
        revision = self._plan(half, revision_steps, guidance, params.temperature) if half else None
        forwards, done = self.steps + self.revisions * revision_steps, 0

        def draw(step: int, logp: Tensor, temperature: float) -> Tensor:
            law = replace(params, temperature=temperature)
            uniform = noise.uniform(positions, DRAW, step)
            return law.draw(logp.flatten(0, 1), uniform.flatten()).view(batch, length)

        def spread(step: int) -> Tensor:
            return -(-noise.uniform(positions, SAMPLE, step).log()).log()  # standard Gumbel

        def report() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(hidden * done // forwards - hidden * (done - 1) // forwards)

        guided = GuidedMasked(model, condition, params.guided)
        codes, step_of = fill(guided, plan, codes, draw, spread, self.order, progress=report, show=watch)
        for number in range(self.revisions if revision else 0):
            again = oldest(step_of, half, noise.uniform(positions, SAMPLE, forwards + number))
            guided.state = None  # of codes that are hidden now
            codes = codes.masked_fill(again, model.mask_id)
            codes, steps = fill(guided, revision, codes, draw, spread, self.order, done, report, show=watch)
            step_of = torch.where(again, steps, step_of)
        stats = ContinuousStats(
            step_of.cpu(),
            torch.zeros(batch, dtype=torch.int64),
            seconds=time.perf_counter() - began,
            target_prefixes=guided.forwards * batch,
            target_calls=guided.forwards,
            target_rows=guided.rows,
        )
        return codes, stats
