"""What a generator is told: prompts and classes, checked and encoded; control pictures; tokens that are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from torch import Tensor

from vistok.data.decode import to_rgb
from vistok.data.images import load_image, to_tensor
from vistok.errors import VistokError, unknown_name
from vistok.models.interface import Condition, Control, Known

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.pipelines.generation import Pipeline


def listed(conditions: Any) -> list[str | int]:
    """Returns prompts or classes as a list: of one, of several, or of an array or tensor of classes.

    Raises:
        VistokError: it is neither, or there is none.
    """
    given = conditions.tolist() if hasattr(conditions, "tolist") else conditions  # also numpy's numbers
    if isinstance(given, str | int):
        return [given]
    if not isinstance(given, Iterable):
        raise VistokError(f"images are drawn of prompts or of numbers of classes, got {given!r}: give one or several.")
    found = [each.item() if hasattr(each, "item") else each for each in given]
    if not found:
        raise VistokError("there is nothing to draw: give at least one prompt or class.")
    return found


def check_conditions(pipe: Pipeline, conditions: Sequence[str | int], force: bool) -> None:
    """Refuses conditions that the model cannot follow; see ``Pipeline.check``."""
    if pipe.conditional_on == "class":
        last = pipe.model.classes - 1
        for condition in conditions:
            if not isinstance(condition, int):
                raise VistokError(f"'{pipe.name}' paints classes, not prompts: give a class from 0 to {last}.")
            if not 0 <= condition <= last:
                raise VistokError(f"class {condition} does not exist: '{pipe.name}' knows classes 0 to {last}.")
        return
    prompts = [condition for condition in conditions if isinstance(condition, str)]
    if len(prompts) < len(conditions):
        raise VistokError(f"'{pipe.name}' paints prompts, not classes: give a prompt.")
    if not all(prompt.strip() for prompt in prompts):
        raise VistokError("the prompt is empty: say what to paint.")
    encoder = pipe.text_encoder
    if encoder is not None and not force and (unknown := encoder.unknown_words(prompts)):
        words = ", ".join(f"'{w}'" for w in unknown)
        known = " ".join(w for w in encoder.known_words or () if w.isalpha())
        raise VistokError(f"'{pipe.name}' never saw {words}; it knows: {known}. Use --force to go on all the same.")


def encode_conditions(pipe: Pipeline, conditions: Sequence[str | int]) -> Condition:
    """Returns the condition of a batch; each caption is encoded by itself and once."""
    weight = next(pipe.model.parameters())
    if pipe.conditional_on == "class":
        return Condition(torch.tensor(conditions, device=weight.device), None, pipe.control, pipe.known)
    reader = getattr(pipe.model, "reader", None)
    if reader is not None:  # a language model draws, and reads prompts in tokens
        read = reader(conditions)
        if pipe.negative is not None:
            avoided = reader([pipe.negative])
            read = replace(read, negative_ids=avoided.ids, negative_mask=avoided.mask)
        return read.to(weight.device)
    features, mask = _text_features(pipe, [str(each) for each in conditions], weight)
    negative = None
    if pipe.negative is not None:
        negative = Condition(*_text_features(pipe, [pipe.negative] * len(conditions), weight))
    return Condition(features, mask, pipe.control, pipe.known, negative)


def _text_features(pipe: Pipeline, texts: Sequence[str], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Features of texts and their mask, on the device and in the format of a weight of the generator."""
    if pipe.text_encoder is None:
        raise VistokError(f"'{pipe.name}' comes without its text encoder: name one with --text-encoder.")
    for text in set(texts) - set(pipe.text_features):
        pipe.text_features[text] = pipe.text_encoder([text])
    features, masks = zip(*(pipe.text_features[text] for text in texts), strict=True)
    return torch.cat(features).to(weight), torch.cat(masks).to(weight.device)


def with_control(pipe: Pipeline, picture: Image | str | Path, kind: str | None, strength: float) -> Pipeline:
    """Returns a pipeline that follows one more control picture; see ``Pipeline.with_control``."""
    model: Any = pipe.model  # a ``ControlledGenerator`` where it knows controls
    known = getattr(model, "controls", ())
    if not known:
        raise VistokError(f"'{pipe.name}' follows no control pictures: leave --control out, or name a ControlAR.")
    if kind is None and len(known) > 1:
        raise VistokError(f"'{pipe.name}' follows {', '.join(known)}: say which of them the control picture is.")
    kind = known[0] if kind is None else kind
    if kind not in known:
        raise unknown_name(f"kind of control of '{pipe.name}'", kind, list(known))
    if not 0 <= strength < math.inf:
        raise VistokError(f"the strength of a control must be 0 or more, got {strength}.")
    image = _as_image(picture)
    width, height = (-(-length // model.multiple) * model.multiple for length in image.size)
    size = width, height
    model = model.resized(height, width)
    if pipe.control and pipe.control[0].picture.shape[:1:-1] != size:
        width, height = pipe.control[0].picture.shape[:1:-1]
        raise VistokError(
            f"a control picture of {size[0]}x{size[1]} pixels cannot join one of {width}x{height}: make them "
            "of one size."
        )
    if size != image.size:
        image = image.resize(size)
    pixels = to_tensor(image)[None].to(pipe.device)
    return replace(pipe, model=model, control=(*pipe.control, Control(pixels, kind, strength)))


def with_image(pipe: Pipeline, picture: Image | str | Path, mask: Image | str | Path) -> Pipeline:
    """Returns a pipeline that draws a part of a picture anew; see ``Pipeline.with_image``."""
    model: Any = pipe.model  # a ``FillingGenerator`` where it has tokens of its own
    if not hasattr(model, "own_tokens"):
        raise VistokError(f"'{pipe.name}' draws its tokens in one order, around nothing: leave --image out.")
    image, shown = _as_image(picture), _as_image(mask)
    for what, each in (("picture", image), ("mask", shown)):
        if each.size != (pipe.size, pipe.size):
            width, height = each.size
            raise VistokError(
                f"the {what} has {width}x{height} pixels, but '{pipe.name}' draws {pipe.size}x{pipe.size}: make it "
                "of that size."
            )
    white = (to_tensor(shown).amax(0, keepdim=True) > 0).float()
    stays = torch.nn.functional.adaptive_max_pool2d(white, model.tokens.line).flatten().to(pipe.device) == 0
    if bool(stays.all()):
        raise VistokError("the mask is black everywhere, so that nothing is drawn: paint white what should change.")
    tokens = pipe.decoder.encode(to_tensor(image)[None].to(pipe.device))
    return replace(pipe, known=Known(model.own_tokens(tokens)[0], stays))


def _as_image(picture: Image | str | Path) -> Image:
    """The picture in RGB, upright: its size is that of its pixels as they are read."""
    if isinstance(picture, str | Path):
        return load_image(picture)
    if not isinstance(picture, PIL.Image.Image):
        raise VistokError(
            f"a picture is given by its path or as an image of Pillow, got {type(picture).__name__}: "
            "PIL.Image.fromarray makes one of an array."
        )
    return to_rgb(picture)
