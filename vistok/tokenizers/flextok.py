"""FlexTok (Bachmann et al., arXiv 2502.13967): pictures as 1 to 256 tokens, decoded by a rectified flow.

A transformer reads patches and causal registers; finite scalar quantization of the registers gives the tokens,
ordered from coarse to fine because nested dropout hides their tail in training. A second transformer paints from
noise, seeing the patches and the tokens. Both work on the latents of a VAE. Parameter names are those of the
published weights, which are for research only.

Two exact savings that the reference does not make. Registers are causal and patches never see them, so encoding with
the first k gives the first k tokens. Dropped registers are one learned vector each, without position, so they stay
equal through all layers and are one key here, whose attention logit grows by the logarithm of their number; a batch
may mix lengths.

The reference draws the VAE's posterior; here encoding takes its mode, so that tokens are reproducible.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.flextok_config import PRESETS, FlexTokConfig, from_published, is_published, published_tree
from vistok.tokenizers.flextok_networks import VAE, Decoder, Encoder, KLLatents
from vistok.tokenizers.flow import FlowSampling, noise_for
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.quantizers import FSQ
from vistok.tokenizers.tail_drop import sample_lengths
from vistok.zoo.checkpoint import load_strict, read_state_dict, weights_file, without_common_prefix
from vistok.zoo.pretrained import CONFIG_FILE, Pretrained
from vistok.zoo.registry import resolve


class FlowDraws(NamedTuple):
    """The random draws of a training pass.

    Attributes:
        noise: standard normal, of the maps' shape [B, C, h, w].
        sigma: times, [B].
        keep: tokens that each picture is painted from, int64 [B].
        null: pictures that train the unconditional velocity, bool [B].
    """

    noise: Tensor
    sigma: Tensor
    keep: Tensor
    null: Tensor


class FlowTraining(NamedTuple):
    """What a training pass gives.

    Attributes:
        velocity: predicted, [B, C, h, w].
        target: noise minus data.
        features: patches to be aligned with a vision network's (REPA, arXiv 2410.06940), [B, P, D].
        indices: tokens int64 [B, N].
        codes: of all tokens, passing gradients on, [B, N, code channels].
        latents: what the codes were rounded from, before the bound, [B, N, code channels].
    """

    velocity: Tensor
    target: Tensor
    features: Tensor
    indices: Tensor
    codes: Tensor
    latents: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean squared error of the velocity."""
        return F.mse_loss(self.velocity.float(), self.target.float())


