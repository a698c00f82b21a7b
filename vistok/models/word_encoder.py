"""The embedded text encoders: a T5 over a closed vocabulary of words, run without transformers.

transformers takes seconds to import, a hundred times what the encoder of a mini model takes to read a caption. Here is
the inference of what ``TextEncoder.save_pretrained`` writes over whole words, with the same features to the last bit;
every other text encoder is transformers' own. T5 with gated GELU: Raffel et al., arXiv 1910.10683, and Shazeer,
2002.05202.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.pretrained import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
ENCODER_FILES = (CONFIG_FILE, WEIGHTS_FILE)


@dataclass(frozen=True)
class WordEncoderConfig:
    """Shape of an encoder, under the names of T5Config, and how its captions are read."""

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    vocab_size: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    caption_length: int
    clean_captions: bool


def word_encoder_config(folder: str | Path) -> WordEncoderConfig | None:
    """The shape of an encoder over whole words in a folder; None if something else lies there."""
    folder = Path(folder)
    try:
        entries, words = (json.loads((folder / name).read_text("utf-8")) for name in (CONFIG_FILE, TOKENIZER_FILES[0]))
        shape = WordEncoderConfig(**{field.name: entries[field.name] for field in fields(WordEncoderConfig)})
        plain = entries["model_type"] == "t5" and entries["feed_forward_proj"] == "gated-gelu"
        whole = (folder / WEIGHTS_FILE).is_file() and words["model"]["type"] == "WordLevel"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shape if plain and whole else None


class Features(NamedTuple):
    """What an encoder of transformers returns, as far as it is read."""

    last_hidden_state: Tensor


class _Norm(nn.Module):
    def __init__(self, config: WordEncoderConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(self.weight.dtype)


class _Attention(nn.Module):
    def __init__(self, config: WordEncoderConfig, first: bool):
        super().__init__()
        width = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.d_model, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, config.d_model, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: WordEncoderConfig):
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.wi_0(x)
        # F.gelu(approximate="tanh") rounds otherwise than the formula, which is what the weights were trained with.
        gate = 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate.pow(3.0))))
        return self.wo(gate * self.wi_1(x))


def _sublayer(name: str, inner: nn.Module, config: WordEncoderConfig) -> nn.ModuleDict:
    return nn.ModuleDict({name: inner, "layer_norm": _Norm(config)})


class WordNetwork(nn.Module):
    """The encoder half of a T5 under transformers' parameter names, for inference.

    Args:
        config: its shape.
        folder: where its files lie, for ``save_pretrained``.
    """

    def __init__(self, config: WordEncoderConfig, folder: Path):
        super().__init__()
        self.config, self.folder = config, folder
        blocks = []
        for i in range(config.num_layers):
            attention = _sublayer("SelfAttention", _Attention(config, i == 0), config)
            feed_forward = _sublayer("DenseReluDense", _FeedForward(config), config)
            blocks.append(nn.ModuleDict({"layer": nn.ModuleList([attention, feed_forward])}))
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = nn.ModuleDict({"block": nn.ModuleList(blocks), "final_layer_norm": _Norm(config)})

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.shared.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Words int64 [B, L] and which of them are real [B, L] to features [B, L, d_model]."""
        x, blocks = self.shared(input_ids), self.encoder["block"]
        bias = self._bias(input_ids.shape[1]).masked_fill(
            ~attention_mask.bool()[:, None, None], torch.finfo(x.dtype).min
        )
        for block in blocks:
            attention, feed_forward = block["layer"]
            x = x + attention["SelfAttention"](attention["layer_norm"](x), bias)
            x = x + feed_forward["DenseReluDense"](feed_forward["layer_norm"](x))
        return Features(self.encoder["final_layer_norm"](x))

    def _bias(self, length: int) -> Tensor:
        """Logits by distance, [1, heads, L, L]: exact up to an eighth of the buckets, then by the logarithm."""
        half = self.config.relative_attention_num_buckets // 2
        exact = half // 2
        places = torch.arange(length, device=self.device)
        distance = places - places[:, None]
        far = torch.log(distance.abs().float() / exact) / math.log(self.config.relative_attention_max_distance / exact)
        far = (exact + (far * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(distance.abs() < exact, distance.abs(), far) + (distance > 0) * half
        table = self.encoder["block"][0]["layer"][0]["SelfAttention"].relative_attention_bias
        return table(bucket).permute(2, 0, 1)[None]

    def save_pretrained(self, path: str | Path) -> None:
        """Write it to a folder, as it was read."""
        _copy(self.folder, path, ENCODER_FILES)


class _Tokens(dict):
    def to(self, device: torch.device) -> _Tokens:
        return _Tokens({name: tensor.to(device) for name, tensor in self.items()})


class WordTokenizer:
    """Whole words to their numbers, called as a tokenizer of transformers is.

    Args:
        folder: that holds ``tokenizer.json``.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.folder = folder
        self.backend_tokenizer: Tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILES[0]))
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        added = self.backend_tokenizer.get_added_tokens_decoder()
        self.all_special_tokens = [token.content for token in added.values() if token.special]

    def get_vocab(self) -> dict[str, int]:
        """Numbers by word, those of the special ones included."""
        return self.backend_tokenizer.get_vocab()

    def __call__(self, captions: Sequence[str], max_length: int | None = None, **_: Any) -> dict[str, Any]:
        """Numbers of the words of each caption; with ``max_length`` cut and padded to it, as tensors with a mask."""
        encoded = [each.ids for each in self.backend_tokenizer.encode_batch(list(captions))]
        if max_length is None:
            return {"input_ids": encoded}
        # What ends every caption stays at the end of one that is cut.
        cut = [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in encoded]
        mask = torch.arange(max_length) < torch.tensor([len(ids) for ids in cut])[:, None]
        ids = torch.tensor([ids + [0] * (max_length - len(ids)) for ids in cut])
        return _Tokens(input_ids=ids, attention_mask=mask.long())

    def save_pretrained(self, path: str | Path) -> None:
        """Write it to a folder, as it was read."""
        _copy(self.folder, path, TOKENIZER_FILES)


def load_word_encoder(folder: str | Path, config: WordEncoderConfig) -> tuple[WordNetwork, WordTokenizer]:
    """Returns network, in float32, and tokenizer of a folder.

    Raises:
        VistokError: no encoder has this shape, or the weights are not those of it.
    """
    folder = Path(folder)
    try:
        network = WordNetwork(config, folder)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise VistokError(f"no text encoder has the shape in '{folder / CONFIG_FILE}' ({reason}): mend it.") from error
    load_strict(network, read_state_dict(folder / WEIGHTS_FILE), "text encoder")
    return network.float().eval(), WordTokenizer(folder)


def _copy(source: Path, target: str | Path, names: tuple[str, ...]) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            shutil.copyfile(source / name, Path(target) / name)
        except shutil.SameFileError:
            pass
        except FileNotFoundError:
            raise VistokError(f"'{source / name}' is gone: load the model again before saving it.") from None
