"""Loads the parts of a pipeline and puts them together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vistok.errors import VistokError
from vistok.models.generators import GENERATORS
from vistok.models.interface import LoadRequest
from vistok.ops.linear import Int8Linear, PackedLinear, pack_linears
from vistok.pipelines.generation import Pipeline
from vistok.pipelines.resolve import resolve_generator
from vistok.registry import require
from vistok.runtime import resolve_device, resolve_dtype
from vistok.zoo import card_of_folder, hub_id, resolve
from vistok.zoo.registry import local_path

if TYPE_CHECKING:
    from vistok.models.interface import TextReader


def pipeline(
    name: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    text_encoder: str | Path | None = None,
    size: int | None = None,
    preset: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    tokens: int | None = None,
    vq: str | Path | None = None,
) -> Pipeline:
    """Loads all that a model needs to paint.

    Args:
        name: a model of ``vistok models``; its embedded or published parts are taken where no other is named.
            ``llamagen`` if None, or the embedded generator of the embedded ``tokenizer`` that is named.
        checkpoint: weights of the generator: a path, or a hub id ``owner/name:file``.
        tokenizer: weights of the image tokenizer, likewise, or an embedded tokenizer's name.
        text_encoder: folder or hub id of a T5 encoder, or a generator that has one.
        size: side of the images in pixels, for checkpoint files that do not tell.
        preset: shape of a checkpoint file whose name is not a published one, e.g. ``GPT-B``.
        device: ``cpu``, ``cuda`` or ``cuda:1``; the GPU where there is one if None.
        dtype: ``float32``, ``bfloat16`` or ``float16``; or ``int8``, products of a generator that draws token behind
            token in whole numbers, on a CPU: faster, and no longer quite its law.
        compile: compile the transformer's blocks with ``torch.compile``, on a GPU.
        tokens: draw only so many first tokens of each image, where they are ordered from coarse to fine.
        vq: the former name of ``tokenizer``.

    Raises:
        VistokError: an unknown name, device or dtype, an option that the model does not have, or weights that do not
            fit.
    """
    if vq is not None:
        warnings.warn("vq= is tokenizer= now: use that name.", FutureWarning, 2)
        tokenizer = vq
    products = "int8" if dtype == "int8" else None
    target, number_format = resolve_device(device), resolve_dtype("float32" if products else dtype)
    if products and target.type != "cpu":
        raise VistokError(f"int8 products are for a CPU, but the device is {target}: use --dtype bfloat16.")
    if compile and target.type == "cpu":
        raise VistokError("on a CPU packed weights are faster than compiled blocks: leave --compile out.")
    found, checkpoint, own = resolve_generator(name, checkpoint, tokenizer)
    family = GENERATORS[found.family]
    given = {"size": size, "preset": preset, "tokens": tokens, "text_encoder": text_encoder, "compile": compile or None}
    for option, value in given.items():
        if value is not None and option not in family.options:
            raise VistokError(f"'{found.name}' has no --{option.replace('_', '-')}: leave it out.")
    if products and family.interface != "autoregressive":
        raise VistokError(
            f"'{found.name}' draws no token behind the other, so --dtype int8 is not for it: leave it out."
        )
    request = LoadRequest(found, checkpoint, tokenizer, size, preset, tokens)
    model, image_tokenizer = _loaded(family.load(request), found.family)
    encoder = _text_encoder(model, request, text_encoder)
    model = model.to(target, number_format)
    if target.type == "cpu":
        pack_linears(model, Int8Linear if products else PackedLinear)  # the same seed, the same image in any batch
    if compile:
        model.compile_blocks()
    if isinstance(encoder, nn.Module):
        encoder = encoder.to(target).eval()
    suits = {key: getattr(found, key) for key in ("guidance", "temperature", "sampling")} if own else {}
    suits = {key: value for key, value in suits.items() if value is not None}
    if isinstance(image_tokenizer, nn.Module):
        image_tokenizer = image_tokenizer.to(target)
    return Pipeline(model, image_tokenizer, encoder, found.name, products=products, **suits)


def _loaded(parts: Any, family: str) -> tuple[Any, Any]:
    """What a family loaded: a generator and its tokenizer, if they are these."""
    what = f"the generator family '{family}'"
    if not isinstance(parts, tuple) or len(parts) != 2:
        raise VistokError(f"{what} must load a generator and its tokenizer, got {type(parts).__name__}.")
    require(f"the generator of {what}", parts[0], ("family", "tokens", "conditional_on", "image_tokens", "parameters"))
    if parts[1] is not None:
        require(f"the tokenizer of {what}", parts[1], ("capabilities", "decode"))
    return parts


def _text_encoder(model: Any, request: LoadRequest, given: str | Path | None) -> TextReader | None:
    if getattr(model, "reader", None) is not None:
        if given is not None:
            raise VistokError(f"'{request.source}' reads prompts itself: leave --text-encoder out.")
        return model.reader
    if model.conditional_on != "text":
        if given is not None:
            raise VistokError(f"'{request.source}' paints classes and reads no text: leave --text-encoder out.")
        return None
    from vistok.models.text_encoder import encoder_folder, load_text_encoder

    if given is None:
        folder = resolve(request.source)
        own = card_of_folder(folder) if folder.is_dir() else None
        if own is not None and "text_encoder" in own.parts:
            given = encoder_folder(own.parts["text_encoder"])
        elif not (given := folder / "text_encoder").is_dir():
            raise VistokError("this model comes without its text-encoder weights: name them with --text-encoder.")
    elif hub_id(given) is None or local_path(given) is not None:  # of the hub, transformers fetches what it needs
        given = encoder_folder(given)
    encoder = load_text_encoder(given)
    if encoder.dim != model.text_width:
        raise VistokError(
            f"'{request.source}' reads text features of width {model.text_width} but '{given}' gives {encoder.dim}: "
            "name the text encoder that it was trained with."
        )
    return encoder
