"""What speculation understands of the arguments of ``model.generate``; everything else is refused by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families import FAMILIES
from vistok.models.huggingface import generate_option, given_cache
from vistok.samplers.stopping import as_criteria

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
# Kinds of a cache that say only how memory is laid out; any other one asks for less of it.
CACHES = ("dynamic", "static", "sliding_window", "hybrid", "hybrid_chunked")


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
        raise VistokError(
            "speculation takes other numbers of steps on every process, where a model that is sharded over them runs "
            "in step: load it whole on each, and leave synced_gpus out."
        )
    unknown = [] if whole else _unknown(model_kwargs, given.get("kwargs", {}))
    if unknown:
        raise VistokError(
            f"speculation reads the prompt's tokens alone and would ignore {', '.join(unknown)}: leave it out, "
            f"or decode without speculation (prompts with pictures are read for {', '.join(FAMILIES)})."
        )
    _check_cache(config, given_cache(model_kwargs))
    if config.prefill_chunk_size is not None and config.prefill_chunk_size < ids.shape[1]:
        raise VistokError(
            f"speculation reads a prompt in one piece, not in chunks of {config.prefill_chunk_size} tokens: leave "
            "prefill_chunk_size out, or decode without speculation."
        )
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
    wanted = [name for name in OUTPUTS if getattr(config, name)]
    if wanted and config.return_dict_in_generate:
        raise VistokError(f"speculation does not return what {wanted[0]} asks for: leave it out.")
    if not whole:
        _check_positions(model_kwargs.get("position_ids"), model_kwargs.get("attention_mask"), ids)


def _check_cache(config: Any, cache: Any | None) -> None:
    """Refuses a cache that holds something already, or is of a kind that saves memory, by name or as an object."""
    from transformers import DynamicCache, StaticCache

    if cache is not None and int(cache.get_seq_length()) > 0:
        raise VistokError("speculation keeps a cache of its own: pass the whole prompt and no past_key_values.")
    kind = getattr(config, "cache_implementation", None)
    if kind is not None and kind not in CACHES:
        raise VistokError(f"speculation keeps a cache of its own, which is not {kind}: leave cache_implementation out.")
    if cache is not None and (type(cache) not in (DynamicCache, StaticCache) or getattr(cache, "offloading", False)):
        raise VistokError(
            f"speculation keeps a cache of its own and would ignore this {type(cache).__name__}: leave it out."
        )


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
        ``streamer``, ``assistant_model``, ``synced_gpus`` (where nothing is said, whether the model is sharded), and
        ``kwargs``, the inputs by the caller's names; empty where no ``generate`` runs.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals:
            names = ("streamer", "assistant_model", "synced_gpus", "kwargs")
            given = {name: frame.f_locals.get(name) for name in names}
            if given["synced_gpus"] is None:
                given["synced_gpus"] = _sharded(frame.f_locals["self"])
            return given
        frame = frame.f_back
    return {}


def _sharded(model: nn.Module) -> bool:
    """Whether a model's weights are spread over processes, so that ``generate`` keeps these in step by itself."""
    from transformers.generation.utils import is_deepspeed_zero3_enabled, is_fsdp_managed_module

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    return is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)


def whole_options(
    model: nn.Module, config: Any | None, options: dict[str, Any], tokenizer: Any | None
) -> dict[str, Any]:
    """Returns options of ``generate`` that reach a ``custom_generate``.

    transformers keeps the tokenizer from it, without which it knows neither stop strings, so that these become a
    criterion, nor the healing of tokens; and it answers a call for a paged cache itself.

    Args:
        model: whose ``generate`` is called, and whose generation config may have stop strings too.
        config: the generation config of the call, or None.
        options: of ``generate`` by name.
        tokenizer: the model's, or None.

    Raises:
        VistokError: stop strings and no tokenizer, or what cannot reach it.
    """
    if options.get("cache_implementation") == "paged":
        raise VistokError("speculation keeps a cache of its own, which is not paged: leave cache_implementation out.")
    if generate_option(model, "token_healing", options, config):
        raise VistokError(
            "token_healing needs a tokenizer, which transformers keeps from speculation: leave it out, and give the "
            "prompt as model.heal_tokens(input_ids, tokenizer) returns it."
        )
    strings = generate_option(model, "stop_strings", options, config)
    if strings is None:
        return options
    criteria = [*as_criteria(options.get("stopping_criteria"), None), *as_criteria(strings, tokenizer)]
    return options | {"stop_strings": None, "stopping_criteria": criteria}
