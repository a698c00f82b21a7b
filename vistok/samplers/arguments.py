"""What speculation understands of the arguments of ``model.generate``; everything else is refused by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.families import FAMILIES
from vistok.models.huggingface import given_cache

# Of what is left for the model's forward. ``position_ids`` and ``logits_to_keep`` are made by ``generate`` itself.
UNDERSTOOD = frozenset(
    {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache", "past_key_values", "inputs_embeds"}
)
# Options of the generation config that choose another way to decode, and those that ask for more than tokens.
MODES = (
    "num_beam_groups",
    "constraints",
    "force_words_ids",
    "penalty_alpha",
    "dola_layers",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
CACHES = ("quantized", "offloaded", "offloaded_static", "offloaded_hybrid", "paged")


def check_arguments(
    config: Any, model_kwargs: Mapping[str, Any], ids: Tensor, given: Mapping[str, Any], whole: bool = False
) -> None:
    """Refuses a call of ``generate`` that asks for what speculation does not do.

    Args:
        config: the generation config of the call.
        model_kwargs: what is meant for the model's forward.
        ids: prompts, int64 [B, L].
        given: arguments of ``generate`` itself, see ``given_to_generate``.
        whole: the model's own prefill gets all of ``model_kwargs``, so that nothing of them is lost.

    Raises:
        VistokError: names the argument.
    """
    if config.num_beams is not None and config.num_beams > 1:
        raise VistokError(f"speculation decodes one sequence a prompt, not {config.num_beams} beams: set num_beams=1.")
    if model_kwargs.get("inputs_embeds") is not None:
        raise VistokError("speculation needs the prompt's tokens: pass input_ids instead of inputs_embeds.")
    if given.get("assistant_model") is not None:
        raise VistokError(
            "assistant_model drafts for transformers' own assisted decoding: leave it out, or give it to DraftModel."
        )
    if given.get("synced_gpus"):
        raise VistokError("speculation takes other numbers of steps on every process: leave synced_gpus out.")
    unknown = [] if whole else _unknown(model_kwargs, given.get("kwargs", {}))
    if unknown:
        raise VistokError(
            f"speculation reads the prompt's tokens alone and would ignore {', '.join(unknown)}: leave it out, "
            f"or decode without speculation (prompts with pictures are read for {', '.join(FAMILIES)})."
        )
    cache = given_cache(model_kwargs)
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise VistokError("speculation keeps a cache of its own: pass the whole prompt and no past_key_values.")
    mask = given.get("kwargs", {}).get("attention_mask")  # as the caller gave it: generate drops one of ones alone
    if isinstance(mask, Tensor) and mask.shape[-1] != ids.shape[1]:
        raise VistokError(
            f"the attention mask is {list(mask.shape)}, but the prompts are {list(ids.shape)}: give an entry a token."
        )
    modes = [name for name in MODES if _asked(config, name)]
    if modes:
        raise VistokError(
            f"{modes[0]} chooses another way to decode, which speculation would ignore: leave it out, or decode "
            "without speculation."
        )
    if getattr(config, "cache_implementation", None) in CACHES:
        raise VistokError(
            f"speculation keeps a cache of its own, which is not {config.cache_implementation}: leave "
            "cache_implementation out."
        )
    wanted = [name for name in OUTPUTS if getattr(config, name)]
    if wanted and config.return_dict_in_generate:
        raise VistokError(f"speculation does not return what {wanted[0]} asks for: leave it out.")
    if not whole:
        _check_positions(model_kwargs.get("position_ids"), model_kwargs.get("attention_mask"), ids)


def _unknown(model_kwargs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """Returns the names of what was given for the model and is not understood; ``inputs`` as the caller named them.

    ``generate`` encodes pictures before it decodes and hands on their features under a name of its own; without
    pictures there are none in it.
    """
    names = {name for name, value in model_kwargs.items() if value is not None and name not in UNDERSTOOD}
    encoded = model_kwargs.get("mm_encoder_outputs")
    if encoded is not None:
        names.remove("mm_encoder_outputs")
        if encoded:
            taken = {name for name, value in inputs.items() if isinstance(value, Tensor) and name not in model_kwargs}
            names |= (taken - {"input_ids"}) or set(encoded)
    return sorted(names)


def _asked(config: Any, name: str) -> bool:
    value = getattr(config, name, None)
    if name == "penalty_alpha":  # contrastive search is for greedy decoding with top-k
        return bool(value) and not config.do_sample and (config.top_k or 0) > 1
    return bool(value) and not (name == "num_beam_groups" and value == 1)


def _check_positions(positions: Tensor | None, mask: Tensor | None, ids: Tensor) -> None:
    if positions is None:
        return
    real = torch.ones_like(ids) if mask is None else mask.long()
    usual = real.cumsum(1) - 1
    if positions.shape[-1] != ids.shape[1] or not bool(((positions == usual) | (real == 0)).all()):
        raise VistokError("speculation counts positions itself and would ignore position_ids: leave it out.")


def given_to_generate() -> dict[str, Any]:
    """Returns arguments of the running ``model.generate`` that it keeps from a callable given as ``custom_generate``.

    They are read from the frame of ``generate``, since there is no supported way: up to transformers 5.24 a callable is
    only handed keywords that ``generate`` and ``_sample`` do not have themselves, whatever its signature asks for. A
    streamer and an assistant model would be lost without a word, and the reader of a streamer would wait for ever.

    Returns:
        ``streamer``, ``assistant_model``, ``synced_gpus``, and ``kwargs``, the inputs by the caller's names; empty
        where no ``generate`` runs.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals:
            names = ("streamer", "assistant_model", "synced_gpus", "kwargs")
            return {name: frame.f_locals.get(name) for name in names}
        frame = frame.f_back
    return {}
