"""The networks of FlexTok: encoder and decoder transformers, and the autoencoders whose latents they work on.

Parameter names are those of the published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.tokenizers.flextok_config import FlexTokConfig
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
from vistok.tokenizers.flow import noise_for
from vistok.tokenizers.kl import KLAutoencoder, KLConfig


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
