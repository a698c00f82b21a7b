"""Continuous speculative decoding on MAR (Wang et al., arXiv 2411.11925): a small MAR drafts, the target verifies.

The sampler is here; ``cspd_run`` holds the state of a run, and ``cspd_rules`` the two rules that decide about drafts:
``exact``, which keeps the law of the target's own sampler, and ``reference``, which follows the published runner. In
both, the first share of the steps (``prefill``) is the target's alone, because early acceptance is low.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.models.interface import Condition
from vistok.models.mar import MAR
from vistok.models.mar.model import check_same_tokens
from vistok.samplers.continuous.cspd_rules import run_exact, run_reference
from vistok.samplers.continuous.cspd_run import CSpDRun, Numbers
from vistok.samplers.continuous.head import head_process
from vistok.samplers.continuous.mar import GuidedMAR, check_head
from vistok.samplers.continuous.noise import TokenNoise
from vistok.samplers.continuous.schedule import MaskSchedule, ranks
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer

MODES = ("exact", "reference")


@functools.lru_cache(maxsize=4)
def _load(name: str, dtype: torch.dtype, device: torch.device) -> MAR:
    return MAR.from_pretrained(name, prefer_ema=True).to(device, dtype)


def draft_of(drafter: MAR | str, model: MAR) -> MAR:
    """Returns the draft network of a model: the one that is given, or the one of this name, loaded once.

    Raises:
        VistokError: the draft's tokens are not the target's, or its name leads nowhere.
    """
    if not isinstance(drafter, MAR):
        drafter = _load(drafter, model.mask_token.dtype, model.mask_token.device)
    check_same_tokens(model, drafter, "target", "draft")
    return drafter


@dataclass(frozen=True)
class ContinuousSpeculative:
    """Continuous speculative decoding: a smaller MAR drafts sets of tokens, and the target verifies them.

    Attributes:
        drafter: the smaller MAR: an embedded name, a folder, a checkpoint, or the network.
        mode: ``exact`` keeps the target's law; ``reference`` is the published code's rule, which does not.
        iterations, head_steps, guidance_schedule, spacing: as in ``MaskedAutoregressive``.
        window: steps that are drafted before a check.
        prefill: share of the steps that the target takes alone.
        inner_temperature: of ``reference``.
    """

    interface = "mar"
    honours = frozenset({"guidance", "temperature"})

    drafter: str | MAR = "mar-mini-draft"
    mode: str = "exact"
    iterations: int = 64
    head_steps: int = 100
    window: int = 8
    prefill: float = 0.05
    inner_temperature: float = 42.0
    guidance_schedule: str = "linear"
    spacing: str = "even"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode of cspd", self.mode, list(MODES))
        if self.window < 1:
            raise VistokError(f"the window must be at least 1 step, got {self.window}.")
        if not 0 <= self.prefill <= 1:
            raise VistokError(f"the prefill is a share of the steps from 0 to 1, got {self.prefill}.")
        if self.inner_temperature <= 0:
            raise VistokError(f"the inner temperature must be above 0, got {self.inner_temperature}.")

    @property
    def lossless(self) -> bool:
        """Whether the rule keeps the target's distribution."""
        return self.mode == "exact"

    def prepare(self, model: MAR, tokenizer: Tokenizer | None = None) -> ContinuousSpeculative:
        """Returns the sampler with its draft network loaded.

        Raises:
            VistokError: the draft's tokens are not the target's, or its name leads nowhere.
        """
        return replace(self, drafter=draft_of(self.drafter, model))

    @torch.inference_mode()
    def sample(
        self,
        model: MAR,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, ContinuousStats]:
        """Draw a batch of pictures; see ``MaskedAutoregressive.sample``.

        Raises:
            VistokError: the draft's tokens are not the target's.
        """
        if params.temperature == 0:
            raise VistokError("continuous speculative decoding compares distributions: give a temperature above 0.")
        began = time.perf_counter()
        check_head("ddpm", self.head_steps)
        process = head_process(self.spacing, self.head_steps)
        plan = MaskSchedule(model.config.seq_len, self.iterations)
        numbers = TokenNoise(noise)
        draft, labels = draft_of(self.drafter, model), condition.values
        run = CSpDRun(
            GuidedMAR(model, labels, process, params.guided, params.temperature),
            GuidedMAR(draft, labels, process, params.guided and not draft.config.distilled, params.temperature),
            plan,
            plan.guidance(params.guidance, self.guidance_schedule),
            ranks(numbers.orders(plan.length)),
            Numbers(numbers, len(process), model.config.token_dim),
        )
        if self.mode == "exact":
            run_exact(run, self.window, self.prefill, progress)
        else:
            run_reference(run, self.window, self.prefill, self.inner_temperature, progress)
        stats = run.stats
        stats.step_of, stats.proposed, stats.accepted_drafts = (
            x.cpu() for x in (stats.step_of, stats.proposed, stats.accepted_drafts)
        )
        stats.target_prefixes, stats.draft_forwards = run.target.prefixes, run.draft.forwards
        stats.target_calls, stats.target_rows = run.target.calls, run.target.rows
        stats.draft_calls, stats.draft_rows = run.draft.calls, run.draft.rows
        stats.seconds = time.perf_counter() - began
        return run.tokens, stats
