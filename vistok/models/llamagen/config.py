"""Shapes of LlamaGens, and the published ones by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaGenConfig:
    """Shape of a LlamaGen, under the names of the published configuration.

    Attributes:
        dim, n_layer, n_head, n_kv_head: widths and depths; ``n_kv_head`` None means ``n_head``.
        multiple_of, ffn_dim_multiplier: rounding and scaling of the feed-forward width.
        rope_base, norm_eps, initializer_range: constants.
        vocab_size: image codes.
        block_size: image tokens; a square number in a grid.
        layout: ``grid`` in raster order with the published 2D positions, or ``sequence`` with 1D positions, for
            tokenizers whose tokens are ordered from coarse to fine.
        places: row and column of each token of a sequence, where tokens have places; positions are then 2D as in a
            grid.
        model_type: ``c2i`` (class to image) or ``t2i`` (text to image).
        cls_token_num: length T of the conditioning prefix.
        num_classes: classes of ``c2i``; one more row is the null class.
        caption_dim: width of the text features of ``t2i``.
        class_dropout_prob: share of training samples whose condition is replaced by the null condition.
        token_dropout_p, resid_dropout_p, ffn_dropout_p, attn_dropout_p, drop_path_rate: regularisation in training.
    """

    dim: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    vocab_size: int = 16384
    block_size: int = 256
    model_type: str = "c2i"
    cls_token_num: int = 1
    num_classes: int = 1000
    caption_dim: int = 2048
    class_dropout_prob: float = 0.1
    token_dropout_p: float = 0.1
    resid_dropout_p: float = 0.1
    ffn_dropout_p: float = 0.1
    attn_dropout_p: float = 0.0
    drop_path_rate: float = 0.0
    layout: str = "grid"
    places: tuple[tuple[float, float], ...] = ()

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.n_head

    @property
    def grid(self) -> int:
        """Image tokens in a row; a sequence is one row."""
        return self.block_size if self.layout == "sequence" else round(self.block_size**0.5)

    @property
    def hidden_dim(self) -> int:
        """Width of the SwiGLU feed-forward."""
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of)


PRESETS: dict[str, LlamaGenConfig] = {
    "GPT-B": LlamaGenConfig(dim=768, n_layer=12, n_head=12),
    "GPT-L": LlamaGenConfig(dim=1024, n_layer=24, n_head=16),
    "GPT-XL": LlamaGenConfig(dim=1280, n_layer=36, n_head=20),
    "GPT-XXL": LlamaGenConfig(dim=1536, n_layer=48, n_head=24),
    "GPT-3B": LlamaGenConfig(dim=3200, n_layer=24, n_head=32),
    "GPT-1B": LlamaGenConfig(dim=2048, n_layer=22, n_head=32),
    "GPT-XXXL": LlamaGenConfig(dim=2560, n_layer=48, n_head=40),
    "GPT-7B": LlamaGenConfig(dim=4096, n_layer=32, n_head=32),
}
