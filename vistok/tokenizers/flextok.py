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

import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.flextok_config import PRESETS, FlexTokConfig, from_published, parse_metadata
from vistok.tokenizers.flextok_layers import (
    Block,
    ModulatedBlock,
    Parameter,
    PatchEmbed,
    PatchHead,
    Projection,
    TimeEmbedder,
    layer_norm,
    sincos_2d,
)
from vistok.tokenizers.flow import FlowSampling, noise_for
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.tokenizers.quantizers import FSQ
from vistok.tokenizers.tail_drop import sample_lengths
from vistok.zoo.checkpoint import load_strict, read_state_dict, shard_files, weights_file, without_common_prefix
from vistok.zoo.pretrained import CONFIG_FILE, Pretrained
from vistok.zoo.registry import resolve


def _trunk(blocks: list[nn.Module]) -> nn.Module:
    trunk = nn.Module()
    trunk.blocks = nn.ModuleList(blocks)
    return trunk


class Encoder(nn.Module):
    """Maps [B, C, h, w] to latents of the registers, [B, k, code channels]."""

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        width, depth = config.encoder
        grid = config.grid
        self.module_dict = nn.ModuleDict(
            {
                "enc_patch_emb": PatchEmbed(config.latent_channels, config.patch, width),
                "enc_posemb_module": Parameter("posembs", sincos_2d(width, grid, grid), trained=False),
                "enc_register_module": Parameter("registers", torch.randn(config.registers, width)),
                "enc_transformer": _trunk([Block(width, config.head_dim) for _ in range(depth)]),
                "enc_to_latents": Projection(width, len(config.levels)),
            }
        )

    @staticmethod
    def mask(patches: int, registers: int, device: torch.device | str = "cpu") -> Tensor:
        """Patches see patches, register i sees patches and registers up to i: bool [P + R, P + R], true where seen."""
        place = torch.arange(patches + registers, device=device)
        return (place[None] < patches) | (place[None] <= place[:, None])

    def forward(self, maps: Tensor, count: int | None = None) -> Tensor:
        """Latents of the first ``count`` registers; all if None."""
        parts = self.module_dict
        patches = parts["enc_patch_emb"](maps) + parts["enc_posemb_module"].posembs.flatten(2).transpose(1, 2)
        registers = parts["enc_register_module"].registers[:count]
        x = torch.cat([patches, registers.expand(len(maps), -1, -1)], 1)
        mask = self.mask(patches.shape[1], len(registers), maps.device)
        for block in parts["enc_transformer"].blocks:
            x = block(x, mask)
        return parts["enc_to_latents"](layer_norm(x[:, patches.shape[1] :]))


class Decoder(nn.Module):
    """Velocity of noised maps [B, C, h, w], seeing any number of first codes."""

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        self.config = config
        width, depth = config.decoder
        grid = config.grid
        self.module_dict = nn.ModuleDict(
            {
                "dec_from_latents": Projection(len(config.levels), width),
                "dec_registers_posemb_module": Parameter("posembs", 0.02 * torch.randn(1, 1, width, config.registers)),
                "dec_nested_dropout": Parameter("dropout_mask_token", 0.02 * torch.randn(width)),
                "dec_latent_dropout": Parameter("nullcond", 0.02 * torch.randn(width)),
                "dec_noise_patch_emb": PatchEmbed(config.latent_channels, config.patch, width),
                "dec_patches_posemb_module": Parameter("posembs", sincos_2d(width, grid, grid), trained=False),
                "dec_time_embedder": TimeEmbedder(config.time_features, width),
                "dec_transformer": _trunk(
                    [ModulatedBlock(width, config.head_dim, config.groups) for _ in range(depth)]
                ),
                "dec_to_patches": PatchHead(width, config.latent_channels, config.patch, config.modulated_head),
            }
        )

    def _sequence(
        self, maps: Tensor, codes: Tensor, keep: Tensor | None, null: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, P + n (+ 1 for all that are dropped), D] and what is added to the logits of each key."""
        parts = self.module_dict
        shown, total = codes.shape[1], self.config.registers
        patches = parts["dec_noise_patch_emb"](maps)
        patches = patches + parts["dec_patches_posemb_module"].posembs.flatten(2).transpose(1, 2)
        places = parts["dec_registers_posemb_module"].posembs[0, 0].t()[:shown]
        registers = parts["dec_from_latents"](codes) + places
        if shown == total and keep is None and null is None:
            return torch.cat([patches, registers], 1), None
        count = torch.full((len(maps),), shown, device=maps.device) if keep is None else keep.to(maps.device)
        null = torch.zeros_like(count, dtype=torch.bool) if null is None else null.to(maps.device)
        count = count.masked_fill(null, 0)
        dropped = torch.where(
            null[:, None], parts["dec_latent_dropout"].nullcond, parts["dec_nested_dropout"].dropout_mask_token
        )
        bias = torch.zeros(len(maps), patches.shape[1] + shown + 1, device=maps.device)
        hidden = torch.arange(shown, device=maps.device) >= count[:, None]
        bias[:, patches.shape[1] : -1].masked_fill_(hidden, -torch.inf)
        bias[:, -1] = (total - count).float().log()
        x = torch.cat([patches, registers, dropped[:, None]], 1)
        return x, bias[:, None, None].to(x.dtype)

    def velocity_and_features(
        self, maps: Tensor, times: Tensor, codes: Tensor, keep: Tensor | None = None, null: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the patches [B, P, D] after block ``config.repa_layer``, to be aligned in training."""
        parts = self.module_dict
        x, bias = self._sequence(maps, codes, keep, null)
        time = parts["dec_time_embedder"](times)
        patches = self.config.grid**2
        group = (torch.arange(x.shape[1], device=x.device) >= patches).long() * (self.config.groups - 1)
        features = x
        for i, block in enumerate(parts["dec_transformer"].blocks):
            x = block(x, bias, time, group)
            if i == self.config.repa_layer:
                features = x
        return parts["dec_to_patches"](x[:, :patches], time, self.config.grid), features[:, :patches]

    def forward(
        self, maps: Tensor, times: Tensor, codes: Tensor, keep: Tensor | None = None, null: Tensor | None = None
    ) -> Tensor:
        """Velocity [B, C, h, w].

        Args:
            maps: noised maps [B, C, h, w].
            times: [B]; 1 is noise, 0 is data.
            codes: first codes [B, n, code channels], n from 0 to N.
            keep: how many of them each row sees, int64 [B]; all if None.
            null: rows that see no code but the learned null condition, bool [B].
        """
        return self.velocity_and_features(maps, times, codes, keep, null)[0]


