"""ControlAR: a LlamaGen that follows a control picture (Li et al., arXiv 2410.02705).

A vision transformer turns the picture into one control token for each image token. Three small networks put them into
the stream at three depths, each at the position that predicts its token. As in LlamaGen's own table of positions, any
height and width fit whose tokens are no more than those of the square that was trained: a picture's tokens take the
table's rows in raster order, whatever its width.

Parameter names are those of the published files. The encoder is that of the installed transformers, whose names have
changed; its weights are loaded and saved under the published ones.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.interface import Control, TokenSpec
from vistok.models.llamagen import PRESETS as LLAMAGEN_PRESETS
from vistok.models.llamagen import LlamaGen, LlamaGenConfig, LlamaGenFamily, RMSNorm
from vistok.models.llamagen.layers import MLP

if TYPE_CHECKING:
    from typing_extensions import Self

DEPTHS = 3
PATCH = {"t2i": 14, "c2i": 16}  # of DINOv2 and of ViT
CRISP = ("canny", "seg")  # kinds that lose what they say when neighbours are mixed


@dataclass(frozen=True)
class ControlARConfig(LlamaGenConfig):
    """Shape of a ControlAR: that of its LlamaGen, and the control encoder's, a DINOv2 of ``t2i`` and a ViT of ``c2i``.

    Attributes:
        controls: kinds of pictures that the weights follow.
        crisp: whether ``canny`` and ``seg`` pictures are resized without mixing neighbours. The published ``base``
            weights mix them.
        downsample: pixels of a token along a side.
        adapter_width, adapter_depth, adapter_heads, adapter_mlp_ratio: of the encoder.
        adapter_image_size: side of the pictures that its table of positions was trained on.
    """

    controls: tuple[str, ...] = ("canny",)
    crisp: bool = True
    downsample: int = 16
    adapter_width: int = 384
    adapter_depth: int = 12
    adapter_heads: int = 6
    adapter_mlp_ratio: int = 4
    adapter_image_size: int = 518


def _config(size: str, **more: Any) -> ControlARConfig:
    base = LLAMAGEN_PRESETS[size]
    return ControlARConfig(dim=base.dim, n_layer=base.n_layer, n_head=base.n_head, **more)


_TEXT = {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 2048, "block_size": 1024}
PRESETS: dict[str, ControlARConfig] = {
    "ControlAR-XL": _config("GPT-XL", **_TEXT),
    "ControlAR-XL-base": _config("GPT-XL", **_TEXT, crisp=False, adapter_width=768, adapter_heads=12),
    "ControlAR-L": _config("GPT-L", adapter_image_size=224),
    "ControlAR-B": _config("GPT-B", adapter_image_size=224),
}

# The encoders' names in transformers 5 and the published ones of transformers 4.
_ATTENTION = {
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
}
_VIT = {r"^layers\.": "encoder.layer.", r"\.mlp\.fc1\.": ".intermediate.dense.", r"\.mlp\.fc2\.": ".output.dense."}


class ControlEncoder(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] to features [B, H W / f^2, adapter_width], one for each image token."""

    def __init__(self, config: ControlARConfig):
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

        self.patch, self.downsample = PATCH[config.model_type], config.downsample
        shape = {
            "hidden_size": config.adapter_width,
            "num_hidden_layers": config.adapter_depth,
            "num_attention_heads": config.adapter_heads,
            "patch_size": self.patch,
            "image_size": config.adapter_image_size,
        }
        if config.model_type == "t2i":
            self.model = Dinov2Model(Dinov2Config(**shape, mlp_ratio=config.adapter_mlp_ratio))
            self.options, self.names = {}, _ATTENTION
        else:
            hidden = config.adapter_width * config.adapter_mlp_ratio
            self.model = ViTModel(ViTConfig(**shape, intermediate_size=hidden))
            self.options, self.names = {"interpolate_pos_encoding": True}, _VIT | _ATTENTION
        self.register_state_dict_post_hook(_publish)
        self.register_load_state_dict_pre_hook(_install)

    def published(self, key: str) -> str:
        """The published name of a weight of the installed network; a published name stays."""
        for ours, theirs in self.names.items():
            key = re.sub(ours, theirs, key)
        return key

    def resize(self, pictures: Tensor, crisp: bool) -> Tensor:
        """Pictures with one patch of the encoder for each image token; ``crisp`` ones without mixing neighbours."""
        height, width = (side // self.downsample * self.patch for side in pictures.shape[-2:])
        if (height, width) == pictures.shape[-2:]:
            return pictures
        if crisp:
            return F.interpolate(pictures, (height, width), mode="nearest")
        return F.interpolate(pictures, (height, width), mode="bicubic", align_corners=True)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features of pictures that ``resize`` returned."""
        dtype = self.model.embeddings.patch_embeddings.projection.weight.dtype
        return self.model(pictures.to(dtype), **self.options).last_hidden_state[:, 1:]


def _publish(module: ControlEncoder, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    prefix += "model."
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + module.published(key.removeprefix(prefix))] = state.pop(key)


def _install(module: ControlEncoder, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for key, _ in [*module.model.named_parameters(), *module.model.named_buffers()]:
        published = f"{prefix}model.{module.published(key)}"
        if published in state:
            state[f"{prefix}model.{key}"] = state.pop(published)


class ControlMLP(nn.Module):
    """The second network over control features. The null control, zeros, is part of the files."""

    def __init__(self, config: ControlARConfig):
        super().__init__()
        self.cap_proj = MLP(config.dim, config.dim)
        self.register_buffer("uncond_embedding", torch.zeros(config.block_size, config.dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.cap_proj(x)


class ControlAR(LlamaGen):
    """The published GPT with control, class- or text-conditional.

    ``condition_embeddings`` and, of ``c2i``, ``condition_norm`` compute nothing; the published files have them.

    Args:
        config: its shape.

    Attributes:
        shape: rows and columns of the tokens that it draws, the largest square unless ``resized`` says otherwise.
    """

    family = "controlar"
    config_class = ControlARConfig
    presets = PRESETS
    idle_keys = ("condition_embeddings.weight", "condition_mlp.uncond_embedding")

    def __init__(self, config: ControlARConfig):
        super().__init__(config)
        dim = config.dim
        self.shape = (self.config.grid, self.config.grid)
        self.adapter_mlp = MLP(config.adapter_width, dim)
        self.condition_mlp = ControlMLP(config)
        self.condition_layers = nn.ModuleList(MLP(dim, dim) for _ in range(DEPTHS))
        self.condition_embeddings = nn.Embedding(config.vocab_size, dim)
        if config.model_type == "c2i":
            self.condition_norm = RMSNorm(dim, config.norm_eps)
        for module in (self.adapter_mlp, self.condition_mlp, self.condition_layers, self.condition_embeddings):
            module.apply(self._init)
        self.adapter = ControlEncoder(config)  # keeps the weights that it begins with

    # What samplers and pipelines ask a generator, see ``vistok.models.interface``.

    @property
    def controls(self) -> tuple[str, ...]:
        """Kinds of pictures that its weights follow."""
        return self.config.controls

    @property
    def multiple(self) -> int:
        """Pixels of a token along a side."""
        return self.config.downsample

    @property
    def tokens(self) -> TokenSpec:
        """The codes that it draws."""
        rows, columns = self.shape
        return TokenSpec("codes", self.config.vocab_size, rows * columns, columns=columns)

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns codes [B, n] as its tokenizer decodes them: a grid [B, h, w]."""
        return drawn.unflatten(1, (-1, self.shape[1]))

    def resized(self, height: int, width: int) -> Self:
        """Returns the same network, sharing its weights, that draws images of this size in pixels.

        Raises:
            VistokError: a side is no whole number of tokens, or they are more than the network's positions.
        """
        side, most = self.config.downsample, self.config.block_size
        if height < side or width < side or height % side or width % side:
            raise VistokError(f"a picture of {width}x{height} pixels is no whole number of tokens of {side} pixels.")
        if height * width > most * side**2:
            raise VistokError(
                f"a control picture of {width}x{height} pixels has {height * width // side**2} tokens, but the weights "
                f"know {most}: make it smaller, such as {self.config.grid * side}x{self.config.grid * side}."
            )
        other = copy.copy(self)
        other.shape = (height // side, width // side)
        return other

    # Control

    def control_tokens(self, features: Tensor) -> Tensor:
        """Control tokens [B, n, dim] of the encoder's features."""
        return self.condition_mlp(self.adapter_mlp(features))

    def streams(self, controls: Sequence[Control]) -> dict[int, Tensor]:
        """What controls add to the stream, by layer, [1 or B, n, dim] each; see ``LlamaGen.states``.

        Args:
            controls: pictures of the size of the images, or of a batch of them.
        """
        third = self.config.n_layer // DEPTHS
        added: dict[int, Tensor] = {}
        for control in controls:
            crisp = self.config.crisp and control.kind in CRISP
            tokens = self.control_tokens(self.adapter(self.adapter.resize(control.picture, crisp)))
            for depth, network in enumerate(self.condition_layers):
                stream = control.strength * network(tokens)
                added[depth * third] = added[depth * third] + stream if depth * third in added else stream
        return added

    def controlled_states(
        self, tokens: Tensor, condition: Tensor, mask: Tensor | None, controls: Sequence[Control]
    ) -> list[Tensor]:
        """The residual stream behind every layer, [B, n + 1, dim] each; see ``LlamaGen.states``.

        Args:
            tokens, condition, mask: as there. In training, some images lose their condition and their control at once.
            controls: pictures [B, 3, H, W] that the images follow.
        """
        dropped = None
        added = self.streams(controls)
        if self.training and self.config.class_dropout_prob > 0:
            dropped = self.draw_dropped(len(condition))
            added = {layer: stream * ~dropped[:, None, None] for layer, stream in added.items()}
        return self.states(tokens, condition, mask, dropped, added)

    def forward(
        self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None, controls: Sequence[Control] = ()
    ) -> Tensor:
        """Logits [B, n + 1, V] of all image tokens, teacher-forced; see ``controlled_states``."""
        return self.head(self.norm(self.controlled_states(tokens, condition, mask, controls)[-1]))


class ControlARFamily(LlamaGenFamily):
    """How ControlARs load: like LlamaGens."""

    kind = ControlAR
    name = "controlar"
    options = frozenset({"size", "preset", "text_encoder", "compile"})


FAMILY = ControlARFamily()
