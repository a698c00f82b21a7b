"""What generators of masked codes share: embeddings of visible and hidden codes, the head, and how families load.

Names of parameters are those of ENAT (arXiv 2411.06959), whose head and embeddings MaskGIT (arXiv 2202.04200) has too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.interface import LoadRequest, TokenSpec
from vistok.ops import apply_rope, attention
from vistok.ops.rope import RotaryModule, rope_2d
from vistok.zoo import resolve
from vistok.zoo.pretrained import Pretrained

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


@dataclass(frozen=True)
class MaskedConfig:
    """What the shapes of masked generators share.

    Attributes:
        grid: codes along a side.
        codebook_size: codes V; the mask is the id V.
        num_classes: classes; one more row of the table is no class.
        caption_dim: width of the text features that it reads in the place of classes; 0 of a model of classes.
        embed_dim, num_heads, mlp_ratio: of the blocks.
        rope_base: of a rotary encoding of rows and columns in every attention, by which a small network reads its
            neighbours soon; 0 is none, as published.
        modulation_rank: dimensions of the conditions from which each block's modulations are made, few of which are
            enough for few classes; 0 is all, as published.
        dropout: of the embedding, in training.
        class_dropout_prob: share of training samples without a class.
    """

    grid: int = 16
    codebook_size: int = 1024
    num_classes: int = 1000
    caption_dim: int = 0
    embed_dim: int = 768
    num_heads: int = 12
    mlp_ratio: float = 4.0
    rope_base: float = 0.0
    modulation_rank: int = 0
    dropout: float = 0.1
    class_dropout_prob: float = 0.1

    @property
    def seq_len(self) -> int:
        """Codes of a picture, L."""
        return self.grid**2


class CodeEmbedding(nn.Module):
    """Codes and the mask [B, L] to features, by their value and their place."""

    def __init__(self, config: MaskedConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.codebook_size + 1, config.embed_dim)
        self.position_embeddings = nn.Embedding(config.seq_len, config.embed_dim)
        self.LayerNorm = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.dropout = config.dropout

    def forward(self, codes: Tensor) -> Tensor:
        h = self.LayerNorm(self.word_embeddings(codes) + self.position_embeddings.weight)
        return F.dropout(h, self.dropout, self.training)


class ClassEmbedding(nn.Module):
    """Classes [B] to conditions [B, E]; the last row stands for no class."""

    def __init__(self, config: MaskedConfig):
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.embed_dim)
        self.drop = config.class_dropout_prob

    def forward(self, labels: Tensor) -> Tensor:
        if self.training and self.drop > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.drop
            labels = labels.masked_fill(dropped, self.embedding_table.num_embeddings - 1)
        return self.embedding_table(labels)


class CaptionEmbedding(nn.Module):
    """Mean text features [B, caption_dim] to conditions [B, E]; ``uncond_embedding`` stands for no caption."""

    def __init__(self, config: MaskedConfig):
        super().__init__()
        self.cap_proj = nn.Linear(config.caption_dim, config.embed_dim)
        self.uncond_embedding = nn.Parameter(torch.zeros(config.caption_dim))
        self.drop = config.class_dropout_prob

    def forward(self, features: Tensor) -> Tensor:
        if self.training and self.drop > 0:
            dropped = torch.rand(len(features), 1, device=features.device) < self.drop
            features = torch.where(dropped, self.uncond_embedding, features)
        return self.cap_proj(features)


class CodeHead(nn.Module):
    """Features to logits of codes, by the table of the embedding, which learns from them as in MaskGIT's code.

    ENAT's code lets nothing from here into the table, which in a small network stays near its random start.
    """

    def __init__(self, config: MaskedConfig):
        super().__init__()
        self.fc = nn.Linear(config.embed_dim, config.embed_dim)
        self.ln = nn.LayerNorm(config.embed_dim, eps=1e-5)
        self.bias = nn.Parameter(torch.zeros(1, 1, config.codebook_size + 1))

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        h = self.ln(F.gelu(self.fc(features)))
        return F.linear(h, table, self.bias.flatten())[..., :-1]  # the mask is nothing to predict


class Mlp(nn.Module):
    """Two linear maps around a GELU (tanh)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def attend(q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None, context_rope: Tensor | None) -> Tensor:
    """Returns the attention of queries over keys and values, [B, n, H * D].

    Args:
        q: [B, n, H, D].
        k, v: [B, m, H, D].
        rope: of the queries, [n, P, 2] or [B, n, P, 2]; None turns nothing.
        context_rope: of the keys.
    """
    if rope is not None and context_rope is not None:
        q, k = apply_rope(q, rope), apply_rope(k, context_rope)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attention(q, k, v).transpose(1, 2).flatten(2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns normalised features [B, n, E], scaled and shifted by conditions [B, 1, E]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def waves(grid: int, width: int) -> Tensor:
    """Returns sines and cosines of rows and columns, [grid ** 2, width], in rows of norm one.

    Waves are 4 to 4 * grid places long; what ``width`` has beyond a multiple of four is zero.
    """
    count = width // 4
    frequencies = math.pi / 2 * grid ** -(torch.arange(count) / max(count - 1, 1))
    angles = torch.arange(grid)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], 1) / (2 * count) ** 0.5
    table = torch.cat([one.repeat_interleave(grid, 0), one.repeat(grid, 1)], 1)
    return F.pad(table, (0, width - 4 * count))


