"""Which transformers models token trees can be checked against: asked before a cache is allocated.

What a config says is refused in its own sentence. Of the rest, the model itself is asked: a tree of four nodes must
give the logits that its plain forward gives for the same texts. That settles it for classes that nobody listed.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.attach import attached
from vistok.models.families import FAMILIES, family_of
from vistok.samplers.targets.cached_lm import CachedLM, layer_windows, text_model

ATTENTION = ("sdpa", "eager")
PREFIX = 6  # tokens in front of the tree that is tried
WIDEST = 64  # a window up to this width is tried with a longer prefix
# How far logits may be apart, in standard deviations: rounding and, in half precision, experts that change places.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
HALF_TOLERANCE = 0.5

_found: weakref.WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = weakref.WeakKeyDictionary()


def check_model(model: nn.Module, length: int) -> None:
    """Raise VistokError if trees cannot run on this model, or not with texts of this many tokens."""
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise VistokError(f"{name} is an encoder-decoder: speculation needs a decoder-only model.")
    context = attached(model, "context policy")  # which says itself which drafts it can check
    with nullcontext() if context is None else context.paused():
        _check_plain(model, name, config, length)


def _check_plain(model: nn.Module, name: str, config: Any, length: int) -> None:
    check_attention(config)
    attention = config._attn_implementation
    reason = _by_config(model, config)
    if reason is None:
        known = _found.setdefault(model, {})
        key = (attention, model.dtype, str(layer_windows(config)))
        if key not in known:
            known[key] = _by_trial(model, config)
        reason = known[key]
    if reason is not None:
        raise VistokError(
            f"speculation cannot check token trees on {name}: {reason}. Decode it without speculation, or take another "
            "model."
        )
    positions = learned_positions(model)
    if positions is not None and length > positions:
        raise VistokError(
            f"{name} has {positions} positions, but prompt and new tokens are {length}: shorten the prompt or "
            "max_new_tokens."
        )


def check_attention(config: Any) -> None:
    """Raise VistokError if the kernel that a text config names takes no mask of a tree."""
    if config._attn_implementation not in ATTENTION:
        raise VistokError(
            f"the attention implementation '{config._attn_implementation}' takes no tree mask: load the model with "
            f"attn_implementation='{ATTENTION[0]}'."
        )


def check_rotations(model: nn.Module, prompt: int, end: int) -> None:
    """Raise VistokError if rotations change within a text, from ``prompt`` to ``end`` tokens.

    They follow the last position of each forward, and that of a tree is further on than plain decoding's.
    """
    config = model.config.get_text_config(decoder=True)
    for options in _rotations(config):
        kind, limit = options.get("rope_type", "default"), options.get("original_max_position_embeddings")
        limit = limit or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
        if (kind == "dynamic" and end > limit) or (kind == "longrope" and prompt <= limit < end):
            raise VistokError(
                f"{type(model).__name__} changes its rotations ({kind}) beyond {limit} tokens, which this text crosses "
                f"({prompt} of the prompt, {end} with the new ones): shorten max_new_tokens, or decode it without "
                "speculation."
            )


def _rotations(config: Any) -> list[dict[str, Any]]:
    """The rotary options of a config, one for each kind of layer that has its own."""
    options = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [part for part in options.values() if isinstance(part, dict) and "rope_type" in part] or [options]


def learned_positions(model: nn.Module) -> int | None:
    """Rows of the model's table of positions; None where positions are computed."""
    words = model.get_input_embeddings()
    for name, module in text_model(model).named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and module is not words and ("pos" in leaf or leaf == "wpe"):
            return module.num_embeddings - getattr(module, "offset", 0)
    return None


def parts_of(model: nn.Module) -> dict[str, Any]:
    """The parts of a multimodal model that text behind its prompt runs through, as ``CachedLM`` takes them.

    None for other models, which are called as a whole.
    """
    if model.config.model_type not in FAMILIES:
        return {}
    family = family_of(model)
    embed, head = (functools.partial(part, model) for part in (family.embed, family.head))
    return {"backbone": family.backbone(model), "embed": embed, "head": head}


