"""The VQ and KL tokenizers as ``VQModel`` and ``AutoencoderKL`` of diffusers, and back: the same functions under other
names.

diffusers compares latents with codes by their distance, without normalising either. Codes on the unit sphere make that
the cosine comparison of LlamaGen's tokenizer, so its codebook is written down normalised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.zoo.checkpoint import load_strict

if TYPE_CHECKING:
    from vistok.tokenizers.kl import KLAutoencoder
    from vistok.tokenizers.vq import VQTokenizer

ENCODER = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")  # without and with attention behind each block
DECODER = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


# Parts of our keys, level and block numbers aside, and those of diffusers.
def _parts(down: str, up: str, block: str, middle: tuple[str, str, str]) -> tuple[tuple[str, str], ...]:
    """Our names of the levels of the encoder and of the decoder, of the blocks in them, and of the middle's three."""
    levels = [
        (rf"{half}\.{ours}\.(\d+)\.{part}\.", rf"{half}.{side}_blocks.\1.{theirs}.")
        for half, ours, side in (("encoder", down, "down"), ("decoder", up, "up"))
        for part, theirs in ((block, "resnets"), ("attn", "attentions"), (f"{side}sample", f"{side}samplers.0"))
    ]
    of_middle = ("resnets.0", "attentions.0", "resnets.1")
    return (*levels, *((rf"mid\.{ours}\.", f"mid_block.{part}.") for ours, part in zip(middle, of_middle, strict=True)))


VQ_PARTS = _parts("conv_blocks", "conv_blocks", "res", ("0", "1", "2"))
KL_PARTS = _parts("down", "up", "block", ("block_1", "attn_1", "block_2"))
LEAVES = (
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)


def _renamed(key: str, parts: tuple[tuple[str, str], ...], levels: int) -> str:
    """The key of diffusers of one of ours."""
    for ours, theirs in (*parts, *LEAVES):
        key = re.sub(ours, theirs, key)
    if parts is KL_PARTS:  # counts the decoder's levels from the highest resolution, diffusers in running order
        key = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", key)
    return key