class MaskedTransformer(Pretrained, RotaryModule):
    """Base of the networks that predict hidden codes, given visible ones and a class or a caption.

    Codes are int64 [B, L] in raster order; ``mask_id`` hides one. Values of a condition are classes [B], or mean text
    features [B, caption_dim]. A subclass says ``features``.

    Args:
        config: its shape.
    """

    def __init__(self, config: MaskedConfig):
        super().__init__()
        self.config = config
        self.x_embedder = CodeEmbedding(config)
        self.y_embedder = CaptionEmbedding(config) if config.caption_dim else ClassEmbedding(config)
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-5)
        self.mlm_layer = CodeHead(config)
        head_dim, base = config.embed_dim // config.num_heads, config.rope_base
        table = rope_2d(config.grid, config.grid, head_dim, base) if base else None
        self.register_buffer("rope", table, persistent=False)

    def initialise(self) -> None:
        """Draw new weights: linear maps xavier, rows of tables of norm one, and modulations zero, so that blocks begin
        as nothing. Places begin as waves, by which a code finds its neighbours at once."""
        closed = {block.adaLN_modulation[-1].weight for block in self.blocks}
        for name, parameter in self.named_parameters():
            if parameter in closed or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "position_embeddings" in name:
                parameter.data.copy_(waves(self.config.grid, parameter.shape[1]))
            elif "word_embeddings" in name or "embedding_table" in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)

    @property
    def tokens(self) -> TokenSpec:
        """The codes that it draws."""
        return TokenSpec("codes", self.config.codebook_size, self.config.seq_len)

    @property
    def conditional_on(self) -> str:
        """``class`` or ``text``."""
        return "text" if self.config.caption_dim else "class"

    @property
    def classes(self) -> int:
        """How many classes it knows; 0 of a text-conditional model."""
        return 0 if self.config.caption_dim else self.config.num_classes

    @property
    def text_width(self) -> int:
        """Width of the text features that it reads; 0 of a class-conditional model."""
        return self.config.caption_dim

    @property
    def mask_id(self) -> int:
        """The id of a hidden code."""
        return self.config.codebook_size

    def null_condition(self, batch: int) -> Tensor:
        """The values that stand for nothing asked for: int64 [B], or [B, caption_dim]."""
        if self.config.caption_dim:
            return self.y_embedder.uncond_embedding.expand(batch, -1)
        return torch.full((batch,), self.config.num_classes, device=self.norm.weight.device)

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns codes [B, L] as the tokenizer decodes them: [B, h, w]."""
        return drawn.unflatten(1, (-1, self.config.grid))

    def own_tokens(self, tokens: Tensor) -> Tensor:
        """Returns codes [B, h, w] of the tokenizer as codes [B, L]."""
        return tokens.flatten(1)

    def features(self, codes: Tensor, values: Tensor, state: Any | None) -> tuple[Tensor, Any | None]:
        """Returns features [B, L, E] of all codes, before the last norm, and what the next step is told of this one."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """Returns logits [B, L, V] of what ``features`` returned."""
        return self.mlm_layer(self.norm(features), self.x_embedder.word_embeddings.weight)

    def predict(self, codes: Tensor, values: Tensor, state: Any | None = None) -> tuple[Tensor, Any | None]:
        """Returns logits and what the next step is told of this one; see ``vistok.models.interface``."""
        features, state = self.features(codes, values, state)
        return self.logits(features), state

    def forward(self, codes: Tensor, values: Tensor, state: Any | None = None) -> Tensor:
        """Returns logits [B, L, V]; see ``predict``."""
        return self.predict(codes, values, state)[0]


class MaskedFamily:
    """How generators of masked codes load; see ``vistok.models.interface.GeneratorFamily``.

    Args:
        name: of the family.
        kind: its network.
    """

    interface = "masked"
    plain = "masked"
    options = frozenset({"size", "preset", "text_encoder"})

    def __init__(self, name: str, kind: type[MaskedTransformer]):
        self.name, self.kind = name, kind

    def load(self, request: LoadRequest) -> tuple[MaskedTransformer, Tokenizer]:
        """Returns the generator, by its averaged weights, and its tokenizer."""
        from vistok.tokenizers.load import load_tokenizer
        from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN

        resolve(request.source)  # a generator that is not there is told first
        source = request.tokenizer_source
        path = resolve(source)
        tokenizer = load_tokenizer(str(source)).tokenizer if path.is_dir() else None
        if tokenizer is None:
            tokenizer = MaskGITVQGAN.from_pretrained(path, "MaskGIT-VQGAN")
        can, overrides = tokenizer.capabilities, {}
        if request.size is not None:
            if request.size < can.multiple or request.size % can.multiple:
                raise VistokError(f"--size {request.size} is not a multiple of {can.multiple}, the pixels of one code.")
            overrides["grid"] = request.size // can.multiple
        model = self.kind.from_pretrained(request.source, request.preset, prefer_ema=True, **overrides)
        if overrides and overrides["grid"] != model.config.grid:
            raise request.wrong_size(model.config.grid * can.multiple)
        if (model.tokens.size, "grid") != (can.codebook_size, can.layout):
            raise VistokError(
                f"the generator knows {model.tokens.size} codes in a grid but the tokenizer has {can.codebook_size} in "
                f"a {can.layout}: name the tokenizer that belongs to it with --tokenizer."
            )
        return model, tokenizer
