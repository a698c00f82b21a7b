"""Pictures and videos of a call: encoded once, thinned by a compressor, and passed on in the place of their pixels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.family import Family, Picture
from vistok.projectors.apply.history import Turn, new_pictures
from vistok.projectors.apply.layout import check_kept, pack
from vistok.projectors.apply.report import Report
from vistok.projectors.apply.shrink import Shrunk, shrink_prompts
from vistok.projectors.interface import Compressor, ImageTokens, LayerCompressor

PIXELS = ("pixel_values", "pixel_values_videos")
_GRIDS = {False: ("image_grid_thw",), True: ("video_grid_thw", "second_per_grid_ts")}  # by whether they are of videos
PICTURES = (  # arguments of a call that describe its pictures
    *PIXELS,
    "image_sizes",
    "image_sizes_videos",
    *_GRIDS[False],
    *_GRIDS[True],
    "pixel_attention_mask",
    "spatial_shapes",
    "batch_num_images",
)
_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio")


def has_pixels(kwargs: dict[str, Any]) -> bool:
    """Returns whether a call has pictures or videos."""
    return any(kwargs.get(name) is not None for name in PIXELS)


def placeholder(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Returns the id of the placeholders that a call's pictures, or its videos, fill."""
    return model.config.image_token_id if kwargs.get("pixel_values_videos") is None else model.config.video_token_id


def visual_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """Returns which tokens are placeholders of pictures or videos, bool of the shape of ``ids``."""
    visual, video = ids == model.config.image_token_id, getattr(model.config, "video_token_id", None)
    return visual if video is None else visual | (ids == video)


class Thinned(NamedTuple):
    """A call whose pictures are thinned.

    Attributes:
        new: the columns of the new part of the prompts that stay.
        grids: grids of its pictures, for positions.
        kwargs: the arguments, with encoded pictures in the place of pixels.
        report: what was kept.
    """

    new: Shrunk
    grids: dict[str, Tensor]
    kwargs: dict[str, Any]
    report: Report


class Thinning:
    """Encodes and thins the pictures of calls.

    Args:
        model: the multimodal model.
        family: of the model.
        compressor: which tokens to keep.
    """

    def __init__(self, model: nn.Module, family: Family, compressor: Compressor | LayerCompressor) -> None:
        self.model, self.family, self.compressor = model, family, compressor

    def thin(self, turn: Turn, kwargs: dict[str, Any], places: Tensor, left: bool) -> Thinned:
        """Encodes the pictures of a call and shortens the new part of its prompts.

        Args:
            turn: the prompts of the call.
            kwargs: its arguments.
            places: placeholders in the new part, bool [B, S].
            left: whether padding stands on the left.

        Raises:
            VistokError: the compressor keeps nothing of a picture, or pictures and placeholders do not match.
        """
        videos, token = kwargs.get("pixel_values_videos") is not None, placeholder(self.model, kwargs)
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
        new = shrink_prompts(turn.new_ids, turn.new_mask, token, totals, [p.offsets for p in pictures], left)
        visual = new.mask.sum(1) - (turn.new_mask.bool() & ~places).sum(1)
        layers = self.model.config.get_text_config().num_hidden_layers
        report = Report(
            before=totals,
            after=[len(p.features) for p in pictures],
            kept=[p.index for p in pictures],
            layouts=[(image.grid, image.canvas) for image, _ in described],
            visual=visual.tolist(),
            lengths=[[total] * layers for total in turn.joined(new).mask.sum(1).tolist()],
            family=self.model.config.model_type,
        )
        kwargs = {name: value for name, value in kwargs.items() if name not in (*PICTURES, *_SETTINGS)}
        encode = self.family.encoded_videos if videos else self.family.encoded
        encoded = encode([p.features for p in pictures], [p.levels for p in pictures])
        kwargs["mm_encoder_outputs"] = {"video" if videos else "image": encoded}
        return Thinned(new, grids, kwargs, report)

    def _chosen(self, images: list[ImageTokens], video: bool) -> list[Any]:
        """What the compressor keeps of a picture, or of each frame of a video.

        Raises:
            VistokError: it keeps nothing of all of it, or what it gives are no tokens of it.
        """
        chosen = self.compressor.select_frames(images) if video else [self.compressor.select(images[0])]
        if not isinstance(chosen, list) or len(chosen) != len(images):
            raise VistokError(f"{type(self.compressor).__name__} must choose for each of {len(images)} frames.")
        width = self.model.config.get_text_config().hidden_size
        for image, kept in zip(images, chosen, strict=True):
            check_kept(type(self.compressor).__name__, image, kept, width)
        if not any(isinstance(kept, Tensor) or any(len(view.index) for view in kept) for kept in chosen):
            raise VistokError("a compressor must keep at least one token of every picture and every video.")
        return chosen

    def _give_text(self, turn: Turn, places: Tensor, described: list[Picture], totals: list[int]) -> None:
        """Tells each picture the text of its prompt."""
        ends = torch.tensor(totals).cumsum(0) if totals else torch.zeros(0)
        rows = torch.searchsorted(places.sum(1).cumsum(0).cpu(), ends)
        text = turn.mask.bool() & ~visual_tokens(self.model, turn.ids)
        for (image, _), row in zip(described, rows.clamp(max=len(text) - 1).tolist(), strict=True):
            image.text = self.family.embed(self.model, turn.ids[row, text[row]][None])[0].detach()
