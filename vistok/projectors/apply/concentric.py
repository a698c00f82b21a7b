"""Concentric causal attention (arXiv 2410.15926) on a LLaVA of transformers: positions by ring, and the mask of them.

A picture's tokens are numbered by ring from the border inwards, and each sees its own ring and the outer ones; all
else is causal. As positions say it all, the mask is "no larger position", which stays true of several pictures, of
padding, of a cache, and of what a compressor has left: kept cells stay on the rings of the whole grid. Published
weights (CCA-LLaVA) are those of a plain LLaVA that was trained so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.attach import Attachment, attached, unwrapped
from vistok.models.families import family_of
from vistok.models.huggingface import given_cache
from vistok.ops.concentric import concentric_positions

_NEXT = "_vistok_concentric"  # on a cache
_MASKS = ("sdpa", "eager")  # attention that takes a mask of queries and keys


class _Next(NamedTuple):
    """Position [B, 1] of the token that follows the ``width`` columns of a cache."""

    position: Tensor
    width: int


class Concentric(Attachment):
    """Concentric positions at work on a model, until :meth:`remove`; also a context manager."""

    slot = "positions"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._pictures = False  # whether the forward at work has some in its prompts
        self._last: Tensor | None = None  # position of its last token
        backbone = family_of(model).backbone(model)
        self.before(model, self._before_forward)
        self.before(model.base_model, self._before_base)
        self.before(backbone, self._before_backbone)
        self.after(backbone, self._after_backbone)

    def positions(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Positions of whole prompts.

        Args:
            ids: int64 [B, S], a placeholder for each cell of a picture.
            mask: 0 at padding, [B, S], or None.

        Returns:
            int64 [B, S].

        Raises:
            VistokError: the prompts hold parts of pictures.
        """
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        present = torch.ones_like(ids) if mask is None else mask
        visual = (ids == self.model.config.image_token_id) & present.bool()
        if bool((visual.sum(1) % side**2).any()):
            raise VistokError(
                f"a prompt has {int(visual.sum(1).max())} image placeholders, no whole pictures of {side**2}: let the "
                "model's processor prepare text and images together."
            )
        return concentric_positions(visual, present, side, side)

    def generate(
        self,
        plain: Callable[..., Any],
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        kwargs = self.keywords(args, kwargs)
        if inputs is not None:
            kwargs["input_ids"] = inputs
        if kwargs.get("position_ids") is None and kwargs.get("input_ids") is not None:
            kwargs["position_ids"] = self._given(kwargs)
        return plain(None, generation_config, **kwargs)

    def _given(self, kwargs: dict[str, Any]) -> Tensor:
        """Positions of the tokens of a call, of the whole conversation or of what is new to its cache."""
        ids, mask, cache = kwargs["input_ids"], kwargs.get("attention_mask"), given_cache(kwargs)
        known = getattr(cache, _NEXT, None)
        past = 0 if cache is None else int(cache.get_seq_length())
        if known is None or past == 0:
            return self.positions(ids, mask)
        whole = mask is not None and mask.shape[1] == ids.shape[1] and ids.shape[1] > past
        if whole:
            return self.positions(ids, mask)
        if self._has_pictures(ids):
            raise VistokError("concentric positions of new pictures need the whole conversation: pass all of its ids.")
        first = known.position.repeat_interleave(len(ids) // len(known.position), 0) + (past - known.width)
        return first + torch.arange(ids.shape[1], device=ids.device)

    def _has_pictures(self, ids: Tensor) -> bool:
        return ids.shape[1] > 1 and bool((ids == self.model.config.image_token_id).any())

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        if kwargs.get("position_ids") is None and kwargs.get("input_ids") is not None:
            kwargs["position_ids"] = self._given(kwargs)
        return (), kwargs

    def _before_base(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        self._pictures = ids is not None and self._has_pictures(ids)

    def _before_backbone(
        self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        self._last = None
        if not self._pictures:
            return None
        mask, cache, positions = kwargs.get("attention_mask"), given_cache(kwargs), kwargs["position_ids"]
        if getattr(cache, "is_compileable", False) or (mask is not None and mask.ndim != 2):
            raise VistokError(
                "concentric attention makes its own mask: pass attention_mask as [batch, tokens], and leave "
                "cache_implementation at its default."
            )
        past = 0 if cache is None else int(cache.get_seq_length())
        batch, new = kwargs["inputs_embeds"].shape[:2]
        positions = positions.expand(batch, -1)
        self._last = positions.amax(1, keepdim=True)
        allowed = positions[:, None, :] <= positions[:, :, None]
        if mask is not None:
            allowed = allowed & mask[:, None, past:].bool()
        allowed = allowed | torch.eye(new, dtype=torch.bool, device=allowed.device)  # a padded query sees itself
        seen = torch.ones_like(allowed[:, :, :1]).expand(-1, -1, past)
        if mask is not None:
            seen = seen & mask[:, None, :past].bool()
        allowed = torch.cat([seen, allowed], 2)[:, None]
        if decoder.config._attn_implementation == "eager":
            dtype = kwargs["inputs_embeds"].dtype
            allowed = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        return args, kwargs | {"attention_mask": allowed}

    def _after_backbone(self, decoder: nn.Module, args: tuple, output: Any) -> None:
        last, self._last = self._last, None
        cache = given_cache(output)
        if last is not None and cache is not None:
            setattr(cache, _NEXT, _Next(last + 1, int(cache.get_seq_length())))


def concentric(model: nn.Module) -> Concentric:
    """Let a LLaVA of transformers number its pictures by rings and attend along them, as CCA-LLaVA was trained.

    ``generate`` and the model itself take what they always took, and :func:`vistok.compress` may be applied besides.

    Args:
        model: a ``LlavaForConditionalGeneration`` with a square grid of patches, or a PEFT model of one.

    Returns:
        A handle with ``remove()``; as a context manager it removes itself.

    Raises:
        VistokError: the model is another, sends its CLS token to the language model, or runs attention without masks.
    """
    model = unwrapped(model)
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind != "llava" or not hasattr(model, "generate"):
        raise VistokError(
            f"concentric positions are those of LLaVA's single square grid, and '{kind}' has another layout."
        )
    if config.vision_feature_select_strategy != "default":
        raise VistokError("this model sends the CLS token to its language model, which lies on no ring.")
    attention = config.get_text_config()._attn_implementation
    if attention not in _MASKS:
        raise VistokError(
            f"concentric attention needs a mask, which '{attention}' does not take: load the model with sdpa."
        )
    return Concentric(model)


def concentric_of(model: nn.Module) -> Concentric | None:
    """The concentric positions at work on a model, or None."""
    return attached(model, Concentric.slot)
