"""Image tokenizers: pixels to tokens and back. Names load on first use."""

from __future__ import annotations

from vistok.registry import lazy_attributes

_EXPORTS = {
    "vistok.tokenizers.flextok": ("FlexTok",),
    "vistok.tokenizers.flow": ("FlowSampling",),
    "vistok.tokenizers.interface": ("Capabilities", "Tokenizer"),
    "vistok.tokenizers.kl": ("KLAutoencoder",),
    "vistok.tokenizers.load": ("TOKENIZERS", "LoadedTokenizer", "load_tokenizer"),
    "vistok.tokenizers.maskgit_vqgan": ("MaskGITVQGAN",),
    "vistok.tokenizers.seed": ("Seed",),
    "vistok.tokenizers.titok": ("TiTok",),
    "vistok.tokenizers.tokenflow": ("TokenFlow",),
    "vistok.tokenizers.unclip": ("UnClip",),
    "vistok.tokenizers.vq": ("VQTokenizer",),
}
_TABLE = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_TABLE)
__getattr__, __dir__ = lazy_attributes(__name__, _TABLE)
