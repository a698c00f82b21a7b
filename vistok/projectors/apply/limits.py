"""What a user says to ``generate`` about the prompt as it was given, kept true of the shortened one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LIMITS = ("max_length", "min_length")


class Prompt(NamedTuple):
    """A batch of prompts as given, int64 [B, S], and the length S' that they have now."""

    ids: Tensor
    short: int

    def whole(self, sequences: Tensor) -> Tensor:
        """Sequences [B * k, S' + n] with the prompts as given, [B * k, S + n]."""
        prompts = self.ids.repeat_interleave(len(sequences) // len(self.ids), 0)
        return torch.cat([prompts.to(sequences.device), sequences[:, self.short :]], 1)


def shorter_limits(kwargs: dict[str, Any], config: Any, own: Any, saved: int) -> tuple[dict[str, Any], Any]:
    """Limits that count the prompt, lowered by what it lost, so that as many new tokens fit as before.

    Args:
        kwargs: of ``generate``.
        config: its generation config, or None.
        own: the model's generation config, which speaks where the others are silent.
        saved: columns that the prompts lost.
    """
    kwargs = dict(kwargs)
    if config is not None:
        config = copy.deepcopy(config)
    for name in _LIMITS:
        if kwargs.get(name) is not None:
            kwargs[name] = max(kwargs[name] - saved, 0)
        elif config is not None and getattr(config, name, None) is not None:
            setattr(config, name, max(getattr(config, name) - saved, 0))
        elif getattr(own, name, None):
            new = name.replace("length", "new_tokens")
            if kwargs.get(new) is None and getattr(config or own, new, None) is None:
                kwargs[name] = max(getattr(own, name) - saved, 0)
    return kwargs, config


def with_whole_prompts(kwargs: dict[str, Any], prompt: Prompt) -> dict[str, Any]:
    """Arguments of ``generate`` whose callables see the prompts as they were given."""
    from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

    kwargs = dict(kwargs)
    if kwargs.get("logits_processor"):
        kwargs["logits_processor"] = LogitsProcessorList(_Processor(p, prompt) for p in kwargs["logits_processor"])
    if kwargs.get("stopping_criteria"):
        given = kwargs["stopping_criteria"]
        criteria = StoppingCriteriaList()
        for criterion in given if isinstance(given, list) else [given]:
            if type(criterion) is MaxLengthCriteria:
                criteria.append(MaxLengthCriteria(criterion.max_length - prompt.ids.shape[1] + prompt.short))
            else:
                criteria.append(_Criterion(criterion, prompt))
        kwargs["stopping_criteria"] = criteria
    if kwargs.get("prefix_allowed_tokens_fn") is not None:
        kwargs["prefix_allowed_tokens_fn"] = _Allowed(kwargs["prefix_allowed_tokens_fn"], prompt)
    if kwargs.get("streamer") is not None:
        kwargs["streamer"] = _Streamer(kwargs["streamer"], prompt)
    return kwargs


class _Processor:
    def __init__(self, inner: Callable[..., Tensor], prompt: Prompt) -> None:
        self.inner, self.prompt = inner, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.inner(self.prompt.whole(input_ids), scores)


class _Criterion:
    def __init__(self, inner: Callable[..., Tensor], prompt: Prompt) -> None:
        self.inner, self.prompt = inner, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        return self.inner(self.prompt.whole(input_ids), scores, **more)


class _Allowed:
    def __init__(self, inner: Callable[[int, Tensor], list[int]], prompt: Prompt) -> None:
        self.inner, self.prompt = inner, prompt

    def __call__(self, row: int, ids: Tensor) -> list[int]:
        return self.inner(row, torch.cat([self.prompt.ids[row].to(ids.device), ids[self.prompt.short :]]))


class _Streamer:
    """Hands on the prompts as they were given in place of the shortened ones, which come first."""

    def __init__(self, inner: Any, prompt: Prompt) -> None:
        self.inner, self.prompt, self.begun = inner, prompt, False

    def put(self, value: Tensor) -> None:
        self.inner.put(value if self.begun else self.prompt.whole(value))
        self.begun = True

    def end(self) -> None:
        self.inner.end()
