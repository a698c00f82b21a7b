"""Shapes of SEED."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeedConfig:
    """Shape of a SEED tokenizer.

    Attributes:
        tower: vision network: ``eva`` (EVA-CLIP), ``scenes`` (the embedded one), or ``none``, where features are handed
            in.
        image_size: side of pictures.
        tower_width, tower_layers, tower_heads, tower_mlp, tower_patch: shape of the tower.
        width, layers, heads, hidden: of the causal Q-Former: its width, blocks, heads, and that of its feed-forward.
        cross_every: every so many blocks, from the first, attend to the picture.
        num_tokens: queries, each of which becomes a token.
        codebook_size, code_dim: codes K and their width.
        decode_layers, decode_heads: blocks behind the codes.
        image_down: widths of the maps that make each token narrow before the image embedding is read; empty where a
            reversed Q-Former reads it with one query.
        embed_dim: width of the image embedding.
        reconstruct: also holds the blocks that training's second stage rebuilds the Q-Former's output with.
        norm_eps, block_norm_eps: of the Q-Former's layer norms, and of those of the blocks.
        pixels: an embedded VQ tokenizer whose codes a small head paints the picture with; none if None.
        pixel_layers: blocks of that head.
        pixel_steps: forwards in which it decides them.
        pixel_codes, pixel_grid: codes of that tokenizer, and how many stand along a side.
    """

    tower: str = "eva"
    image_size: int = 224
    tower_width: int = 1408
    tower_layers: int = 39
    tower_heads: int = 16
    tower_mlp: int = 6144
    tower_patch: int = 14
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    cross_every: int = 2
    num_tokens: int = 32
    codebook_size: int = 8192
    code_dim: int = 32
    decode_layers: int = 4
    decode_heads: int = 12
    image_down: tuple[int, ...] = (256, 128, 32)
    embed_dim: int = 1024
    reconstruct: bool = True
    norm_eps: float = 1e-12
    block_norm_eps: float = 1e-6
    pixels: str | None = None
    pixel_layers: int = 3
    pixel_steps: int = 8
    pixel_codes: int = 512
    pixel_grid: int = 16


PRESETS: dict[str, SeedConfig] = {"SEED-2": SeedConfig()}
