"""The VQGAN of taming-transformers (Esser et al., arXiv 2012.09841) as Chameleon, Anole and Lumina-mGPT use it.

LlamaGen's tokenizer is this network with attention at the lowest resolution and an l2-normalised codebook; here there
is attention in the middle only, and codes are compared as they are. Its file is ``tokenizer/vqgan.ckpt`` beside the
original weights of Chameleon; the conversions of transformers leave the decoder out.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.vq import VQConfig, VQTokenizer
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict, read_state_dict

CHAMELEON = VQConfig(codebook_size=8192, codebook_dim=256, l2_norm=False)
_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


class TamingVQGAN(VQTokenizer):
    """The tokenizer of Chameleon's pictures: a grid of codes, 16 pixels each."""

    def __init__(self, config: VQConfig | None = None):
        super().__init__(config or CHAMELEON)
        for level in (*self.encoder.conv_blocks, *self.decoder.conv_blocks):
            level.attn = nn.ModuleList()

    @classmethod
    def from_checkpoint(cls, name: str | Path, config: VQConfig | None = None) -> TamingVQGAN:
        """Load ``vqgan.ckpt``; the discriminator and the perceptual loss in it are left out.

        Args:
            name: its path, or a hub id ``owner/name:file``.
            config: its shape; the published one if None.

        Raises:
            VistokError: the name leads nowhere, or the weights are not those of this network.
        """
        path = resolve(name)
        if path.is_dir():
            raise VistokError(f"'{name}' is a folder: name the file of a VQGAN, such as 'tokenizer/vqgan.ckpt'.")
        model = cls(config)
        levels = len(model.config.channel_mult)
        state = {k: v for k, v in read_state_dict(path).items() if not k.startswith("loss.")}
        state = {_renamed(key, levels): value for key, value in state.items()}
        own = {key: value for key, value in model.state_dict().items() if key.endswith("codebook_used")}
        load_strict(model, own | state, "taming VQGAN")
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, 16h, 16w], nominally in [-1, 1] (not clamped)."""
        return super().decode(tokens, length)


def _renamed(key: str, levels: int) -> str:
    """The name of a published weight here: its upward levels are numbered from the finest."""
    coder, _, rest = key.partition(".")
    if coder not in ("encoder", "decoder"):
        return key
    rest = re.sub(r"^mid\.(\w+)", lambda found: f"mid.{_MIDDLE.get(found[1], found[1])}", rest)
    rest = re.sub(r"^down\.", "conv_blocks.", rest)
    rest = re.sub(r"^up\.(\d+)", lambda found: f"conv_blocks.{levels - 1 - int(found[1])}", rest)
    return f"{coder}." + re.sub(r"^(conv_blocks\.\d+)\.block\.", r"\1.res.", rest)
