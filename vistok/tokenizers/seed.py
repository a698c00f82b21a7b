"""SEED (Ge et al., arXiv 2307.08041): a picture as a few causal tokens that a language model predicts left to right.

A vision network and a causal Q-Former give one state a query; each becomes a code, and the codes give the image
embedding that an unCLIP paints from. Parameter names are those of the published weights (SEED-2), of which both
decoders are told by their keys: narrow maps (released) or a reversed Q-Former. The embedded shape paints by itself,
with a small head that draws the codes of an embedded VQ tokenizer.

Nearest codes are found in float32. The reference does so in half precision, which can differ where two codes are almost
equally near: ``match_reference_fp16`` asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.tokenizers.blocks import Block
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.quantizers import Quantized, VectorQuantizer
from vistok.tokenizers.seed_config import PRESETS, SeedConfig
from vistok.tokenizers.seed_pixels import PixelHead
from vistok.tokenizers.seed_qformer import QFormer
from vistok.tokenizers.seed_tower import build_tower
from vistok.zoo.checkpoint import load_strict, read_state_dict, without_common_prefix
from vistok.zoo.pretrained import Pretrained
from vistok.zoo.registry import resolve

if TYPE_CHECKING:
    from vistok.tokenizers.unclip import UnClip

BETA = 0.25  # on the codebook term, as in the reference
PARTS = ("image_down.", "Reverse_Qformer.", "blocks.")  # keys that tell what a checkpoint has


class SeedTraining(NamedTuple):
    """What a training pass of the second stage gives.

    Attributes:
        states: what the Q-Former said, [B, n, D].
        rebuilt: the same from the codes, [B, n, D].
        embedding: of the image, [B, E].
        features: what the image is painted from, [B, n, D].
        quantized: codes and losses.
    """

    states: Tensor
    rebuilt: Tensor
    embedding: Tensor
    features: Tensor
    quantized: Quantized


def _task_layer(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inner), nn.Tanh(), nn.Linear(inner, outputs))


def _narrowing(width: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((width, *widths), widths, strict=False):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Seed(Pretrained, nn.Module):
    """Tokens int64 [B, n], causal: the first k do not depend on the queries after them.

    Pictures are [B, 3, H, W] in [-1, 1] with H = W = ``config.image_size``.
    """

    config_class = SeedConfig
    presets = PRESETS
    family = "seed"
    # What the published file holds beside the tokenizer: BERT's text side, heads of the first stage, and buffers.
    dropped_keys = (
        r"(Reverse_)?Qformer\.cls\..*",
        r"(Reverse_)?Qformer\.bert\.embeddings\.(position_ids|word_embeddings\.weight|position_embeddings\.weight)",
        r"(Reverse_)?Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..*",
        r"(vision_proj|text_proj|itm_head)\.(weight|bias)",
        r"temp",
        r"visual_encoder\.(norm|fc_norm|head)\.(weight|bias)",
    )

    def __init__(self, config: SeedConfig | None = None):
        super().__init__()
        self.config = config = config or SeedConfig()
        width, count = config.width, config.num_tokens
        tower = build_tower(config)
        if tower is not None:
            self.visual_encoder = tower
        self.ln_vision = nn.LayerNorm(config.tower_width)
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.Qformer = QFormer(config, config.tower_width)
        self.encode_task_layer = _task_layer(width, width, config.code_dim)
        self.quantize = VectorQuantizer(
            config.codebook_size, config.code_dim, l2_norm=False, commitment=1.0, usage_window=0, codebook=BETA
        )
        self.decode_task_layer = _task_layer(config.code_dim, config.code_dim, width)
        if config.reconstruct:
            self.pos_embed = nn.Parameter(torch.zeros(1, count, width))
            self.blocks = self._blocks()
        self.pos_embed_image = nn.Parameter(torch.zeros(1, count, width))
        self.blocks_image = self._blocks()
        if config.image_down:
            self.image_down = _narrowing(width, config.image_down)
            self.distill_image_proj = nn.Linear(count * config.image_down[-1], config.embed_dim)
        else:
            self.Reverse_Qformer = QFormer(config, width)
            self.reverse_tokens = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.distill_image_proj = nn.Linear(width, config.embed_dim)
        if config.pixels is not None:
            self.pixel_head = PixelHead(config)
        self.unclip: UnClip | None = None
        self._painter: nn.Module | None = None

    def _blocks(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            Block(config.width, config.decode_heads, eps=config.block_norm_eps) for _ in range(config.decode_layers)
        )

    @classmethod
    def from_pretrained(
        cls, name: str | Path, preset: str | None = None, prefer_ema: bool = False, **overrides: Any
    ) -> Seed:
        """Load strictly, see ``Pretrained.from_pretrained``; which decoder a published file has is told by its keys."""
        path = resolve(name)
        if path.is_dir():
            return super().from_pretrained(name, preset, prefer_ema, **overrides)
        preset, overrides = cls.preset_of_file(path, preset, overrides)
        if preset not in cls.presets:
            raise unknown_name("Seed preset", preset, list(cls.presets))
        state = without_common_prefix(read_state_dict(path, prefer_ema=prefer_ema), {"query_tokens"})
        model = cls(variant(replace(cls.presets[preset], **overrides), state))
        load_strict(model, state, preset, cls.dropped_keys)
        return model.eval()

    @property
    def capabilities(self) -> Capabilities:
        """A sequence of one fixed picture size, all of whose tokens the image embedding needs."""
        return Capabilities(
            self.config.codebook_size,
            "sequence",
            multiple=1,
            image_size=self.config.image_size,
            lengths=(self.config.num_tokens,),
            codebooks=("semantic",),
            stochastic_decode=self.unclip is not None or self.config.pixels is not None,
            resize="stretch" if self.config.tower == "eva" else "crop",
        )

    def features(self, images: Tensor) -> Tensor:
        """Features [B, m, W] of the vision network, before the layer norm.

        Raises:
            VistokError: the pictures have another size, or this tokenizer was built without a tower.
        """
        self._check_tower(images)
        return self.visual_encoder(images)

    def _check_tower(self, images: Tensor) -> None:
        if self.config.tower == "none":
            raise VistokError("this SEED has no vision network: hand its features in.")
        self.capabilities.check_images(images)

    def states(self, features: Tensor, length: int | None = None) -> Tensor:
        """What the first ``length`` queries (all if None) say of a picture's features [B, m, W]: [B, length, D].

        Raises:
            VistokError: there are not so many queries.
        """
        count = self.config.num_tokens
        length = count if length is None else length
        if not 1 <= length <= count:
            raise VistokError(f"this tokenizer encodes 1 to {count} tokens of a picture, got {length}.")
        return self.Qformer(self.query_tokens[:, :length], self.ln_vision(features))

    def latents(self, states: Tensor) -> Tensor:
        """States [B, n, D] to un-quantized latents [B, n, code_dim]."""
        return self.encode_task_layer(states)

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        length: int | None = None,
        features: Tensor | None = None,
        match_reference_fp16: bool = False,
    ) -> Tensor:
        """Pictures to tokens int64 [B, n].

        Args:
            images: [B, 3, H, W] in [-1, 1].
            length: how many first tokens; they are those of a whole encoding. All if None.
            features: of the vision network, [B, m, W]; computed from the pictures if None.
            match_reference_fp16: compare with the codes in half precision, as the reference does.

        Raises:
            VistokError: the pictures have another size, or there are not so many tokens.
        """
        if features is None:
            self._check_tower(images)
            features = self._see(images)
        return self._encode(features, length, match_reference_fp16)

    @in_parts
    def _see(self, images: Tensor) -> Tensor:
        return self.visual_encoder(images)

    @in_parts
    def _encode(self, features: Tensor, length: int | None, half: bool) -> Tensor:
        return self.nearest(self.latents(self.states(features, length)), half)

    def nearest(self, latents: Tensor, match_reference_fp16: bool = False) -> Tensor:
        """Nearest codes of latents [B, n, code_dim], int64 [B, n]."""
        if not match_reference_fp16:
            return self.quantize.indices(latents.movedim(-1, 1))
        z, codes = latents.half(), self.quantize.codebook.half()
        distances = z.square().sum(-1, keepdim=True) + codes.square().sum(-1) - 2 * (z @ codes.T)
        return distances.argmin(-1)

    def decoded(self, codes: Tensor) -> Tensor:
        """Codes [B, n, code_dim] to what the image embedding is read from, [B, n, D]."""
        return self._image_features(self.decode_task_layer(codes))

    def _image_features(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed_image
        for block in self.blocks_image:
            x = block(x)
        return x

    def embedding(self, decoded: Tensor) -> Tensor:
        """What ``decoded`` gives, [B, n, D], to image embeddings [B, E]."""
        if self.config.image_down:
            return self.distill_image_proj(self.image_down(decoded).flatten(1))
        return self.distill_image_proj(self.Reverse_Qformer(self.reverse_tokens, decoded)[:, 0])

    def _codes(self, tokens: Tensor, length: int | Tensor | None) -> Tensor:
        self.capabilities.check_tokens(tokens)
        length = tokens.shape[1] if length is None else length
        self.capabilities.check_length(length, tokens.shape[1])
        return self.quantize.codes(tokens)

    @torch.no_grad()
    def embed(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Tokens int64 [B, n] to image embeddings [B, E] (of CLIP ViT-H/14 in the published weights).

        Raises:
            VistokError: these are not all tokens of pictures.
        """
        return self.embedding(self.decoded(self._codes(tokens, length)))

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        length: int | Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Tokens to pictures [B, 3, H, W] in [-1, 1]: by ``unclip`` where one is set, else by the embedded pixel head.

        Args:
            tokens: int64 [B, n].
            length: must be n: the embedding is of all tokens.
            generator: draws the noise of what paints, the same for every picture, or one that of each; fixed if None.

        Raises:
            VistokError: this tokenizer gives an embedding alone, and no unCLIP was named.
        """
        codes = self._codes(tokens, length)
        if self.unclip is not None:
            return self.unclip(self.embedding(self.decoded(codes)), generator)
        if self.config.pixels is None:
            raise VistokError(
                "SEED's tokens decode to an image embedding (`embed`), which an unCLIP paints: name one with --unclip, "
                "such as stabilityai/stable-diffusion-2-1-unclip, or set `tokenizer.unclip = UnClip.load(name)`."
            )
        return self._decode(codes, self.pixel_head.draws(len(codes), generator).to(codes.device))

    @in_parts
    def _decode(self, codes: Tensor, draws: Tensor) -> Tensor:
        painted = self.pixel_head.paint(self.decoded(codes), draws)
        return self._pixel_painter().to(painted.device).decode(painted.unflatten(1, (self.config.pixel_grid, -1)))

    def _pixel_painter(self) -> nn.Module:
        if self._painter is None:
            from vistok.tokenizers.vq import VQTokenizer

            # Not a submodule: its weights are embedded under their own name.
            object.__setattr__(self, "_painter", VQTokenizer.from_pretrained(self.config.pixels))
        return self._painter

    def forward(self, features: Tensor) -> SeedTraining:
        """Training pass of the second stage over the tower's features [B, m, W].

        Raises:
            VistokError: these weights were saved without the blocks that rebuild states.
        """
        if not self.config.reconstruct:
            raise VistokError("these weights have no blocks that rebuild the Q-Former's states: set reconstruct.")
        with torch.no_grad():  # the Q-Former is frozen by then
            states = self.states(features)
        quantized = self.quantize(self.latents(states).movedim(-1, 1))
        up = self.decode_task_layer(quantized.latents.movedim(1, -1))
        rebuilt = up + self.pos_embed
        for block in self.blocks:
            rebuilt = block(rebuilt)
        decoded = self._image_features(up)
        return SeedTraining(states, rebuilt, self.embedding(decoded), decoded, quantized)


def variant(config: SeedConfig, state: Mapping[str, Tensor]) -> SeedConfig:
    """Returns the shape with the decoder and the blocks whose keys are among these weights.

    Raises:
        VistokError: the keys are of both decoders, or of none.
    """
    narrow, reverse, rebuilds = (any(map(str.startswith, state, repeat(prefix))) for prefix in PARTS)
    if narrow == reverse:
        seen = "both" if narrow else "neither"
        raise VistokError(
            f"the checkpoint has keys of {seen} of SEED's decoders ({PARTS[0]}* and {PARTS[1]}*): name a whole "
            "tokenizer."
        )
    down = config.image_down or SeedConfig.image_down
    return replace(config, image_down=down if narrow else (), reconstruct=rebuilds)
