"""What differs between releases of transformers (5.24 renamed ``past_key_values``, of forwards and their outputs,
``cache``), and between its configurations.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from vistok.errors import VistokError

_PLACEHOLDERS = ("image_token", "video_token", "boi_token", "eoi_token", "image_start_token", "image_end_token")


def given_cache(arguments: Mapping[str, Any]) -> Any | None:
    """Returns the KV cache among the keyword arguments of a forward, or in its output; None without one."""
    cache = arguments.get("cache")
    return cache if cache is not None else arguments.get("past_key_values")


def cache_argument(model: nn.Module) -> str:
    """Returns the name under which a model's forward takes a KV cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def generate_option(model: nn.Module, name: str, options: Mapping[str, Any], config: Any | None) -> Any:
    """Returns an option of ``generate``: of the call, else of its generation config, else of the model's; or None."""
    values = (options.get(name), *(getattr(each, name, None) for each in (config, model.generation_config)))
    return next((value for value in values if value is not None), None)


def with_implied_mask(model: nn.Module, options: Mapping[str, Any], config: Any | None) -> dict[str, Any]:
    """Returns options of ``generate`` with the mask that it reads from padding where none is given, so that whoever
    changes the prompt sees it too: tokens that are not the pad token, if that is told and ends no sequence.
    """
    ids, options = options.get("input_ids"), dict(options)
    pad, ends = (generate_option(model, f"{name}_token_id", options, config) for name in ("pad", "eos"))
    if options.get("attention_mask") is not None or ids is None or pad is None:
        return options
    if pad not in (ends if isinstance(ends, (list, tuple)) else [ends]) and bool((ids == pad).any()):
        options["attention_mask"] = (ids != pad).long()
    return options


def head_width(config: Any) -> int:
    """Returns the width of an attention head by a text model's configuration, which may leave it to be told."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def placeholder_in(processor: Any, text: str) -> str | None:
    """Returns a token of a text that stands for a picture to a model's processor, None where there is none."""
    named = {getattr(processor, name, None) for name in _PLACEHOLDERS}
    tokens = {"<image>", *(token for token in named if isinstance(token, str) and token)}
    return next((token for token in sorted(tokens) if token in text), None)


def check_reads(network: nn.Module, tokens: int, name: str) -> None:
    """Refuses texts of more tokens than a language model has positions for.

    Raises:
        VistokError: a text has, where the model says how many it has.
    """
    most = getattr(network.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise VistokError(f"'{name}' reads {most} tokens, and a text would have {tokens}: ask for shorter ones.")
