"""What the package knows of a family of transformers models that read pictures.

One small module a family subclasses :class:`Family`; compressors, samplers and cache policies ask it where the parts of
a model are and what its vision tower gave, instead of asking for the model's type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.attention import LayerAttention
from vistok.models.families.capture import captured_attention
from vistok.models.families.plan import Plan
from vistok.models.families.tokens import ImageTokens, Needs

Picture = tuple[ImageTokens, Plan]
Ask = Callable[[int], Needs]  # what a reader needs of a tower with this many layers


class Family:
    """One family, by its ``config.model_type``.

    Attributes:
        features: how the model's forward takes encoded pictures: a ``list`` with one tensor a picture, or all in one
            ``flat`` tensor.
        position_axes: 1, or 3 for models whose rotary positions are those of frame, row and column.
        whole_first: whether the whole picture is seen before its tiles; else it is seen behind them, or not at all.
        causal: whether a token sees none behind it; else those of a picture see one another, and must come together.
    """

    features: ClassVar[Literal["list", "flat"]] = "list"
    position_axes: ClassVar[Literal[1, 3]] = 1
    whole_first: ClassVar[bool] = False
    causal: ClassVar[bool] = True

    def backbone(self, model: nn.Module) -> nn.Module:
        """Returns the decoder, which turns embeddings [B, S, D] into normed states [B, S, D]."""
        return model.base_model.language_model

    def embed(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Returns embeddings of text tokens [B, S] as the backbone takes them, [B, S, D]."""
        return model.get_input_embeddings()(tokens)

    def head(self, model: nn.Module, states: Tensor) -> Tensor:
        """Returns logits of the backbone's states, [B, S, vocabulary]."""
        return model.get_output_embeddings()(states)

    def position_offset(self, model: nn.Module) -> Tensor | int:
        """Returns what makes a position of the number of tokens before a token since the last prefill, [prompts, 1]."""
        return 0

    def masks(self, model: nn.Module, mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor | dict[str, Tensor]:
        """Returns an attention mask as the backbone takes it: one, or one for each type of layer.

        Args:
            model: the model.
            mask: which keys each query sees, bool [B, 1, Q, K].
            queries, keys: positions, int64 [B, Q] and [B, K]; layers with a sliding window measure it in these.
        """
        text = model.config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ())
        if not kinds - {"full_attention"}:
            return mask
        near = (queries[:, :, None] - keys[:, None, :])[:, None] < text.sliding_window
        return {kind: mask & near if kind == "sliding_attention" else mask for kind in kinds}

    def earliest_drop(self, model: nn.Module) -> int:
        """Returns the first layer of the backbone that may see fewer tokens than those before."""
        return 1

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        """Runs the vision tower once and yields each picture with the plan of its placeholders.

        With every token kept, the features are those of the model's ``get_image_features``.

        Args:
            model: the model.
            inputs: of the call, as the processor made them.
            ask: see :data:`Ask`.
        """
        raise NotImplementedError

    def videos(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[list[Picture]]:
        """Yields the frames of each video, as :meth:`pictures` yields pictures.

        Raises:
            VistokError: videos of this family are not described.
        """
        raise VistokError(
            f"videos of {model.config.model_type} are not compressed: pass their frames as pictures, or remove the "
            "compressor first."
        )

    def encoded_videos(self, features: list[Tensor], levels: list[list[Tensor]]) -> Any:
        """Returns encoded frames of videos as ``mm_encoder_outputs`` takes them."""
        return self.encoded(features, levels)

    def encoded(self, features: list[Tensor], levels: list[list[Tensor]]) -> Any:
        """Returns encoded pictures as ``mm_encoder_outputs`` takes them.

        Args:
            features: of each picture, [n, D].
            levels: further levels of each picture, see ``ImageTokens.levels``.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        # Only the features: a full output would keep the tower's hidden states alive through decoding.
        return BaseModelOutputWithPooling(pooler_output=features)

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        """Returns the rows and columns of tiles that the model sees the whole of a picture in.

        Args:
            images: the image processor.
            picture: what it was given.
            tiles: number of tiles that the model saw, a thumbnail included.

        Returns:
            None where the processor cuts its view out of the picture.
        """
        return None


class TowerOutput(NamedTuple):
    """What a tower gave: features [V, S, C] with CLS where it has one, attention by layer, hidden states by index."""

    features: Tensor
    has_cls: bool
    attention: dict[int, LayerAttention]
    states: dict[int, Tensor]

    def of(self, views: slice) -> TowerOutput:
        """Returns the same for some of the views."""
        attention = {i: replace(a, query=a.query[views], keys=a.keys[views]) for i, a in self.attention.items()}
        states = {i: s[views] for i, s in self.states.items()}
        return TowerOutput(self.features[views], self.has_cls, attention, states)


def run_tower(tower: nn.Module, pixels: Tensor, layer: int | list[int], needs: Needs) -> TowerOutput:
    """Runs a CLIP-like tower.

    Args:
        tower: the model's.
        pixels: [V, 3, H, W].
        layer: hidden state of the features; several are set side by side.
        needs: what is read of it.

    Raises:
        VistokError: it has no such layers.
    """
    layers = tower.config.num_hidden_layers
    absent = [state for state in needs.states if not 0 <= state <= layers]
    if absent:
        raise VistokError(
            f"hidden state {absent[0]} is wanted of {type(tower).__name__}, which has those of 0 to {layers}: choose "
            "among these."
        )
    has_cls = any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())
    wanted = [layer] if isinstance(layer, int) else list(layer)
    with captured_attention(tower, needs.attention, has_cls) as attention:
        output = tower(pixel_values=pixels, output_hidden_states=[*wanted, *needs.states], return_dict=True)
    features = torch.cat([output.hidden_states[i] for i in wanted], -1)
    states = {i: output.hidden_states[i][:, int(has_cls) :] for i in needs.states}
    return TowerOutput(features, has_cls, attention, states)


def square(tokens: int) -> tuple[int, int]:
    """Returns the rows and columns of a square grid of tokens.

    Raises:
        VistokError: the number is no square.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise VistokError(f"{tokens} patches of a view are no square grid, which this model's family promises.")
    return side, side
