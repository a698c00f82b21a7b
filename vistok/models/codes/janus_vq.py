"""Janus (arXiv 2410.13848) with an embedded tokenizer: LlamaGen's VQ network is Janus's too, under other names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from vistok.tokenizers.vq import VQConfig, VQTokenizer

TOKENIZER_PREFIX = "model.vqmodel."  # of Janus's weights that are its tokenizer's
_CODEBOOK = "quantize.embedding.weight"
_MIDDLE = ("block_1", "attn_1", "block_2")


def janus_vq_config(config: VQConfig, width: int, side: int) -> Any:
    """Returns the configuration of a tokenizer as Janus has it.

    Args:
        config: the tokenizer's own.
        width: of the language model that draws its codes.
        side: codes of a row.
    """
    from transformers import JanusVQVAEConfig

    return JanusVQVAEConfig(
        embed_dim=config.codebook_dim,
        num_embeddings=config.codebook_size,
        latent_channels=config.z_channels,
        base_channels=config.channels,
        channel_multiplier=list(config.channel_mult),
        num_res_blocks=config.res_blocks,
        num_patches=side,
        projection_dim=width,
        image_token_embed_dim=width,
    )


def janus_vq_state(vq: VQTokenizer) -> dict[str, Tensor]:
    """Returns the weights of a tokenizer under Janus's names.

    The class of transformers compares latents with codes as they are, where LlamaGen compares them by angle: with codes
    of length one that is the same.
    """
    state = {_renamed(key): value for key, value in vq.state_dict().items() if "codebook_used" not in key}
    if vq.config.l2_norm:
        state[_CODEBOOK] = F.normalize(state[_CODEBOOK], dim=-1)
    return state


def _renamed(key: str) -> str:
    coder, _, rest = key.partition(".")
    if coder not in ("encoder", "decoder"):
        return key
    rest = re.sub(r"^mid\.(\d)", lambda found: f"mid.{_MIDDLE[int(found[1])]}", rest)
    stage = "down" if coder == "encoder" else "up"
    rest = re.sub(r"^conv_blocks\.(\d+)\.res\.", rf"{stage}.\1.block.", rest)
    return f"{coder}.{re.sub(r'^conv_blocks', stage, rest)}"
