"""A KL autoencoder that starts where a trained VQ tokenizer of the same blocks stands.

The blocks are taken over. The VQ's normalised latents are projected on their principal directions, whitened; the maps
from the encoder's features to these values, and from them to what the decoder expects, are fitted by least squares and
folded into the two convolutions beside the latents.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.tokenizers.vq import VQTokenizer

FIRST_LOGVAR = -5.5  # of the posterior, a deviation of 0.064 where latents have 1
_MID = {"0": "block_1", "1": "attn_1", "2": "block_2"}


def _renamed(key: str, levels: int) -> str | None:
    """The KL name of a VQ parameter; None for those beside the latents."""
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.(\d)\.(.+)", key):
        return f"{match[1]}.mid.{_MID[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(.+)", key):
        rest = re.sub(r"^res\.", "block.", match[3])
        if match[1] == "encoder":
            return f"encoder.down.{match[2]}.{rest}"
        return f"decoder.up.{levels - 1 - int(match[2])}.{rest}"
    kept = r"encoder\.(conv_in|norm_out)\..+|decoder\.(norm_out|conv_out)\..+"
    return key if re.fullmatch(kept, key) else None


def _affine(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares: weight [q, p] and bias [q] of y [N, q] as an affine map of x [N, p]."""
    ones = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(ones, y).solution.T
    return solution[:, :-1], solution[:, -1]


@torch.no_grad()
def autoencoder_from_vq(vq: VQTokenizer, z_channels: int, images: Tensor) -> KLAutoencoder:
    """Returns the autoencoder, ready to be trained on.

    Args:
        vq: a trained tokenizer.
        z_channels: width D of a latent, at most the VQ's codebook width.
        images: pictures [B, 3, H, W] in [-1, 1] from which the maps are fitted.
    """
    shape, last = vq.config, len(vq.config.channel_mult) - 1
    model = KLAutoencoder(
        KLConfig(shape.channels, shape.channel_mult, shape.res_blocks, z_channels, (last,), (last,), 1.0)
    )
    renamed = {_renamed(key, last + 1): value for key, value in vq.state_dict().items()}
    renamed.pop(None)
    fresh = {k for k in model.state_dict() if re.match(r"(post_)?quant_conv|encoder\.conv_out|decoder\.conv_in", k)}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert set(missing) == fresh and not unexpected

    raw = vq.latents(images).movedim(1, -1).flatten(0, 2)
    unit = F.normalize(raw, dim=-1)
    values, vectors = torch.linalg.eigh(torch.cov(unit.T))
    z = (unit - unit.mean(0)) @ vectors[:, -z_channels:] / values[-z_channels:].sqrt()
    weight, bias = _affine(raw, z)
    final, quant = vq.encoder.conv_out, vq.quant_conv
    to_raw, shift = quant.weight.flatten(1), quant.bias
    model.encoder.conv_out.weight.zero_()
    model.encoder.conv_out.weight[:z_channels] = torch.einsum("zr,ri,ihkl->zhkl", weight, to_raw, final.weight)
    model.encoder.conv_out.bias[:z_channels] = weight @ (to_raw @ final.bias + shift) + bias
    model.encoder.conv_out.bias[z_channels:] = FIRST_LOGVAR

    weight, bias = _affine(z, unit)
    first, post = vq.decoder.conv_in, vq.post_quant_conv
    to_width = post.weight.flatten(1)
    model.decoder.conv_in.weight.copy_(torch.einsum("oikl,iu,uz->ozkl", first.weight, to_width, weight))
    inside = to_width @ bias + post.bias
    model.decoder.conv_in.bias.copy_(first.bias + torch.einsum("oikl,i->o", first.weight, inside))
    for identity in (model.quant_conv, model.post_quant_conv):
        torch.nn.init.eye_(identity.weight.flatten(1))
        identity.bias.zero_()
    return model
