"""Sampling parameters: how guided logits become the probabilities that tokens are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops import probabilities, sample_tokens


@dataclass(frozen=True)
class SamplingParams:
    """Guidance, temperature and truncation of one run.

    Attributes:
        guidance: scale of classifier-free guidance (arXiv 2207.12598); 1 or less switches it off.
        guidance_interval: guidance ends after the token of this decode step, so tokens 0 to ``guidance_interval + 1``
            are guided (LlamaGen's count); -1 guides all.
        temperature: divides the logits; 0 takes the most likely token, as ``greedy`` does. Of continuous tokens it
            multiplies the noise.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of this probability; 1 keeps all.
        greedy: take the most likely token instead of drawing.

    Raises:
        VistokError: a value outside its range.
    """

    guidance: float = 1.0
    guidance_interval: int = -1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise VistokError(f"the temperature must be 0 or more, got {self.temperature}.")
        if self.temperature == 0:
            object.__setattr__(self, "greedy", True)
        if self.top_k < 0:
            raise VistokError(f"top-k must be at least 1, or 0 to keep all tokens, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise VistokError(f"top-p must lie in (0, 1], got {self.top_p}.")
        if not 0 <= self.guidance < math.inf:
            raise VistokError(f"the guidance scale must be a number of 0 or more, got {self.guidance}.")
        if self.guidance_interval < -1:
            raise VistokError(f"guidance ends at a step of 0 or more, or at -1 never, got {self.guidance_interval}.")

    @property
    def guided(self) -> bool:
        """Whether an unconditional branch runs at all."""
        return self.guidance > 1

    @property
    def guided_tokens(self) -> int | None:
        """How many leading tokens are guided; None for all."""
        return None if self.guidance_interval < 0 else self.guidance_interval + 2

    def guidance_at(self, positions: Tensor | int) -> Tensor | float:
        """Guidance scale of the tokens at these positions: a number where it is the same for all."""
        if self.guided_tokens is None or isinstance(positions, int):
            inside = self.guided_tokens is None or positions < self.guided_tokens
            return self.guidance if inside else 1.0
        return torch.where(positions < self.guided_tokens, self.guidance, 1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Processed probabilities of guided logits [..., V], float32 or wider; a one-hot row where ``greedy``."""
        if self.greedy:
            wide = torch.promote_types(logits.dtype, torch.float32)
            return torch.zeros_like(logits, dtype=wide).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        return probabilities(logits, self.temperature, self.top_k, self.top_p)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token a row: logits [B, V] and uniforms [B] to int64 [B]."""
        if self.greedy:
            return logits.argmax(-1)
        drawn, _ = sample_tokens(logits, uniform, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        return drawn
