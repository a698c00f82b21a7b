"""Where One-D-Piece starts: every latent token is drawn to the point of a patch of its own, and begins there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.train.tasks.starts.patch_codes import PatchCodes, spherical_kmeans
from vistok.train.tasks.starts.spatial import copy_by_position, dithering_order, fit_by_least_squares, inputs_of

PLACE, SHARPNESS = 1.0, 1.5  # of ``start_spatially``: scale of positions, and of what the first attention compares


class OrderedPatches(nn.Module):
    """What each token is drawn to: the point of the patch at its place in the dithering order.

    Args:
        config: of the tokenizer, which has at most as many tokens as patches.
        images: pictures [B, 3, H, W] in [-1, 1] that the points are fitted to.

    Raises:
        VistokError: codes are not normalised, or the grid's side is no power of two.
    """

    def __init__(self, config: TiTokConfig, images: Tensor):
        super().__init__()
        if not config.l2_norm:
            raise VistokError("tokens are drawn to points of a sphere: set model.l2_norm, or leave data.anchor out.")
        self.points = PatchCodes(images, config.patch_size, config.token_size)
        self.register_buffer("order", dithering_order(config.grid)[: config.num_tokens], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns points [B, C, N] of pictures [B, 3, H, W]."""
        return self.points(images).flatten(2)[:, :, self.order]


@torch.no_grad()
def start_spatially(tokenizer: TiTok, anchor: OrderedPatches, images: Tensor, generator: torch.Generator) -> None:
    """Starts a tokenizer as ``vistok.train.tasks.starts.spatial`` says.

    Args:
        tokenizer: one that paints pixels from normalised VQ codes.
        anchor: what its tokens begin as.
        images: pictures [B, 3, H, W] in [-1, 1] to start the codes from.
        generator: draws the first codebook.
    """
    config = tokenizer.config
    for part in (tokenizer.encoder, tokenizer.decoder):
        width = part.positional_embedding.shape[1]
        places = PLACE * torch.randn(config.grid**2, width // 2)  # none resembles another
        places = F.pad(places - places.mean(1, keepdim=True), (0, width // 2))  # the other half is the picture's
        part.positional_embedding[1:] = places
        part.latent_token_positional_embedding.copy_(places[anchor.order])
        attention = part.transformer[0].attn
        query, key, value = attention.in_proj_weight.chunk(3)
        copy_by_position(query.mul_(SHARPNESS), key, value, attention.out_proj.weight)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    points = anchor(images).transpose(1, 2).flatten(0, 1)
    states = inputs_of(encoder.conv_out, lambda: tokenizer.latents(images)).flatten(2).transpose(1, 2)
    fit_by_least_squares(encoder.conv_out, states.flatten(0, 1), points)
    tokenizer.quantize.embedding.weight.copy_(spherical_kmeans(points, config.codebook_size, generator))

    nn.init.dirac_(decoder.conv_out.weight)
    nn.init.zeros_(decoder.conv_out.bias)
    states = inputs_of(decoder.ffn[0], lambda: tokenizer(images)).flatten(2).transpose(1, 2)
    pixels = rearrange(images / 2 + 0.5, "b c (h p) (w q) -> (b h w) (p q c)", p=config.patch_size, q=config.patch_size)
    fit_by_least_squares(decoder.ffn[0], states.flatten(0, 1), pixels)
