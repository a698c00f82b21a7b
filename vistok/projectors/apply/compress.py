"""``vistok.compress``: run a Hugging Face multimodal model on fewer visual tokens, and undo it without a trace.

Pictures are encoded and thinned once, prompt and mask are shortened to match, and the encoded pictures are passed on,
so that the key-value cache, positions and beams of transformers all see a short prompt. Sequences come back with the
prompt as it was given, and a cache remembers what it holds, so that a conversation can go on.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.attach import Attachment, attached, unwrapped
from vistok.models.families import FAMILIES, family_of
from vistok.models.huggingface import generate_option, given_cache, with_implied_mask
from vistok.projectors.apply.concentric import concentric_of
from vistok.projectors.apply.depths import DepthMixture
from vistok.projectors.apply.history import History, history_of, turn_of
from vistok.projectors.apply.layers import LayerPruning, LayerRun
from vistok.projectors.apply.limits import Prompt, shorter_limits, with_whole_prompts
from vistok.projectors.apply.prompts import columns_of, hide_old_placeholders, pad_id, positions_in
from vistok.projectors.apply.report import Report
from vistok.projectors.apply.shrink import gathered, untouched
from vistok.projectors.apply.thinning import PICTURES, PIXELS, Thinning, has_pixels, placeholder, visual_tokens
from vistok.projectors.interface import Compressor, LayerCompressor
from vistok.projectors.methods.pmod import PMod

__all__ = ["Compression", "Report", "active", "compress"]


class Compression(Attachment):
    """A model at work with a compressor, until :meth:`remove`; also a context manager.

    Attributes:
        last: :class:`Report` of the last call.
    """

    slot = "compressor"

    def __init__(self, model: nn.Module, compressor: Compressor | LayerCompressor, positions: str) -> None:
        self.family = family_of(model)
        self.compressor = compressor
        self.positions = positions
        self.last = Report()
        self._thinning = Thinning(model, self.family, compressor)
        self._names = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._generating = False
        self._prompt_width: int | None = None  # during generate: candidates of assisted decoding follow the prompt
        self._pending: History | None = None
        self._pruning: LayerRun | None = None
        super().__init__(model)
        try:
            self.before(model, self._before_forward)
            self.after(model, self._after_forward)
            if isinstance(compressor, LayerCompressor):
                backbone, earliest = self.family.backbone(model), self.family.earliest_drop(model)
                if isinstance(compressor, PMod):
                    self._pruning = DepthMixture(backbone, compressor, self, earliest)
                else:
                    self._pruning = LayerPruning(backbone, compressor, self.before, earliest)
                self.before(model.base_model, self._before_base)
                self.after(model.base_model, self._after_base)
            elif self.family.features == "flat":
                self.before(model.base_model, _flatten_features)
        except BaseException:
            self.remove()
            raise

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
        self._begin(kwargs)
        if not self._concerns(kwargs):
            return self._run(plain, generation_config, kwargs)
        if kwargs.get("assistant_model") is not None and self._pruning is None:
            raise VistokError("a compressed model cannot draft with an assistant model: leave assistant_model out.")
        kwargs = with_implied_mask(self.model, kwargs, generation_config)
        given = kwargs.get("input_ids")
        with torch.no_grad():
            kwargs, history = self._shortened(kwargs, generated=True, left=True)
        prompt = Prompt(given, kwargs["input_ids"].shape[1])
        self._check_chunks(kwargs, generation_config, prompt.short)
        saved = given.shape[1] - prompt.short
        if saved or bool((kwargs["input_ids"] != given).any()):
            own = self.model.generation_config
            kwargs, generation_config = shorter_limits(kwargs, generation_config, own, saved)
            kwargs = with_whole_prompts(kwargs, prompt)
        cache = given_cache(kwargs)
        output = self._run(plain, generation_config, kwargs, prompt.short)
        sequences = prompt.whole(output if isinstance(output, Tensor) else output.sequences)
        cache = cache if isinstance(output, Tensor) else given_cache(output)
        history.ordered = generate_option(self.model, "num_beams", kwargs, generation_config) in (None, 1)
        history.repeated(len(sequences) // len(given)).keep_with(cache)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _check_chunks(self, kwargs: dict[str, Any], config: Any, width: int) -> None:
        """Raises VistokError if a prompt of ``width`` tokens has pictures that must be read at once, and is not."""
        size = generate_option(self.model, "prefill_chunk_size", kwargs, config)
        if size is None or size >= width or not (has_pixels(kwargs) or "mm_encoder_outputs" in kwargs):
            return
        if self._pruning is not None:
            raise VistokError(f"{self.compressor.name} ranks a prompt in one piece: leave prefill_chunk_size out.")
        if not self.family.causal:
            raise VistokError(
                f"tokens of a picture see one another in {self.model.config.model_type}, and chunks of {size} tokens "
                "would part them: leave prefill_chunk_size out."
            )

    def _run(
        self, plain: Callable[..., Any], config: Any, kwargs: dict[str, Any], prompt_width: int | None = None
    ) -> Any:
        self._generating, self._prompt_width = True, prompt_width
        try:
            return plain(None, config, **kwargs)
        finally:
            self._generating, self._prompt_width = False, None

    def _begin(self, kwargs: dict[str, Any]) -> None:
        """A new call: nothing of an older one is told, and what cannot be thinned is refused."""
        self.last = Report()
        if all(kwargs.get(name) is not None for name in PIXELS):
            raise VistokError("pictures and videos in one call are not compressed: give them in turns of their own.")

    def _concerns(self, kwargs: dict[str, Any]) -> bool:
        """Whether a call has pictures, or a cache that was shortened."""
        cache = given_cache(kwargs)
        past = cache is not None and int(cache.get_seq_length()) > 0
        return has_pixels(kwargs) or (past and history_of(cache) is not None)

    def _before_forward(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        self._pending = None
        if self._generating:
            return None
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        self._begin(kwargs)
        if self._pruning is not None:
            if kwargs.get("labels") is not None and self.compressor.drops:
                name = self.compressor.name
                raise VistokError(f"{name} drops tokens inside the model, so there is no loss: leave labels out.")
            return None
        if not self._concerns(kwargs):
            return None
        mask = kwargs.get("attention_mask")
        left = mask is not None and not bool(mask[:, 0].all())
        kwargs, self._pending = self._shortened(kwargs, generated=False, left=left)
        return (), kwargs

    def _after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and not isinstance(output, tuple):
            pending.keep_with(given_cache(output))

    def _shortened(self, kwargs: dict[str, Any], generated: bool, left: bool) -> tuple[dict[str, Any], History]:
        """Arguments of a call with its pictures encoded and its prompts shortened, and what its cache will hold."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None or kwargs.get("inputs_embeds") is not None:
            raise VistokError("compression shortens token ids: pass input_ids, and no inputs_embeds.")
        if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
            raise VistokError("compression needs the attention mask as [batch, tokens], as the processor returns it.")
        turn = turn_of(ids, mask, given_cache(kwargs), generated)
        token = placeholder(self.model, kwargs)
        places = (turn.new_ids == token) & turn.new_mask.bool()
        if turn.start and not bool(places.any()):  # pictures of earlier turns
            kwargs = {name: value for name, value in kwargs.items() if name not in PICTURES}
        has_pictures = has_pixels(kwargs)
        if self._pruning is not None and turn.start and has_pictures:
            name = self.compressor.name
            raise VistokError(f"{name} ranks a prompt in one piece: start without the cache for new pictures.")
        grids: dict[str, Tensor] = {}
        if has_pictures and self._pruning is None:
            new, grids, kwargs, self.last = self._thinning.thin(turn, kwargs, places, left)
        else:
            new = gathered(turn.new_mask) if left else untouched(turn.new_mask)
        shrunk = turn.joined(new)
        original = self.positions == "original"
        if self._pruning is not None and self.family.position_axes == 3:  # the prompt is whole: the model counts itself
            offset, positions = turn.history.offset, None
        else:
            given, rings = kwargs.get("position_ids"), concentric_of(self.model)
            if given is None and rings is not None:
                given = rings.positions(turn.ids, turn.mask)
            offset, positions = positions_in(self.model, self.family, turn, shrunk, new, grids, given, original)
        by_token = columns_of(turn, shrunk, kwargs, pad_id(self.model))
        if positions is not None:
            by_token["position_ids"] = positions
        if turn.start and has_pictures:
            hide_old_placeholders(by_token, token, new.mask.shape[1])
        if not generated:
            by_token = {name: value[..., -new.mask.shape[1] :] for name, value in by_token.items()}
        kwargs |= by_token
        if mask is not None or original or not bool(shrunk.mask.all()):
            kwargs["attention_mask"] = shrunk.mask.to(turn.mask.dtype)
        return kwargs, History(turn.ids, turn.mask.long(), shrunk, offset)

    def _before_base(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        name = self.compressor.name
        self._pruning.end()
        kwargs = dict(zip(inspect.signature(type(base).forward).parameters, (base, *args), strict=False)) | kwargs
        ids, mask, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), given_cache(kwargs)
        if ids is None:
            return
        visual = visual_tokens(self.model, ids)
        if cache is not None and cache.get_seq_length() > 0:
            if ids.shape[1] > 1 and bool(visual.any()):
                raise VistokError(f"{name} ranks a prompt in one piece: begin it without a filled cache.")
            return
        if not bool(visual.any()):
            return
        policy = attached(self.model, "context policy")
        if policy is not None:
            raise VistokError(
                f"{name} shortens the cache of single layers, and {policy.policy.name} keeps a cache of its own: "
                "remove() one of them, or choose a method that drops tokens before the language model."
            )
        if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
            raise VistokError(
                f"{name} needs the attention mask of the prompt as [batch, tokens], which a static cache makes into "
                "another: leave cache_implementation out."
            )
        self._pruning.begin(visual, mask, self._prompt_width or ids.shape[1])

    def _after_base(self, base: nn.Module, args: tuple, output: Any) -> None:
        pruned = self._pruning.end(given_cache(output))
        if pruned is None:
            return
        last = list(pruned.stages.values())[-1]
        kept = [row[ok] for row, ok in zip(*last, strict=True)]
        after = [int(mine[row].sum()) for mine, row in zip(pruned.visual, kept, strict=True)]
        lengths = pruned.lengths(self._pruning.count)
        family = self.model.config.model_type
        self.last = Report(pruned.visual.sum(1).tolist(), after, kept, [], after, lengths, family)