def _plain(model: nn.Module, lm: CachedLM, text: Tensor) -> Tensor:
    """Logits of a text [1, T] by a forward without a cache, [1, T, V]."""
    if lm.backbone is None:
        return model(input_ids=text, use_cache=False).logits
    width = text.shape[1]  # some families read a prompt in both directions (PaliGemma), and none what follows it
    mask = lm.masks(torch.ones(1, width, width, dtype=torch.bool, device=text.device).tril())
    output = lm.backbone(inputs_embeds=lm.embed(text), attention_mask=mask, use_cache=False)
    return lm.head(output.last_hidden_state)


def _by_config(model: nn.Module, config: Any) -> str | None:
    parameters = inspect.signature(model.forward).parameters
    if getattr(model, "_is_stateful", False):
        return "it keeps a state instead of the keys and values of every token, and a state has no branches"
    if not {"cache", "past_key_values"} & set(parameters):
        return "its forward takes no cache of keys and values"
    if layer_windows(config) is None:
        kinds = sorted(set(config.layer_types) - {"full_attention", "sliding_attention", "chunked_attention"})
        return f"it has layers of the kind {', '.join(kinds)}, which are no attention over rows"
    attention = getattr(config, "attn_config", None)
    if getattr(config, "alibi", False) or getattr(attention, "alibi", False) or config.model_type == "bloom":
        return "its attention counts the rows between two tokens (ALiBi), and rows of other branches lie between them"
    if "position_ids" not in parameters:
        return "its forward takes no position_ids, so that every row would be a later token than the one before"
    return None


def unobserved(model: nn.Module) -> nn.Module:
    """The same model, whose hooks count and see nothing of what is tried on this one."""
    model = copy.copy(model)
    model._forward_hooks, model._forward_pre_hooks = {}, {}
    return model


@torch.inference_mode()
def _by_trial(model: nn.Module, config: Any) -> str | None:
    """Why a tree does not give the logits of a plain forward; None if it does."""
    sizes = [size for _, size in layer_windows(config).values() if size is not None]
    before = max([PREFIX, *(size + 2 for size in sizes if size <= WIDEST)])
    table = learned_positions(model)
    before = before if table is None else max(1, min(before, table - 5))
    model = unobserved(model)
    device, vocabulary = model.get_input_embeddings().weight.device, config.vocab_size
    text = (3 + 7 * torch.arange(before + 4, device=device)) % max(1, vocabulary - 1)
    drafts = torch.stack([text[before], text[before + 3], text[before + 1], text[before + 2]])[None]
    sees = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]  # a root, two children, and one of the second's
    seen = torch.tensor(sees, dtype=torch.bool, device=device)[None]
    depth = seen.sum(-1) - 1
    try:
        lm = CachedLM(model, before + 8, **parts_of(model))
        plain = _plain(model, lm, text[None])[0]
        found = [lm.read(text[None, :before], torch.tensor([before], device=device))[0]]
        found.append(lm.forward(drafts, depth, seen)[0, [0, 2, 3]])
        path = torch.tensor([[0, 2, 3, -1]], device=device)
        lm.cache.commit(path, torch.tensor([3], device=device))
        found.append(lm.forward(text[None, -1:], depth[:, :1], seen[:, :1, :1])[0])
    except Exception as error:  # whatever a class does with a cache or a mask that it does not know
        return f"a trial with a small tree ended in {type(error).__name__} ({str(error).partition(chr(10))[0][:120]})"
    if model.training:  # dropout
        return None
    wanted = plain[before - 1 :].float()
    apart = float((torch.cat(found).float() - wanted).abs().max() / wanted.std().clamp(min=1e-12))
    if apart <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        return None
    return f"a small tree gives other logits than its own forward (by {apart:.2g} standard deviations)"
