"""The tab *Tokens*: a picture through every tokenizer, from its first k tokens, beside JPEG and WebP at equal bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from vistok.data.images import to_pil
from vistok.data.vtok import TokenFile
from vistok.errors import VistokError
from vistok.eval.reconstruction.metrics import psnr, quantise
from vistok.eval.reconstruction.rate_distortion import CODECS, codec_within
from vistok.studio import html
from vistok.tokenizers.files import prepare
from vistok.tokenizers.interface import noise_of
from vistok.tokenizers.load import LoadedTokenizer
from vistok.zoo import cards

SIDE = 16  # tokens along a side, of tokenizers that take pictures of any size
REMEMBERED = 32  # pictures, each for one tokenizer, whose tokens are kept


def tokenizer_names() -> list[str]:
    """Returns the embedded tokenizers."""
    return [card.name for card in cards() if card.embedded and card.task == "image-tokenizer"]


@dataclass(frozen=True)
class Rendition:
    """A picture as one tokenizer tells it.

    Attributes:
        name: of the tokenizer.
        original: the picture at the tokenizer's size.
        picture: what the first tokens give.
        tokens, total: how many are used, and how many the picture has.
        bytes: of the ``.vtok`` file; None of continuous tokens, which have no bits.
        psnr: in dB.
        codecs: what JPEG and WebP make of at most as many bytes, with theirs and the PSNR.
    """

    name: str
    original: Image.Image
    picture: Image.Image
    tokens: int
    total: int
    bytes: int | None
    psnr: float
    codecs: dict[str, tuple[Image.Image, int, float]] = field(default_factory=dict)


class Encoded:
    """The tokens of the pictures that were looked at last, so that another length is only decoded."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, tuple[int, int], bytes], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(self, loaded: LoadedTokenizer, picture: Image.Image) -> tuple[Tensor, Tensor]:
        """Returns the prepared pixels [1, 3, H, W] of a picture and its tokens."""
        key = (loaded.name, picture.size, picture.tobytes())
        if key not in self._known:
            can = loaded.tokenizer.capabilities
            pixels = prepare(picture, can, can.image_size or SIDE * can.multiple)[None].to(loaded.device)
            self._known[key] = pixels, loaded.tokenizer.encode(pixels)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]


def length_within(loaded: LoadedTokenizer, wanted: int, total: int) -> int:
    """Returns how many tokens are decoded where ``wanted`` are asked for: the most of no more, else the fewest."""
    lengths = loaded.tokenizer.capabilities.lengths or (total,)
    return max((each for each in lengths if each <= wanted), default=min(lengths))


@torch.inference_mode()
def rendition(loaded: LoadedTokenizer, picture: Image.Image, wanted: int, encoded: Encoded) -> Rendition:
    """Returns a picture as a tokenizer tells it with at most ``wanted`` tokens, or all where it cannot do with fewer.

    Raises:
        VistokError: the picture cannot be tokenized.
    """
    pixels, tokens = encoded(loaded, picture)
    can = loaded.tokenizer.capabilities
    continuous = can.codebook_size is None
    total = tokens[0].numel() if not continuous else tokens[0, 0].numel()
    length = total if continuous else length_within(loaded, wanted, total)
    noise = noise_of(loaded.tokenizer, [0])
    output = loaded.tokenizer.decode(tokens, None if continuous else length, **noise).clamp(-1, 1)
    (original,), (shown,) = to_pil(pixels), to_pil(output)
    quality = _psnr(pixels, output)
    if can.codebook_size is None:
        return Rendition(loaded.name, original, shown, length, total, None, quality)
    shape, flat = tuple(tokens.shape[1:]), tokens.flatten(1)[0, :length].cpu()
    size = len(TokenFile(loaded.name, loaded.sha256, can.codebook_size, shape, flat).to_bytes())
    codecs = {}
    for codec in CODECS:
        other, spent = codec_within(codec, original, size)
        codecs[codec] = other, spent, _psnr(pixels, prepare(other, can, None)[None].to(pixels))
    return Rendition(loaded.name, original, shown, length, total, size, quality, codecs)


def _psnr(pixels: Tensor, output: Tensor) -> float:
    return float(psnr(quantise(pixels) / 255, quantise(output) / 255))


def tokens_html(found: Sequence[Rendition]) -> str:
    """Returns the renditions, a row each: reconstruction, JPEG and WebP with their bytes."""
    if not found:
        return ""
    largest = max((each.original for each in found), key=lambda picture: picture.width)
    shown = html.figure(html.img(largest, "the picture"), "Original", "cropped and reduced as each tokenizer needs it")
    return f'<div class="vs-line">{html.row(shown)}</div>' + "".join(_line(each) for each in found)


def _line(each: Rendition) -> str:
    size = "continuous, no bytes" if each.bytes is None else f"{each.bytes} bytes"
    caption = f"{each.tokens} of {each.total} tokens, {size}, {each.psnr:.1f} dB at {each.picture.width} pixels"
    picture = html.img(each.picture, f"the picture from {each.tokens} tokens of {each.name}")
    shots = [html.figure(picture, each.name, caption)]
    for codec, (other, spent, quality) in each.codecs.items():
        remark = "" if spent <= (each.bytes or 0) else ", its smallest file"
        name = {"jpeg": "JPEG", "webp": "WebP"}[codec]
        shown = html.img(other, f"the picture as {name}")
        shots.append(html.figure(shown, name, f"{spent} bytes{remark}, {quality:.1f} dB"))
    return f'<section class="vs-line" aria-label="{html.escape(each.name)}">{html.row(*shots)}</section>'


def check_picture(picture: Image.Image | None) -> Image.Image:
    """Returns the picture.

    Raises:
        VistokError: there is none.
    """
    if picture is None:
        raise VistokError("there is no picture: choose one, or take a scene.")
    return picture
