"""``vistok.compress``: run a Hugging Face multimodal model on fewer visual tokens, and undo it without a trace.

Pictures are encoded and thinned once, prompt and mask are shortened to match, and the encoded pictures are passed on,
so that the key-value cache, positions and beams of transformers all see a short prompt. Sequences come back with the
prompt as it was given. The model keeps its class name, so it still saves as what it is.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.projectors.apply.layers import LayerPruning
from vistok.projectors.apply.layout import Packed, pack
from vistok.projectors.apply.shrink import Shrunk, positions_of, shrink_prompts
from vistok.projectors.families import FAMILIES, FLAT_FEATURES, M_ROPE
from vistok.projectors.interface import Canvas, Compressor
from vistok.projectors.methods.fastv import FastV

_STATE = "_vistok_compression"
_PIXELS = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")


@dataclass
class Report:
    """What the last call did.

    Attributes:
        before: visual tokens of each picture without compression.
        after: with it; for FastV, of each prompt from its layer on.
        kept: which tokens of each picture stayed (see ``Packed.index``); for FastV, which columns of each prompt.
        layouts: grid of tokens of a view and layout of the crops, of each picture; none for FastV.
    """

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    layouts: list[tuple[tuple[int, int], Canvas | None]] = field(default_factory=list)


class _Compressed:
    """Mixed into the class of a compressed model."""

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        state: Compression = self.__dict__[_STATE]
        return state._generate(super().generate, inputs, generation_config, *args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> Any:
        # The mixed class cannot be imported by name, so pickle and deepcopy rebuild it from the original one.
        return _rebuild, (type(self).__mro__[2],), vars(self)


@cache
def _compressed_class(original: type) -> type:
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    return type(original.__name__, (_Compressed, original), names)


def _rebuild(original: type) -> nn.Module:
    mixed = _compressed_class(original)
    return mixed.__new__(mixed)


class Compression:
    """A model at work with a compressor, until :meth:`remove`; also a context manager.

    Attributes:
        last: :class:`Report` of the last call.
    """

    def __init__(self, model: nn.Module, compressor: Compressor | FastV, positions: str) -> None:
        self.model = model
        self.compressor = compressor
        self.positions = positions
        self.last = Report()
        self._family = model.config.model_type
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        base = model.base_model
        in_layers = isinstance(compressor, FastV)
        self._pruning = LayerPruning(base.language_model, compressor) if in_layers else None
        self._hooks = [model.register_forward_pre_hook(_outer_hook, with_kwargs=True)]
        if in_layers:
            self._hooks += [
                base.register_forward_pre_hook(self._before_base, with_kwargs=True),
                base.register_forward_hook(self._after_base),
            ]
        elif self._family in FLAT_FEATURES:
            self._hooks.append(base.register_forward_pre_hook(_flatten_features, with_kwargs=True))
        model.__dict__[_STATE] = self
        model.__class__ = _compressed_class(type(model))

    def remove(self) -> None:
        """Give the model back as it was."""
        if self.model.__dict__.get(_STATE) is not self:
            return
        for hook in self._hooks:
            hook.remove()
        if self._pruning is not None:
            self._pruning.remove()
        del self.model.__dict__[_STATE]
        self.model.__class__ = type(self.model).__mro__[2]

    def __enter__(self) -> Compression:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _generate(self, plain: Any, inputs: Tensor | None, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        if inputs is not None:
            kwargs["input_ids"] = inputs
        if kwargs.get("pixel_values") is None or self._pruning is not None:
            return plain(None, generation_config, *args, **kwargs)
        if kwargs.get("assistant_model") is not None:
            raise VistokError("a compressed model cannot draft with an assistant model: leave assistant_model out.")
        old = kwargs.get("input_ids")
        with torch.no_grad():
            kwargs = self._shortened(kwargs, left=True)
        length = old.shape[1]
        saved = length - kwargs["input_ids"].shape[1]
        kwargs, generation_config = _shorter_limits(kwargs, generation_config, saved)
        output = plain(None, generation_config, *args, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        prompts = old.repeat_interleave(len(sequences) // len(old), 0)
        sequences = torch.cat([prompts, sequences[:, length - saved :]], 1)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _forward(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        if self._pruning is not None:
            if kwargs.get("labels") is not None:
                raise VistokError("fastv drops tokens inside the model, so there is no loss: leave labels out.")
            return None
        if kwargs.get("pixel_values") is None:
            return None
        mask = kwargs.get("attention_mask")
        left = mask is not None and not bool(mask[:, 0].all())
        return (), self._shortened(kwargs, left)

    def _shortened(self, kwargs: dict[str, Any], left: bool) -> dict[str, Any]:
        """Arguments of a call with its pictures encoded and its prompts shortened."""
        ids, mask, mask_given = _checked(kwargs)
        if kwargs.get("pixel_values_videos") is not None:
            raise VistokError("videos are not compressed yet: pass pictures, or remove the compressor first.")
        pictures, totals = self._encode(kwargs)
        token = self.model.config.image_token_id
        shrunk = shrink_prompts(ids, mask, token, totals, [p.offsets for p in pictures], left)
        kwargs = {name: value for name, value in kwargs.items() if name not in _PIXELS}
        if self._family in M_ROPE:
            kwargs["position_ids"] = self._rotary_positions(kwargs, ids, mask, shrunk)
        elif self.positions == "original" or kwargs.get("position_ids") is not None:
            given = kwargs.get("position_ids")
            kwargs["position_ids"] = shrunk.take(positions_of(mask) if given is None else given, 0)
        for name, fill in (("labels", -100), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
            if kwargs.get(name) is not None:
                kwargs[name] = shrunk.take(kwargs[name], fill)
        kwargs["input_ids"] = shrunk.take(ids, self._pad_id())
        if mask_given or not bool(shrunk.mask.all()) or self.positions == "original":
            kwargs["attention_mask"] = shrunk.mask.to(mask.dtype)
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        # Only the features: a full output would keep the tower's hidden states alive through decoding.
        features = BaseModelOutputWithPooling(pooler_output=[p.features for p in pictures])
        kwargs["mm_encoder_outputs"] = {"image": features}
        return kwargs

    def _encode(self, inputs: dict[str, Any]) -> tuple[list[Packed], list[int]]:
        pictures, totals, layouts = [], [], []
        for image, plan in FAMILIES[self._family](self.model.base_model, inputs, self.compressor):
            pictures.append(pack(image, plan, self.compressor.select(image), self.compressor.newlines))
            totals.append(len(plan.tokens))
            layouts.append((image.grid, image.canvas))
        self.last = Report(totals, [len(p.features) for p in pictures], [p.index for p in pictures], layouts)
        return pictures, totals

    def _rotary_positions(self, kwargs: dict[str, Any], ids: Tensor, mask: Tensor, shrunk: Shrunk) -> Tensor:
        """Positions of the kept tokens as of the whole prompt, text's own first: [4, B, S']."""
        base = self.model.base_model
        grid, types = kwargs.pop("image_grid_thw"), kwargs.get("mm_token_type_ids")
        if types is None:
            types = (ids == self.model.config.image_token_id).int()
        positions, delta = base.get_rope_index(ids, types, image_grid_thw=grid, attention_mask=mask)
        base.rope_deltas = delta + (mask.shape[1] - shrunk.mask.shape[1])
        return torch.cat([positions_of(shrunk.mask)[None], shrunk.take(positions, 0)])

    def _pad_id(self) -> int:
        text = self.model.config.get_text_config()
        pad = getattr(text, "pad_token_id", None)
        return 0 if pad is None else pad

    def _before_base(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, mask, cache_ = kwargs.get("input_ids"), kwargs.get("attention_mask"), given_cache(kwargs)
        if cache_ is not None and cache_.get_seq_length() > 0:
            if ids is not None and ids.shape[1] > 1 and bool((ids == self.model.config.image_token_id).any()):
                raise VistokError("fastv ranks a prompt in one piece: leave out prefill chunks and filled caches.")
            return
        self._pruning.forget()
        if ids is None:
            return
        visual = ids == self.model.config.image_token_id
        if not bool(visual.any()):
            return
        if mask is not None and mask.ndim != 2:
            raise VistokError("fastv needs the attention mask of the prompt as [batch, tokens].")
        self._pruning.begin(visual, mask)

    def _after_base(self, base: nn.Module, args: tuple, output: Any) -> None:
        pruning = self._pruning
        if pruning._prompt is not None:
            visual = pruning._prompt[0]
            kept = [row[ok] for row, ok in zip(pruning.columns, pruning.present, strict=True)]
            after = [int(mine[row].sum()) for mine, row in zip(visual, kept, strict=True)]
            self.last = Report(visual.sum(1).tolist(), after, kept)
        pruning.end()


def active(model: nn.Module) -> Compression | None:
    """What a model is compressed with at the moment."""
    return model.__dict__.get(_STATE)


def compress(
    model: nn.Module, compressor: Compressor | FastV, positions: Literal["compact", "original"] = "compact"
) -> Compression:
    """Let a multimodal model of transformers run on fewer visual tokens.

    ``model.generate(**inputs)`` and ``model(**inputs)`` take what they always took, the processor's output included.
    ``generate`` returns the prompts as they were given, followed by what is new; ``model(...)`` returns logits of the
    shortened prompts, and a loss over shortened labels.

    Args:
        model: LLaVA, LLaVA-NeXT, InternVL, Qwen2-VL or Qwen2.5-VL for conditional generation; a PEFT model of one.
        compressor: which tokens to keep.
        positions: "compact" numbers the shortened prompt from 0, "original" lets each token keep its number. Models
            with three-dimensional positions (Qwen) and FastV always keep the original ones.

    Returns:
        A handle with ``remove()`` and ``last``; as a context manager it removes itself.

    Raises:
        VistokError: the model or the compressor cannot be used so.
    """
    if hasattr(model, "_orig_mod"):
        raise VistokError("compress the model first, then torch.compile it: a compiled model cannot be changed.")
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if _STATE in getattr(model, "__dict__", {}):
        raise VistokError("this model is compressed already: remove() that compressor first.")
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES or not hasattr(model, "generate"):
        raise VistokError(f"cannot compress '{kind}': supported for generation are {', '.join(FAMILIES)}.")
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise VistokError("this transformers takes no encoded pictures in forward: install a newer one (5.23 has it).")
    if not isinstance(compressor, (Compressor, FastV)):
        raise VistokError(f"{compressor!r} is no compressor: pass one such as vistok.projectors.VtcCls(keep=64).")
    if positions not in ("compact", "original"):
        raise VistokError(f"positions is '{positions}': choose 'compact' or 'original'.")
    if isinstance(compressor, FastV) and kind in M_ROPE:
        raise VistokError("fastv does not know three-dimensional positions: use divprune, tome, uniform or random.")
    return Compression(model, compressor, positions)


def _outer_hook(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    return model.__dict__[_STATE]._forward(args, kwargs)


def _flatten_features(base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Pictures of different lengths as the one tensor that the model's forward wants."""
    outputs = kwargs.get("mm_encoder_outputs") or {}
    image = outputs.get("image")
    if image is None or isinstance(image.pooler_output, Tensor):
        return None
    flat = copy.copy(image)
    flat.pooler_output = torch.cat(list(image.pooler_output))[None]
    return args, kwargs | {"mm_encoder_outputs": outputs | {"image": flat}}