def _with_shapes_of(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as linear layers where the other side has these, and as 1x1 convolutions where it has those."""
    return {
        key: value.reshape(other[key].shape) if key in other and value.numel() == other[key].numel() else value
        for key, value in state.items()
    }


def _shape(config: Any, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> dict[str, Any]:
    """Entries of a configuration of diffusers that both kinds have."""
    levels = len(config.channel_mult)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": tuple(config.channels * m for m in config.channel_mult),
        "layers_per_block": config.res_blocks,
        "latent_channels": config.z_channels,
        "down_block_types": tuple(ENCODER[i in encoder] for i in range(levels)),
        "up_block_types": tuple(DECODER[i in decoder] for i in reversed(range(levels))),
        "act_fn": "silu",
        "norm_num_groups": 32,
    }


def vq_to_diffusers(tokenizer: VQTokenizer) -> Any:
    """Returns a VQ tokenizer as a ``diffusers.VQModel``, which gives the same codes and the same pictures."""
    from diffusers import VQModel

    config, last = tokenizer.config, len(tokenizer.config.channel_mult) - 1
    shape = _shape(config, (last,), (last,))
    model = VQModel(**shape, num_vq_embeddings=config.codebook_size, vq_embed_dim=config.codebook_dim)
    state = {_renamed(key, VQ_PARTS, last + 1): value for key, value in tokenizer.state_dict().items()}
    state.pop("quantize.codebook_used", None)  # counts usage
    if config.l2_norm:
        state["quantize.embedding.weight"] = F.normalize(state["quantize.embedding.weight"], dim=-1)
    load_strict(model, _with_shapes_of(state, model.state_dict()), "VQModel")
    return model.eval()


def vq_from_diffusers(model: Any) -> VQTokenizer:
    """Returns a ``diffusers.VQModel`` as a VQ tokenizer.

    Raises:
        VistokError: its network is another one.
    """
    from vistok.tokenizers.vq import VQConfig, VQTokenizer

    theirs, levels = model.config, len(model.config.block_out_channels)
    only_last = tuple(i == levels - 1 for i in range(levels))
    _check(theirs, only_last, only_last, {"norm_type": "group"})
    config = VQConfig(
        codebook_size=theirs.num_vq_embeddings,
        codebook_dim=theirs.vq_embed_dim or theirs.latent_channels,
        l2_norm=False,
        channels=theirs.block_out_channels[0],
        channel_mult=_multiples(theirs.block_out_channels),
        res_blocks=theirs.layers_per_block,
        z_channels=theirs.latent_channels,
    )
    return _filled(VQTokenizer(config), model, VQ_PARTS, levels)


def kl_to_diffusers(tokenizer: KLAutoencoder) -> Any:
    """Returns a KL autoencoder as a ``diffusers.AutoencoderKL``, whose latents are not scaled yet, as diffusers has it:
    its ``scaling_factor`` says by what."""
    from diffusers import AutoencoderKL

    config = tokenizer.config
    levels = len(config.channel_mult)
    shape = _shape(config, config.encoder_attention, config.decoder_attention)
    model = AutoencoderKL(**shape, scaling_factor=config.scaling_factor)
    state = {_renamed(key, KL_PARTS, levels): value for key, value in tokenizer.state_dict().items()}
    load_strict(model, _with_shapes_of(state, model.state_dict()), "AutoencoderKL")
    return model.eval()


def kl_from_diffusers(model: Any) -> KLAutoencoder:
    """Returns a ``diffusers.AutoencoderKL`` as a KL autoencoder.

    Raises:
        VistokError: its network is another one.
    """
    from vistok.tokenizers.kl import KLAutoencoder, KLConfig

    theirs, levels = model.config, len(model.config.block_out_channels)
    wanted = {"mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True}
    wanted |= {"shift_factor": None, "latents_mean": None, "latents_std": None}
    _check(theirs, None, None, wanted)
    encoder = tuple(i for i, kind in enumerate(theirs.down_block_types) if kind == ENCODER[1])
    decoder = tuple(levels - 1 - i for i, kind in enumerate(theirs.up_block_types) if kind == DECODER[1])
    config = KLConfig(
        channels=theirs.block_out_channels[0],
        channel_mult=_multiples(theirs.block_out_channels),
        res_blocks=theirs.layers_per_block,
        z_channels=theirs.latent_channels,
        encoder_attention=encoder,
        decoder_attention=tuple(sorted(decoder)),
        scaling_factor=theirs.scaling_factor,
    )
    return _filled(KLAutoencoder(config), model, KL_PARTS, levels)


def _filled(tokenizer: Any, model: Any, parts: tuple[tuple[str, str], ...], levels: int) -> Any:
    own = {key: value for key, value in tokenizer.state_dict().items() if not key.endswith("codebook_used")}
    names = {_renamed(key, parts, levels): key for key in own}
    state = {names.get(key, key): value for key, value in model.state_dict().items()}
    load_strict(
        tokenizer, _with_shapes_of(state, own), type(tokenizer).__name__, getattr(tokenizer, "dropped_keys", ())
    )
    return tokenizer.eval()


def _multiples(channels: tuple[int, ...]) -> tuple[int, ...]:
    if any(width % channels[0] for width in channels):
        raise VistokError(f"the widths {list(channels)} are no multiples of the first: there is no tokenizer like it.")
    return tuple(width // channels[0] for width in channels)


def _check(
    theirs: Any, encoder: tuple[bool, ...] | None, decoder: tuple[bool, ...] | None, wanted: dict[str, Any]
) -> None:
    """Refuse a configuration of diffusers that describes another network.

    Args:
        theirs: the configuration.
        encoder, decoder: which levels must have attention, the decoder's counted as the encoder's; any if None.
        wanted: values that entries must have, where they are there.
    """
    wanted = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_num_groups": 32} | wanted
    strange = [f"{key} {theirs[key]}" for key, value in wanted.items() if key in theirs and theirs[key] != value]
    levels = (("down_block_types", ENCODER, encoder), ("up_block_types", DECODER, decoder and decoder[::-1]))
    for key, kinds, attention in levels:
        found = tuple(theirs[key])
        fits = found == tuple(kinds[i] for i in attention) if attention is not None else set(found) <= set(kinds)
        if not fits:
            strange.append(f"{key} {', '.join(found)}")
    if strange:
        raise VistokError(f"this model of diffusers is no network that vistok has: it says {'; '.join(strange)}.")
