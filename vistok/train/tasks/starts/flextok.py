"""Where FlexTok starts: every token but the first is drawn to what is in a patch of its own, and begins there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.flextok_config import FlexTokConfig
from vistok.tokenizers.flextok_layers import layer_norm
from vistok.train.tasks.starts.patch_codes import PatchComponents
from vistok.train.tasks.starts.spatial import (
    copy_by_position,
    dithering_order,
    fit_by_least_squares,
    inputs_of,
    whiten_positions,
)


class OrderedComponents(nn.Module):
    """What each token but the first is drawn to: the principal components, each of unit deviation, of the patch of a
    latent map at its place in the dithering order.

    Args:
        config: of the tokenizer, which has at most one more token than patches.
        maps: latents [B, C, h, w] that the components are fitted to.
    """

    def __init__(self, config: FlexTokConfig, maps: Tensor):
        super().__init__()
        self.components = PatchComponents(maps, config.patch, len(config.levels))
        self.register_buffer("order", dithering_order(config.grid)[: config.registers - 1], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns components [B, registers - 1, levels] of latents [B, C, h, w]."""
        values = self.components(maps).flatten(2)[:, :, self.order].transpose(1, 2)
        return values / self.components.deviations


@torch.no_grad()
def start_spatially(tokenizer: FlexTok, anchor: OrderedComponents, maps: Tensor, generator: torch.Generator) -> None:
    """Starts a tokenizer as ``starts.spatial`` says; the first register belongs to no place and begins near zero.

    Args:
        tokenizer: what is started.
        anchor: what its tokens begin as.
        maps: latents [B, C, h, w] of pictures to start the codes and the painter from.
        generator: of the draws that the painter is fitted to.
    """
    encoder, decoder = tokenizer.encoder.module_dict, tokenizer.decoder.module_dict
    config = tokenizer.config
    places = encoder["enc_posemb_module"].posembs[0].flatten(1).T
    own = places[anchor.order]
    encoder["enc_register_module"].registers[1:] = own
    decoder["dec_registers_posemb_module"].posembs[0, 0, :, 1:] = own.T
    for part in (encoder["enc_transformer"], decoder["dec_transformer"]):
        attention = part.blocks[0].attn
        whiten_positions(attention.wq.weight, places)
        copy_by_position(*(each.weight for each in (attention.wq, attention.wk, attention.wv, attention.proj)))
    states = inputs_of(encoder["enc_to_latents"], lambda: tokenizer.encoder(maps))
    codes = encoder["enc_to_latents"].proj
    fit_by_least_squares(codes, states.flatten(0, 1), F.pad(anchor(maps), (0, 0, 1, 0)).flatten(0, 1))
    shrunk = codes(states[:, 1:]).flatten(0, 1).std(0)  # by a poor fit; with unit deviation all levels are in use
    codes.weight.div_(shrunk[:, None])
    codes.bias.div_(shrunk)
    opened = decoder["dec_transformer"].blocks[0].adaLN_modulation[1].bias.view(config.groups, 6, -1)
    opened[:, 0] = 1.0  # the gate of the first attention
    draws = tokenizer.draw(len(maps), generator)
    draws = draws._replace(keep=torch.full_like(draws.keep, config.registers), null=torch.zeros_like(draws.null))
    head = decoder["dec_to_patches"]
    states = layer_norm(inputs_of(head, lambda: tokenizer.training_pass(maps, draws)))
    target = rearrange(draws.noise - maps, "b c (h p) (w q) -> (b h w) (p q c)", p=config.patch, q=config.patch)
    fit_by_least_squares(head.proj, states.flatten(0, 1), target)
