"""From pictures and questions to the inputs of a multimodal model, through its own processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from vistok.errors import VistokError
from vistok.models.huggingface import placeholder_in


def prompt_for(processor: Any, question: str) -> str:
    """Returns the prompt of one picture and a question: the processor's own chat, or LLaVA-1.5's where it has none.

    Raises:
        VistokError: the question is empty, or holds a placeholder of a picture.
    """
    check_question(processor, question)
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return f"USER: {getattr(processor, 'image_token', '<image>')}\n{question} ASSISTANT:"


def check_question(processor: Any, question: str) -> None:
    """Refuse an empty question, and one with a token in it that stands for a picture.

    Raises:
        VistokError: it is one; the sentence names the token.
    """
    if not question.strip():
        raise VistokError("the question is empty: ask something about the picture.")
    token = placeholder_in(processor, question)
    if token is not None:
        raise VistokError(
            f"the question '{_short(question)}' contains '{token}', which stands for a picture: leave it out, the "
            "picture's place is before the question."
        )


def model_inputs(
    model: Any, processor: Any, pictures: Sequence[Image.Image], questions: Sequence[str]
) -> dict[str, Any]:
    """Returns the inputs of ``generate``: one picture and one question for each prompt, padded on the left.

    Args:
        model, processor: see :func:`vistok.eval.answers.ask.load`.
        pictures: RGB.
        questions: as many.

    Raises:
        VistokError: the processor refuses a picture, or a question holds a placeholder.
    """
    texts = [prompt_for(processor, question) for question in questions]
    try:
        inputs = processor(
            images=[[picture] for picture in pictures],
            text=texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        sizes = ", ".join(sorted({f"{p.width}x{p.height}" for p in pictures}))
        reason = str(error).strip().partition("\n")[0]
        raise VistokError(f"the model's processor refuses a picture of {sizes} pixels: {reason}") from error
    inputs = inputs.to(model.device)
    return {
        name: value.to(model.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
