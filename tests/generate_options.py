"""Every option of transformers' ``generate`` in a call that shows it, and what became of the call.

Calls are deterministic: greedy, or sampled where an option leaves one token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, WatermarkingConfig

from vistok.errors import VistokError

BASE = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
ENDS = {"eos_token_id": list(range(1, 9))}
SURE = {"do_sample": True, "top_k": 0}
DICT = {"return_dict_in_generate": True}

OPTIONS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 50, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 4},
    "min_length": {"min_length": 12, **ENDS},
    "min_new_tokens": {"min_new_tokens": 5, **ENDS},
    "max_time": {"max_time": 0.0},
    "do_sample": {"do_sample": True, "top_k": 1},
    "num_beams": {"num_beams": 2},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "static"},
    "temperature": {"temperature": 1e-4, **SURE},
    "top_k": {"do_sample": True, "top_k": 1},
    "top_p": {"top_p": 1e-6, **SURE},
    "min_p": {"min_p": 1.0, **SURE},
    "top_h": {"top_h": 1e-6, **SURE},
    "typical_p": {"typical_p": 1e-6, **SURE},
    "epsilon_cutoff": {"epsilon_cutoff": 0.999, **SURE},
    "eta_cutoff": {"eta_cutoff": 0.999, "temperature": 0.01, **SURE},
    "repetition_penalty": {"repetition_penalty": 1.9},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 4.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(1, 12)]},
    "renormalize_logits": {"renormalize_logits": True},
    "forced_bos_token_id": {"forced_bos_token_id": 3},
    "forced_eos_token_id": {"forced_eos_token_id": 3, "eos_token_id": 3},
    "remove_invalid_values": {"remove_invalid_values": True},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.9), "eos_token_id": 4},
    "suppress_tokens": {"suppress_tokens": list(range(1, 12))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(1, 15))},
    "sequence_bias": {"sequence_bias": {(4,): 40.0}},
    "guidance_scale": {"guidance_scale": 1.7},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=40.0)},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    "output_attentions": {"output_attentions": True, **DICT},
    "output_hidden_states": {"output_hidden_states": True, **DICT},
    "output_scores": {"output_scores": True, **DICT},
    "output_logits": {"output_logits": True, **DICT},
    "return_dict_in_generate": DICT,
    "pad_token_id": {"pad_token_id": 9, **ENDS},
    "bos_token_id": {"bos_token_id": 3},
    "eos_token_id": ENDS,
    "is_assistant": {"is_assistant": True},
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.9},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "use_mtp": {"use_mtp": True},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "num_beam_groups": {"num_beam_groups": 2},
    "constraints": {"constraints": [1]},
    "force_words_ids": {"force_words_ids": [[1]]},
    "prefill_chunk_size": {"prefill_chunk_size": 2},
    "token_healing": {"token_healing": True},
    "stop_strings": {"stop_strings": ["a"]},
}
# Of memory and speed, of assistants and beams that are asked for by others, of encoders, and of files.
SILENT = {
    *("cache_config", "max_cache_len", "compile_config", "disable_compile", "continuous_batching_config"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "max_matching_ngram_size", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "low_memory", "diversity_penalty"),
    *("early_stopping", "length_penalty", "decoder_start_token_id", "_from_model_config", "transformers_version"),
}
NAMES = sorted(set(OPTIONS) & set(vars(GenerationConfig())))


def becomes(call: Callable[..., Any], name: str) -> Any:
    """What a call with an option returns or raises; a refusal of transformers or of this package alike."""
    torch.manual_seed(0)
    try:
        return call(**BASE | OPTIONS[name])
    except (VistokError, ValueError, TypeError) as error:
        return error


def agrees(found: Any, plain: Any) -> bool:
    """Whether a call was heeded as plain ``generate`` heeds it, refused in a sentence, or refused by both."""
    if isinstance(found, VistokError):
        return True
    if isinstance(found, Exception) or isinstance(plain, Exception):
        return type(found) is type(plain)
    if isinstance(plain, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, plain)
    return torch.equal(found.sequences, plain.sequences) and set(plain) - {"cache"} <= set(found)
