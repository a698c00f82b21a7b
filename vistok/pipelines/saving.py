"""Writes a pipeline into a folder that loads as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vistok.errors import VistokError
from vistok.files import writable_folder
from vistok.zoo import ModelCard, write_card
from vistok.zoo.pretrained import Pretrained

if TYPE_CHECKING:
    import torch

    from vistok.pipelines.generation import Pipeline


def save_pipeline(pipe: Pipeline, folder: str | Path, dtype: torch.dtype | str | None = None) -> None:
    """Writes the generator into a folder, with its image tokenizer and its text encoder in folders below and one card
    that names them; see ``Pipeline.save_pretrained``."""
    from vistok.models.text_encoder import TextEncoder

    if pipe.control or pipe.known is not None or pipe.negative is not None:
        raise VistokError(
            "control pictures, known images and negative prompts are no part of a model: save the pipeline without."
        )
    folder = writable_folder(folder)
    model, tokenizer = (_own(pipe, *part) for part in (("generator", pipe.model), ("image tokenizer", pipe.tokenizer)))
    model.save_pretrained(folder, dtype)
    tokenizer.save_pretrained(folder / "tokenizer", dtype)
    if isinstance(pipe.text_encoder, TextEncoder):
        pipe.text_encoder.save_pretrained(folder / "text_encoder")
    own = model.card
    card = ModelCard(
        name=pipe.name,
        task=f"{pipe.conditional_on}-to-image",
        family=pipe.model.family,
        parameters=sum(weight.numel() for weight in pipe.model.parameters()),
        files={},
        source=str(folder),
        licence="unknown" if own is None else own.licence,
        parts={"tokenizer": "tokenizer"},
        guidance=pipe.guidance,
        temperature=pipe.temperature,
        sampling=dict(pipe.sampling),
        paper=None if own is None else own.paper,
    )
    write_card(folder, card)


def _own(pipe: Pipeline, what: str, part: object) -> Pretrained:
    if not isinstance(part, Pretrained):
        raise VistokError(
            f"the {what} of '{pipe.name}' ({type(part).__name__}) is not vistok's own: save it by itself."
        )
    return part
