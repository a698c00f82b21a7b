"""The tab *See*: a question about a picture, answered from all visual tokens and from fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from vistok.data.images import to_pil
from vistok.data.scenes import render, scenes_at
from vistok.data.scenes.splits import HELD_OUT
from vistok.data.scenes.vqa import draw_questions
from vistok.errors import VistokError
from vistok.eval.answers.ask import Answer, ask, build_compressor, has_keep, kept_overlay
from vistok.eval.answers.keep_curves import method_names
from vistok.projectors.cost import flops_text
from vistok.studio import html

LONGEST_QUESTION = 300  # characters
LONGEST_ANSWER = 32  # tokens


@dataclass(frozen=True)
class Seen:
    """Two answers to one question.

    Attributes:
        all: from all visual tokens.
        fewer: from those that the method keeps.
        method: its name.
        overlay: the picture with the patches that stayed; None where the method does not tell them.
        remark: why there is no overlay, or an empty text.
    """

    all: Answer
    fewer: Answer
    method: str
    overlay: Image.Image | None
    remark: str = ""


def methods() -> list[str]:
    """Returns the training-free compression methods of pictures."""
    return method_names("all")


def see(model: Any, processor: Any, picture: Image.Image | None, question: str, method: str, keep: int) -> Seen:
    """Asks a multimodal model about a picture with all visual tokens, and with fewer.

    Args:
        model, processor: see ``vistok.eval.answers.ask.load``.
        picture: RGB.
        question: in words.
        method: of ``methods``.
        keep: share of the tokens that stay, in percent; methods that choose the number by themselves pass over it.

    Raises:
        VistokError: there is no picture or question, or the method does not run on the model.
    """
    question = (question or "").strip()
    if picture is None:
        raise VistokError("there is no picture: choose one, or take a scene.")
    if not question:
        raise VistokError("the question is empty: ask something about the picture.")
    if len(question) > LONGEST_QUESTION:
        raise VistokError(f"the question has {len(question)} characters: shorten it to {LONGEST_QUESTION}.")
    compressor = build_compressor(method, keep / 100 if has_keep(method) else None)
    whole, _ = ask(model, processor, picture, question, None, LONGEST_ANSWER)
    fewer, report = ask(model, processor, picture, question, compressor, LONGEST_ANSWER)
    try:
        return Seen(whole, fewer, method, kept_overlay(processor, picture, report))
    except VistokError:
        return Seen(whole, fewer, method, None, f"{method} does not tell which patches it keeps.")


def seen_html(seen: Seen) -> str:
    """Returns both answers with what they cost, and the patches that stayed."""
    rows = [_row("all tokens", seen.all), _row(seen.method, seen.fewer)]
    head = ("", "answer", "visual tokens", "prefill", "time to the first word", "KV cache")
    said = html.table(head, rows, "The same question, from all visual tokens and from fewer")
    saved = 1 - seen.fewer.prefill_flops / max(1, seen.all.prefill_flops)
    figures = html.chips(
        [
            (f"{seen.fewer.visual_tokens} of {seen.all.visual_tokens}", "visual tokens"),
            (f"{saved:.0%}", "of the prefill's operations spared"),
            ("same" if seen.fewer.text == seen.all.text else "another", "answer"),
        ]
    )
    if seen.overlay is None:
        return figures + said + html.note(seen.remark)
    drawn = html.img(seen.overlay, "the picture, dark where a patch was dropped", smooth=True)
    return figures + html.row(html.figure(drawn, "Kept patches", "outlined: kept; dark: dropped")) + said


def _row(name: str, answer: Answer) -> tuple[str, ...]:
    return (
        name,
        answer.text or "(nothing)",
        str(answer.visual_tokens),
        flops_text(answer.prefill_flops),
        f"{answer.prefill_seconds * 1000:.0f} ms",
        f"{answer.cache_bytes / 2**20:.2f} MiB",
    )


def example(number: int, size: int = 64) -> tuple[Image.Image, str]:
    """Returns a held-out scene and a question about it.

    Args:
        number: of the scene.
        size: side in pixels.
    """
    scenes = scenes_at(torch.tensor([number]), HELD_OUT)
    ((question,),) = draw_questions(scenes, 1)
    return to_pil(render(scenes, size))[0], question.text
