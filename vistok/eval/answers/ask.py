"""Ask a multimodal model about a picture, with all visual tokens or fewer, and measure what it cost."""

from __future__ import annotations

import inspect
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.answers.prompts import model_inputs, prompt_for
from vistok.models.extension import is_extension, load_extended, read_extension
from vistok.models.families import FAMILIES
from vistok.models.huggingface import given_cache
from vistok.projectors import PMod, TokenPacker, compress, compressor_class, concentric
from vistok.projectors.apply.compress import Report, active
from vistok.projectors.cost import prefill_flops
from vistok.projectors.learned.croc import restore_normalization
from vistok.projectors.learned.tokenpacker import CONFIG_FILE as PACKER_FILE
from vistok.projectors.overlay import kept_map, overlay, tiles_map
from vistok.zoo.checkpoint import load_strict

__all__ = [
    "Answer",
    "ask",
    "build_compressor",
    "check_trained",
    "has_keep",
    "kept_overlay",
    "load",
    "parse_keep",
    "prompt_for",
]


@dataclass(frozen=True)
class Answer:
    """An answer and its cost.

    Attributes:
        text: what the model said.
        visual_tokens: visual tokens that the language model saw; those that stayed where it drops them itself.
        prompt_tokens: of the whole prompt as the first layer of the language model saw it.
        prefill_seconds: from pixels to the first new token.
        prefill_flops: of the language model.
        cache_bytes: of the key-value cache after the last token.
    """

    text: str
    visual_tokens: int
    prompt_tokens: int
    prefill_seconds: float
    prefill_flops: int
    cache_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_keep(text: str) -> int | float:
    """Returns what ``--keep`` says: ``"64"`` tokens, or ``"25%"`` or ``"0.25"`` of them.

    Raises:
        VistokError: it is neither.
    """
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise VistokError(f"cannot keep '{text}': give a number such as 64, or a share such as 25%.") from None


def build_compressor(name: str, keep: int | float | None = None) -> Any:
    """Returns a training-free compressor by name.

    Args:
        name: of ``COMPRESSORS``.
        keep: tokens or share; the method's own default if None.

    Raises:
        VistokError: unknown name, a method that needs weights, or ``keep`` where the method has no such choice.
    """
    kind = compressor_class(name)
    check_trained(kind)
    if keep is None:
        return kind()
    if not has_keep(name):
        raise VistokError(f"{name} chooses the number of tokens by itself: leave keep out.")
    return kind(keep=keep)


def has_keep(name: str) -> bool:
    """Whether one chooses how many tokens a method keeps.

    Raises:
        VistokError: unknown name.
    """
    return "keep" in inspect.signature(compressor_class(name)).parameters


def check_trained(kind: type) -> None:
    """Refuse a method that has weights of its own, which a name cannot give.

    Raises:
        VistokError: it has.
    """
    if kind.trained:
        raise VistokError(
            f"{kind.name} is trained: use a model that has it (such as {kind.name}-mini), or "
            f"{kind.__name__}.from_checkpoint from Python."
        )


def load(name: str, device: str | None = None, dtype: str = "float32") -> tuple[Any, Any]:
    """Loads a multimodal model and its processor.

    A folder with a TokenPacker beside the model gives a model that runs with it, as after :func:`vistok.compress`; one
    of Croc normalises its visual tokens; one with a difference on another model (p-MoD, concentric positions) gives
    that one, at work as it was trained.

    Args:
        name: embedded model, folder, or hub id.
        device: cpu, cuda or cuda:N; cuda where there is one if None.
        dtype: of the weights.

    Raises:
        VistokError: there is no such model, or it cannot be read.
    """
    import vistok.projectors.learned.pvc_llava  # noqa: F401 - makes its model type known
    from vistok.zoo.registry import is_embedded, local_path, resolve
    from vistok.zoo.transformers import load_image_text

    folder = resolve(name) if is_embedded(name) else local_path(name) or Path(name)
    if is_extension(folder):
        return load_difference(name, device, dtype)
    model, processor = load_image_text(name, device, dtype)
    restore_normalization(model)
    if (folder / PACKER_FILE).exists():
        compress(model, TokenPacker.from_pretrained(folder).to(model.device, model.dtype))
    return model, processor


