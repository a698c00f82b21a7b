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
from vistok.models.families.family import Picture
from vistok.models.huggingface import given_cache
from vistok.projectors.apply.concentric import concentric_of
from vistok.projectors.apply.depths import DepthMixture
from vistok.projectors.apply.history import History, Turn, history_of, new_pictures, turn_of
from vistok.projectors.apply.layers import LayerPruning, LayerRun
from vistok.projectors.apply.layout import pack
from vistok.projectors.apply.limits import Prompt, shorter_limits, with_whole_prompts
from vistok.projectors.apply.prompts import columns_of, hide_old_placeholders, pad_id, positions_in
from vistok.projectors.apply.report import Report
from vistok.projectors.apply.shrink import Shrunk, gathered, shrink_prompts, untouched
from vistok.projectors.interface import Compressor, ImageTokens, LayerCompressor
from vistok.projectors.methods.pmod import PMod

__all__ = ["Compression", "Report", "active", "compress"]

_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio")
_PIXELS = ("pixel_values", "pixel_values_videos")
_GRIDS = {False: ("image_grid_thw",), True: ("video_grid_thw", "second_per_grid_ts")}  # by whether they are of videos
_PICTURES = (
    *_PIXELS,
    "image_sizes",
    "image_sizes_videos",
    *_GRIDS[False],
    *_GRIDS[True],
    "pixel_attention_mask",
    "spatial_shapes",
    "batch_num_images",
)


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
        except VistokError:
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
        given = kwargs.get("input_ids")
        with torch.no_grad():
            kwargs, history = self._shortened(kwargs, generated=True, left=True)
        prompt = Prompt(given, kwargs["input_ids"].shape[1])
        self._prompt_width = prompt.short
        saved = given.shape[1] - prompt.short
        if saved or bool((kwargs["input_ids"] != given).any()):
            own = self.model.generation_config
            kwargs, generation_config = shorter_limits(kwargs, generation_config, own, saved)
            kwargs = with_whole_prompts(kwargs, prompt)
        cache = given_cache(kwargs)
        output = self._run(plain, generation_config, kwargs)
        sequences = prompt.whole(output if isinstance(output, Tensor) else output.sequences)
        cache = cache if isinstance(output, Tensor) else given_cache(output)
        history.ordered = _beams(kwargs, generation_config, self.model.generation_config) == 1
        history.repeated(len(sequences) // len(given)).keep_with(cache)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output

    def _run(self, plain: Callable[..., Any], config: Any, kwargs: dict[str, Any]) -> Any:
        self._generating = True
        try:
            return plain(None, config, **kwargs)
        finally:
            self._generating = False
            self._prompt_width = None

    def _begin(self, kwargs: dict[str, Any]) -> None:
        """A new call: nothing of an older one is told, and what cannot be thinned is refused."""
        self.last = Report()
        if all(kwargs.get(name) is not None for name in _PIXELS):
            raise VistokError("pictures and videos in one call are not compressed: give them in turns of their own.")

    def _concerns(self, kwargs: dict[str, Any]) -> bool:
        """Whether a call has pictures, or a cache that was shortened."""
        cache = given_cache(kwargs)
        past = cache is not None and int(cache.get_seq_length()) > 0
        return _has_pixels(kwargs) or (past and history_of(cache) is not None)

    def _before_forward(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self._generating:
            return None
        self._pending = None
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
        if mask is not None and mask.ndim != 2:
            raise VistokError("compression needs the attention mask as [batch, tokens], as the processor returns it.")
        turn = turn_of(ids, mask, given_cache(kwargs), generated)
        token = self._token(kwargs)
        places = (turn.new_ids == token) & turn.new_mask.bool()
        if turn.start and not bool(places.any()):  # pictures of earlier turns
            kwargs = {name: value for name, value in kwargs.items() if name not in _PICTURES}
        has_pictures = _has_pixels(kwargs)
        if self._pruning is not None and turn.start and has_pictures:
            name = self.compressor.name
            raise VistokError(f"{name} ranks a prompt in one piece: start without the cache for new pictures.")
        grids: dict[str, Tensor] = {}
        if has_pictures and self._pruning is None:
            new, grids, kwargs = self._thinned(turn, kwargs, places, left)
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

    def _thinned(
        self, turn: Turn, kwargs: dict[str, Any], places: Tensor, left: bool
    ) -> tuple[Shrunk, dict[str, Tensor], dict[str, Any]]:
        """Encode the pictures: the columns of the new part that stay, grids of its pictures, and the arguments."""
        videos, token = kwargs.get("pixel_values_videos") is not None, self._token(kwargs)
        if videos:
            groups = list(self.family.videos(self.model, kwargs, self.compressor.needs))
        else:
            groups = [[picture] for picture in self.family.pictures(self.model, kwargs, self.compressor.needs)]
        grids = {name: torch.as_tensor(kwargs[name]) for name in _GRIDS[videos] if kwargs.get(name) is not None}
        wholes = [sum(len(plan.tokens) for _, plan in group) for group in groups]
        if turn.start and sum(wholes) != int(places.sum()):
            mine = new_pictures(turn, wholes, token)
            groups = [groups[i] for i in mine]
            grids = {name: grid[mine] for name, grid in grids.items()}
        described = [picture for group in groups for picture in group]
        totals = [len(plan.tokens) for _, plan in described]
        self._give_text(turn, places, described, totals)
        chosen = [kept for group in groups for kept in self._chosen([image for image, _ in group], videos)]
        newlines = self.compressor.newlines
        pictures = [pack(image, plan, kept, newlines) for (image, plan), kept in zip(described, chosen, strict=True)]
        layouts = [(image.grid, image.canvas) for image, _ in described]
        new = shrink_prompts(turn.new_ids, turn.new_mask, token, totals, [p.offsets for p in pictures], left)
        visual = new.mask.sum(1) - (turn.new_mask.bool() & ~places).sum(1)
        layers = self.model.config.get_text_config().num_hidden_layers
        self.last = Report(
            before=totals,
            after=[len(p.features) for p in pictures],
            kept=[p.index for p in pictures],
            layouts=layouts,
            visual=visual.tolist(),
            lengths=[[total] * layers for total in turn.joined(new).mask.sum(1).tolist()],
            family=self.model.config.model_type,
        )
        kwargs = {name: value for name, value in kwargs.items() if name not in (*_PICTURES, *_SETTINGS)}
        encode = self.family.encoded_videos if videos else self.family.encoded
        encoded = encode([p.features for p in pictures], [p.levels for p in pictures])
        return new, grids, kwargs | {"mm_encoder_outputs": {"video" if videos else "image": encoded}}

    def _chosen(self, images: list[ImageTokens], video: bool) -> list[Any]:
        """What the compressor keeps of a picture, or of each frame of a video.

        Raises:
            VistokError: it keeps nothing of all of it.
        """
        chosen = self.compressor.select_frames(images) if video else [self.compressor.select(images[0])]
        if not any(isinstance(kept, Tensor) or any(len(view.index) for view in kept) for kept in chosen):
            raise VistokError("a compressor must keep at least one token of every picture and every video.")
        return chosen

    def _token(self, kwargs: dict[str, Any]) -> int:
        """Id of the placeholders that a call's pictures or videos fill."""
        config = self.model.config
        return config.image_token_id if kwargs.get("pixel_values_videos") is None else config.video_token_id

    def _give_text(self, turn: Turn, places: Tensor, described: list[Picture], totals: list[int]) -> None:
        """Tell each picture the text of its prompt."""
        ends = torch.tensor(totals).cumsum(0) if totals else torch.zeros(0)
        rows = torch.searchsorted(places.sum(1).cumsum(0).cpu(), ends)
        text = turn.mask.bool() & ~self._visual(turn.ids)
        for (image, _), row in zip(described, rows.clamp(max=len(text) - 1).tolist(), strict=True):
            image.text = self.family.embed(self.model, turn.ids[row, text[row]][None])[0].detach()

    def _visual(self, ids: Tensor) -> Tensor:
        """Which tokens are placeholders of pictures or videos."""
        config = self.model.config
        visual = ids == config.image_token_id
        return visual if getattr(config, "video_token_id", None) is None else visual | (ids == config.video_token_id)

    def _before_base(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        name = self.compressor.name
        self._pruning.end()
        kwargs = dict(zip(inspect.signature(type(base).forward).parameters, (base, *args), strict=False)) | kwargs
        ids, mask, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), given_cache(kwargs)
        if ids is None:
            return
        visual = self._visual(ids)
        if cache is not None and cache.get_seq_length() > 0:
            if ids.shape[1] > 1 and bool(visual.any()):
                raise VistokError(f"{name} ranks a prompt in one piece: leave out prefill chunks and filled caches.")
            return
        if not bool(visual.any()):
            return
        if mask is not None and mask.ndim != 2:
            raise VistokError(f"{name} needs the attention mask of the prompt as [batch, tokens].")
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


def _has_pixels(kwargs: dict[str, Any]) -> bool:
    """Whether a call has pictures or videos."""
    return any(kwargs.get(name) is not None for name in _PIXELS)


def active(model: nn.Module) -> Compression | None:
    """What a model is compressed with at the moment."""
    return attached(model, Compression.slot)


def compress(
    model: nn.Module, compressor: Compressor | LayerCompressor, positions: Literal["compact", "original"] = "compact"
) -> Compression:
    """Let a multimodal model of transformers run on fewer visual tokens.

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


def _beams(kwargs: dict[str, Any], config: Any, own: Any) -> int:
    """Number of beams of a call of ``generate``."""
    return next((n for n in (kwargs.get("num_beams"), getattr(config, "num_beams", None), own.num_beams) if n), 1)