class VAE(nn.Module):
    """diffusers' ``AutoencoderKL`` under the published prefix ``vae.vae``."""

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        from diffusers import AutoencoderKL

        levels = len(config.vae_widths)
        self.scaling = config.vae_scaling
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.vae_widths,
            layers_per_block=2,
            latent_channels=config.latent_channels,
        )

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents: the posterior's mode, or a draw where a generator is given."""
        posterior = self.vae.encode(images).latent_dist
        return self.scaling * (posterior.mode() if generator is None else posterior.sample(generator))

    def decode(self, maps: Tensor) -> Tensor:
        """Pictures of latents."""
        return self.vae.decode(maps / self.scaling).sample


class KLLatents(nn.Module):
    """A ``KLAutoencoder`` in place of the VAE; its latents come scaled."""

    def __init__(self, config: FlexTokConfig):
        super().__init__()
        self.kl = KLAutoencoder(KLConfig(**config.kl))

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents: the posterior's mode, or a draw where a generator is given."""
        if generator is None:
            return self.kl.encode(images)
        posterior = self.kl.posterior(images)
        noise = noise_for(len(images), posterior.mean.shape[1:], generator, images.device)
        return self.kl.config.scaling_factor * posterior.sample(noise)

    def decode(self, maps: Tensor) -> Tensor:
        """Pictures of latents."""
        return self.kl.decode(maps)


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
        own = path.is_dir() and not _is_published(path / CONFIG_FILE)
        if own or preset is not None or ".safetensors" not in weights.suffixes:
            return super().from_pretrained(name, preset, prefer_ema, **overrides)
        state = without_common_prefix(read_state_dict(weights), ("encoder.module_dict.enc_register_module.registers",))
        config = from_published(_published_tree(path), {key: value.shape for key, value in state.items()})
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
        return self.regularizer.indices(self.encoder(self.maps(images), length).transpose(1, 2))

    @torch.no_grad()
    def decode(
        self,
        tokens: Tensor,
        length: int | Tensor | None = None,
        sampling: FlowSampling | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Tokens to pictures [B, 3, H, W], nominally in [-1, 1] (not clamped).

        Args:
            tokens: int64 [B, n].
            length: how many first tokens to decode; an int64 tensor [B] gives every row its own number, in one batch.
            sampling: steps and guidance; the published recipe by default.
            generator: of the noise, on the CPU; seed 0 by default.
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
        codes = self.regularizer.codes(tokens[:, :length])
        return self.paint(codes, keep, sampling or FlowSampling(), generator, noise)

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
            noise = noise_for(
                len(codes), self.config.map_shape, generator or torch.Generator().manual_seed(0), weight.device
            )
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


def _is_published(config: Path) -> bool:
    """Whether a ``config.json`` is of the published kind, which names classes; one that is absent is in the weights."""
    try:
        return "_target_" in config.read_text(encoding="utf-8")
    except OSError:
        return True


def _published_tree(path: Path) -> dict[str, Any]:
    """The published configuration beside the weights, or else in their header."""
    from safetensors import safe_open

    if path.is_dir() and (path / CONFIG_FILE).exists():
        try:
            tree = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise VistokError(f"'{path / CONFIG_FILE}' is not a JSON object: take the file from its publisher.")
        return tree
    weights = shard_files(weights_file(path) if path.is_dir() else path)[0]
    with safe_open(weights, framework="pt") as file:
        return parse_metadata(file.metadata() or {})