def load_difference(name: str, device: str | None, dtype: str) -> tuple[Any, Any]:
    """Loads a model that was saved as a difference from another one, and its processor; see :func:`load`.

    Raises:
        VistokError: it is of a system that answers no questions, or the model below has other weights.
    """
    kind = read_extension(name)[0].kind
    if kind not in ("p-mod", "concentric"):
        raise VistokError(
            f"'{name}' is a '{kind}' model, which has a command of its own: name one that answers questions."
        )
    model, processor, extension, state = load_extended(name, kind, device, dtype)
    if kind == "concentric":
        if extension.options["concentric"]:
            concentric(model)
    else:
        routers = PMod(**extension.options)
        load_strict(routers, state, f"the routers of '{name}'")
        compress(model, routers.to(model.device, model.dtype).eval())
    return model, processor


def ask(
    model: Any, processor: Any, picture: Image.Image, question: str, compressor: Any = None, max_new_tokens: int = 64
) -> tuple[Answer, Report]:
    """Asks about one picture.

    Args:
        model, processor: see :func:`load`.
        picture: RGB.
        question: in words.
        compressor: None for all tokens, or for what the model is compressed with already.
        max_new_tokens: at most.

    Returns:
        The answer, and what the compressor did (empty without one).
    """
    inputs = model_inputs(model, processor, [picture], [question])
    length = inputs["input_ids"].shape[1]
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    config = model.config.get_text_config()
    settings = {"do_sample": False, "return_dict_in_generate": True}
    with nullcontext(active(model)) if compressor is None else compress(model, compressor) as compression:
        started = _now(model)
        model.generate(**inputs, max_new_tokens=1, **settings)
        seconds = _now(model) - started
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
    report = Report() if compression is None else compression.last
    (lengths,) = report.lengths or [[length] * config.num_hidden_layers]
    (kept,) = report.visual or [visual]
    text = processor.decode(output.sequences[0, length:], skip_special_tokens=True).strip()
    flops = prefill_flops(config, lengths)
    return Answer(text, kept, lengths[0], seconds, flops, _cache_bytes(given_cache(output))), report


def kept_overlay(processor: Any, picture: Image.Image, report: Report) -> Image.Image:
    """Returns the picture as the model saw it, with the patches that stayed.

    Args:
        processor: the model's; where it cuts a view out of the picture, the view is drawn, else the whole picture.
        picture: the original.
        report: of a call with this picture alone.

    Raises:
        VistokError: the method makes tokens of no place, or drops them inside the model.
    """
    if not report.layouts or not any(bool((kept >= 0).any()) for kept in report.kept):
        raise VistokError("this method does not tell which patches it kept: leave the overlay out.")
    grid, canvas = report.layouts[0]
    family = FAMILIES[report.family]()
    arranged = family.arrangement(processor.image_processor, picture, len(report.layouts))
    if arranged is not None:
        first = int(family.whole_first and len(report.kept) > 1)
        return overlay(picture, tiles_map(report.kept[first:], grid, arranged))
    if len(report.layouts) > 1:  # a thumbnail, and behind it the map of the whole picture
        return overlay(picture, kept_map(report.kept[-1], report.layouts[-1][0]))
    if canvas is None:
        pixels = processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        picture = _denormalised(processor, pixels.reshape(-1, *pixels.shape[-3:])[0])
    return overlay(picture, kept_map(report.kept[0], grid, canvas))


def _denormalised(processor: Any, pixels: Tensor) -> Image.Image:
    from vistok.data.images import to_pil

    images = processor.image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
    unit = pixels.float().cpu() * std + mean
    return to_pil((unit.clamp(0, 1) * 2 - 1)[None])[0]


def _cache_bytes(cache: Any) -> int:
    """Of keys and values, and of the states of layers that keep none (LFM2's convolutions)."""
    held = [value for layer in cache.layers for value in vars(layer).values()]
    held = [one for value in held for one in (value.values() if isinstance(value, dict) else [value])]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