class FlexTok(Pretrained, nn.Module):
    """A sequence of N tokens int64 [B, N], of which any prefix decodes.

    Pictures are [B, 3, H, W] in [-1, 1] with H = W = ``config.image_size``.
    """

    config_class = FlexTokConfig
    presets = PRESETS
    family = "flextok"
    dropped_keys = (r".*repa.*",)  # the projector that training aligned features through
    base_prefix = "vae.kl."

    def __init__(self, config: FlexTokConfig | None = None):
        super().__init__()
        self.config = config = config or FlexTokConfig()
        if config.vae or config.kl is not None:
            self.vae = VAE(config) if config.kl is None else KLLatents(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.regularizer = FSQ(config.levels)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, preset: str | None = None, prefer_ema: bool = False, **overrides: Any
    ) -> FlexTok:
        """Load strictly: what ``save_pretrained`` wrote, a checkpoint of a preset, or published weights.

        Published weights tell their shape themselves, by their tensors and by the configuration beside or inside the
        file, of which nothing is executed. They are licensed for research only, of which a warning reminds.

        Raises:
            VistokError: the name leads nowhere, the configuration names unknown classes, or the weights do not fit.
        """
        path = resolve(name)
        weights = weights_file(path) if path.is_dir() else path
        own = path.is_dir() and not is_published(path / CONFIG_FILE)
        if own or preset is not None or ".safetensors" not in weights.suffixes:
            return super().from_pretrained(name, preset, prefer_ema, **overrides)
        state = without_common_prefix(read_state_dict(weights), ("encoder.module_dict.enc_register_module.registers",))
        config = from_published(published_tree(path), {key: value.shape for key, value in state.items()})
        model = cls(config)
        load_strict(model, state, "FlexTok", cls.dropped_keys)
        warnings.warn("the published FlexTok weights are licensed for non-commercial research only", stacklevel=2)
        return model.eval()

    @property
    def capabilities(self) -> Capabilities:
        """A sequence of one fixed picture size; any prefix decodes."""
        return Capabilities(
            self.regularizer.size,
            "sequence",
            multiple=self.config.patch,
            image_size=self.config.image_size,
            lengths=range(1, self.config.registers + 1),
            stochastic_decode=True,
        )

    def maps(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures to the maps that the transformers work on, [B, C, h, w]; a generator draws the VAE's posterior.

        Raises:
            VistokError: the pictures have another size.
        """
        self.capabilities.check_images(images)
        return self.vae.encode(images, generator) if hasattr(self, "vae") else images

    @torch.no_grad()
    def encode(self, images: Tensor, length: int | None = None) -> Tensor:
        """Pictures to tokens int64 [B, N], or to exactly the first ``length`` of them at less work.

        Raises:
            VistokError: the pictures have another size, or there are not so many tokens.
        """
        if length is not None:
            self.capabilities.check_length(length, self.config.registers)
        self.capabilities.check_images(images)
        return self._encode(images, length)

    @in_parts
    def _encode(self, images: Tensor, length: int | None) -> Tensor:
        return self.regularizer.indices(self.encoder(self.maps(images), length).transpose(1, 2))

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        length: int | Tensor | None = None,
        sampling: FlowSampling | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Tokens to pictures [B, 3, H, W], nominally in [-1, 1] (not clamped).

        Args:
            tokens: int64 [B, n].
            length: how many first tokens to decode; an int64 tensor [B] gives every row its own number, in one batch.
            sampling: steps and guidance; the published recipe by default.
            generator: of the noise, on the CPU, for all rows in turn, or one for each row; seed 0 by default.
            noise: [B, C, h, w] to begin with, in place of a generator.

        Raises:
            VistokError: a length that there are no tokens for.
        """
        self.capabilities.check_tokens(tokens)
        length = tokens.shape[1] if length is None else length
        self.capabilities.check_length(length, tokens.shape[1])
        keep = None
        if isinstance(length, Tensor):
            keep, length = length, int(length.max())
        if noise is None:
            noise = self._noise(tokens, generator)
        return self._decode(tokens[:, :length], keep, sampling or FlowSampling(), noise)

    @in_parts
    def _decode(self, tokens: Tensor, keep: Tensor | None, sampling: FlowSampling, noise: Tensor) -> Tensor:
        return self.paint(self.regularizer.codes(tokens), keep, sampling, noise=noise)

    def _noise(self, rows: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        generator = generator or torch.Generator().manual_seed(0)
        return noise_for(len(rows), self.config.map_shape, generator, rows.device)

    def paint(
        self,
        codes: Tensor,
        keep: Tensor | None,
        sampling: FlowSampling,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Codes [B, n, channels], of which row b sees the first ``keep[b]``, to pictures; see ``decode``."""
        maps = self.sample_maps(codes, keep, sampling, generator, noise)
        return self.vae.decode(maps) if hasattr(self, "vae") else maps

    def sample_maps(
        self,
        codes: Tensor,
        keep: Tensor | None,
        sampling: FlowSampling,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """As ``paint``, without the VAE's decoder."""
        weight = self.decoder.module_dict["dec_from_latents"].proj.weight
        if noise is None:
            noise = self._noise(codes, generator)
        noise, codes = noise.to(weight.dtype), codes.to(weight.dtype)
        nothing = codes[:, :0]
        null = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        return sampling.run(
            noise,
            lambda x, times: self.decoder(x, times, codes, keep),
            lambda x, times: self.decoder(x, times, nothing, null=null),
        )

    def draw(self, count: int, generator: torch.Generator) -> FlowDraws:
        """Draw one noise, one time and one number of kept tokens for each of ``count`` pictures, on the CPU."""
        config = self.config
        return FlowDraws(
            noise_for(count, config.map_shape, generator, torch.device("cpu")),
            (torch.randn(count, generator=generator) + math.log(config.time_shift)).sigmoid(),
            sample_lengths(config.length_law, config.registers, count, generator),
            torch.rand(count, generator=generator) < config.null_probability,
        )

    def training_pass(self, maps: Tensor, draws: FlowDraws) -> FlowTraining:
        """Encode maps [B, C, h, w] and predict the velocity of their noised form, from the tokens that are kept."""
        latents = self.encoder(maps)
        quantized = self.regularizer(latents.transpose(1, 2))
        noised = maps + draws.sigma[:, None, None, None] * (draws.noise - maps)
        codes = quantized.latents.transpose(1, 2)
        velocity, features = self.decoder.velocity_and_features(noised, draws.sigma, codes, draws.keep, draws.null)
        return FlowTraining(velocity, draws.noise - maps, features, quantized.indices, codes, latents)

    def forward(self, images: Tensor, generator: torch.Generator) -> FlowTraining:
        """Training pass of pictures [B, 3, H, W] in [-1, 1]; the generator of all draws is on the CPU."""
        with torch.no_grad():
            maps = self.maps(images)
        draws = FlowDraws(*(draw.to(maps.device) for draw in self.draw(len(maps), generator)))
        return self.training_pass(maps, draws)