def _checked(kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, bool]:
    """Ids and mask of a call, and whether it gave the mask."""
    ids, mask, past = kwargs.get("input_ids"), kwargs.get("attention_mask"), given_cache(kwargs)
    if ids is None or kwargs.get("inputs_embeds") is not None:
        raise VistokError("compression shortens token ids: pass input_ids, and no inputs_embeds.")
    if past is not None and past.get_seq_length() > 0:
        raise VistokError("pictures cannot be added to a cache that already holds tokens: start without the cache.")
    if mask is not None and mask.ndim != 2:
        raise VistokError("compression needs the attention mask as [batch, tokens], as the processor returns it.")
    return ids, torch.ones_like(ids) if mask is None else mask, mask is not None


def _shorter_limits(kwargs: dict[str, Any], config: Any, saved: int) -> tuple[dict[str, Any], Any]:
    """Limits that count the prompt, lowered by what it lost, so that as many new tokens fit as before."""
    limits = {name: kwargs[name] - saved for name in ("max_length", "min_length") if kwargs.get(name)}
    if config is not None and saved:
        config = copy.deepcopy(config)
        for name in ("max_length", "min_length"):
            if getattr(config, name, None):
                setattr(config, name, max(getattr(config, name) - saved, 0))
    return kwargs | limits, config
