"""TiTok's generator: MaskGIT over 1D tokens by a BERT (Yu et al., arXiv 2406.07550), and that of One-D-Piece (arXiv
2501.10064), which is the same network.

A class token stands before the codes. Parameter names are those of the published files: a BertModel of transformers and
its head under ``model.``. The generator of 128 tokens is another network (a U-ViT) and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.interface import LoadRequest, TokenSpec
from vistok.zoo import resolve
from vistok.zoo.pretrained import Pretrained, read_entries

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


@dataclass(frozen=True)
class TiTokGeneratorConfig:
    """Shape of a generator, under the names of the published ``model.generator``.

    Attributes:
        image_seq_len: tokens N of a picture.
        codebook_size: codes K; the mask is the id K, and classes come behind it.
        condition_num_classes: classes; one more id is no class.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the BERT.
    """

    image_seq_len: int = 32
    codebook_size: int = 4096
    condition_num_classes: int = 1000
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072


PRESETS: dict[str, TiTokGeneratorConfig] = {
    "MaskGIT-TiTok-L-32": TiTokGeneratorConfig(32),
    "MaskGIT-TiTok-B-64": TiTokGeneratorConfig(64),
    "MaskGIT-One-D-Piece-256": TiTokGeneratorConfig(256),
}


def from_published(entries: dict[str, Any], path: Path) -> TiTokGeneratorConfig:
    """The shape in a published ``config.json``.

    Raises:
        VistokError: it is that of another network.
    """
    try:
        model = entries["model"]
        generator, codes = model["generator"], model["vq_model"]["codebook_size"]
        if generator.get("model_type", "ViT") != "ViT":
            raise VistokError(
                f"'{path}' is that of a {generator['model_type']}, as the generator of TiTok-S-128 is: of TiTok's "
                "generators only the BERTs load, such as that of TiTok-L-32."
            )
        names = ("image_seq_len", "condition_num_classes", "hidden_size", "num_hidden_layers", "num_attention_heads")
        shape = {name: int(generator[name]) for name in (*names, "intermediate_size")}
        return TiTokGeneratorConfig(codebook_size=int(codes), **shape)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, VistokError):
            raise
        raise VistokError(f"'{path}' is not that of a generator of TiTok's tokens ({error}).") from error


class TiTokGenerator(Pretrained, nn.Module):
    """The published class-conditional generator.

    Args:
        config: its shape.
    """

    family = "titok-maskgit"
    conditional_on = "class"
    text_width = 0
    config_class = TiTokGeneratorConfig
    presets: ClassVar = PRESETS
    dropped_keys = (r"model\.embeddings\.position_ids",)

    def __init__(self, config: TiTokGeneratorConfig):
        super().__init__()
        from transformers import BertConfig, BertModel

        self.config = config
        shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        self.model = BertModel(
            BertConfig(
                vocab_size=config.codebook_size + config.condition_num_classes + 2,
                max_position_embeddings=config.image_seq_len + 1,
                pad_token_id=None,
                **{name: getattr(config, name) for name in shape},
            ),
            add_pooling_layer=False,
        )
        self.model.lm_head = nn.Linear(config.hidden_size, config.codebook_size)

    @classmethod
    def read_config(cls, path: Path) -> TiTokGeneratorConfig:
        """Returns the shape in a ``config.json``, ours or the published one; see ``Pretrained.read_config``."""
        entries = read_entries(path)
        return from_published(entries, path) if "model" in entries else super().read_config(path)

    # What samplers and pipelines ask a generator, see ``vistok.models.interface``.

    @property
    def tokens(self) -> TokenSpec:
        """The codes that it draws."""
        return TokenSpec("codes", self.config.codebook_size, self.config.image_seq_len, "sequence")

    @property
    def classes(self) -> int:
        """How many classes it knows."""
        return self.config.condition_num_classes

    @property
    def mask_id(self) -> int:
        """The id of a hidden code."""
        return self.config.codebook_size

    def null_condition(self, batch: int) -> Tensor:
        """The class that stands for none, int64 [B]."""
        return torch.full((batch,), self.classes, device=self.model.lm_head.weight.device)

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns codes [B, N] as the tokenizer decodes them."""
        return drawn

    def predict(self, codes: Tensor, values: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Returns logits [B, N, K] of all codes; see ``vistok.models.interface.MaskedGenerator``."""
        ids = torch.cat([self.mask_id + 1 + values[:, None], codes], 1)
        hidden = self.model(input_ids=ids).last_hidden_state
        return self.model.lm_head(hidden[:, 1:]), None

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Returns logits [B, N, K]; see ``predict``."""
        return self.predict(codes, values)[0]


class TiTokGeneratorFamily:
    """How these generators load; see ``vistok.models.interface.GeneratorFamily``."""

    name = "titok-maskgit"
    interface = "masked"
    plain = "masked"
    options = frozenset({"preset"})

    def load(self, request: LoadRequest) -> tuple[TiTokGenerator, Tokenizer]:
        """Returns the generator and the tokenizer of its codes."""
        from vistok.tokenizers.load import load_tokenizer

        resolve(request.source)  # a generator that is not there is told first
        tokenizer = load_tokenizer(str(request.tokenizer_source)).tokenizer
        model = TiTokGenerator.from_pretrained(request.source, request.preset, prefer_ema=True)
        can, own = tokenizer.capabilities, model.tokens
        if (own.size, own.layout) != (can.codebook_size, can.layout) or own.length not in can.lengths:
            most = f", at most {can.lengths[-1]}" if can.lengths else ""
            raise VistokError(
                f"the generator draws {own.length} tokens of {own.size} codes in a sequence, but the tokenizer has "
                f"{can.codebook_size} codes in a {can.layout}{most}: name the tokenizer that belongs to it with "
                "--tokenizer."
            )
        return model, tokenizer


FAMILY = TiTokGeneratorFamily()