def active(model: nn.Module) -> Compression | None:
    """Returns what a model is compressed with at the moment; None if it is not."""
    return attached(model, Compression.slot)


def compress(
    model: nn.Module, compressor: Compressor | LayerCompressor, positions: Literal["compact", "original"] = "compact"
) -> Compression:
    """Lets a multimodal model of transformers run on fewer visual tokens.

    ``model.generate(**inputs)`` and ``model(**inputs)`` take what they always took, the processor's output included.
    ``generate`` returns the prompts as they were given, followed by what is new; ``model(...)`` returns logits of the
    shortened prompts, and a loss over shortened labels. A cache may be given again with the next turn of a
    conversation.

    Args:
        model: one of the families of ``vistok.projectors.families.FAMILIES`` for conditional generation; a PEFT model
            of one.
        compressor: which tokens to keep.
        positions: "compact" numbers the shortened prompt from 0, "original" lets each token keep its number. Models
            with three-dimensional positions (Qwen) and methods inside the language model always keep the original ones.

    Returns:
        A handle with ``remove()`` and ``last``; as a context manager it removes itself.

    Raises:
        VistokError: the model or the compressor cannot be used so.
    """
    model = unwrapped(model)
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in FAMILIES or not hasattr(model, "generate"):
        raise VistokError(f"cannot compress '{kind}': supported for generation are {', '.join(FAMILIES)}.")
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise VistokError("this transformers takes no encoded pictures in forward: install a newer one (5.23 has it).")
    if not isinstance(compressor, (Compressor, LayerCompressor)):
        raise VistokError(f"{compressor!r} is no compressor: pass one such as vistok.projectors.VtcCls(keep=64).")
    if positions not in ("compact", "original"):
        raise VistokError(f"positions is '{positions}': choose 'compact' or 'original'.")
    return Compression(model, compressor, positions)


def _flatten_features(base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Pictures of different lengths as the one tensor that the model's forward wants."""
    outputs = kwargs.get("mm_encoder_outputs") or {}
    image = outputs.get("image")
    if image is None or isinstance(image.pooler_output, Tensor):
        return None
    flat = copy.copy(image)
    flat.pooler_output = torch.cat(list(image.pooler_output))[None]
    return args, kwargs | {"mm_encoder_outputs": outputs | {"image": flat}}
