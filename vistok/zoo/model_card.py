"""Model cards: what a model is, where its weights come from, and how they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vistok.errors import VistokError
from vistok.files import atomic_path

CARD_FILE = "card.json"
EMBEDDED = "embedded"


@dataclass(frozen=True)
class ModelCard:
    """One model: enough to list it, to build it, to find its weights and to train it again.

    Attributes:
        name: what users type; lower case.
        task: what it does, e.g. ``text-to-image``, ``class-to-image``, ``image-tokenizer``.
        family: the module that implements it, e.g. ``llamagen`` or ``vq``.
        parameters: number of weights.
        files: weights files, relative to the model's folder or repository, with their SHA-256 (None: not known).
        source: ``embedded``, a folder, or the hub repository that publishes the files; empty where none does.
        licence: of the weights.
        aliases: other names that lead here.
        preset: name of the shape in the family's table of presets; None where ``config.json`` holds the shape.
        config: entries that replace those of the preset.
        parts: names of the models that it works with, by role, e.g. ``{"tokenizer": "llamagen-vq16"}``.
        recipe, seed, steps, data: how it was trained.
        metrics: what was measured on it.
        guidance, temperature: of a generator, the scale of classifier-free guidance and the temperature that suit it.
        sampling: of a generator, the options of its samplers that suit it.
        paper: its arXiv id.
    """

    name: str
    task: str
    family: str
    parameters: int
    files: Mapping[str, str | None]
    source: str
    licence: str
    aliases: tuple[str, ...] = ()
    preset: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    recipe: str | None = None
    seed: int | None = None
    steps: int | None = None
    data: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    temperature: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    paper: str | None = None

    @property
    def embedded(self) -> bool:
        """Whether the weights are part of the package."""
        return self.source == EMBEDDED


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_card(folder: Path, source: str | None = None) -> ModelCard:
    """Returns the card of a model's folder.

    Args:
        folder: where ``card.json`` lies.
        source: where the weights come from; by default the folder.

    Raises:
        VistokError: the card is absent or is not a card.
    """
    path = folder / CARD_FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        _check(entries)
        entries["aliases"] = tuple(entries.get("aliases", ()))
        parts = entries.get("parts", {})
        if "vq" in parts:  # the role of a tokenizer in older cards
            entries["parts"] = {"tokenizer": parts.pop("vq"), **parts}
        return ModelCard(**entries, source=source or str(folder))
    except FileNotFoundError as error:
        raise VistokError(f"there is no model card '{path}'.") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VistokError(f"'{path}' is not a model card ({error}): write it with vistok.zoo.write_card.") from error


def _check(entries: Mapping[str, Any]) -> None:
    """Refuses entries of another type than those that are used without a look."""
    for name in ("config", "files", "metrics", "parts", "sampling"):
        if not isinstance(entries.get(name, {}), dict):
            raise TypeError(f"'{name}' holds no entries")
    if not all(isinstance(part, str) for part in entries.get("parts", {}).values()):
        raise TypeError("'parts' are names of models")
    for name in ("guidance", "temperature"):
        if not isinstance(entries.get(name), int | float | None):
            raise TypeError(f"'{name}' is a number")


def write_card(folder: str | Path, card: ModelCard) -> ModelCard:
    """Writes ``card.json`` beside weights that are already there.

    Args:
        folder: the model's folder.
        card: its ``files`` and ``source`` are replaced by what the folder holds.

    Returns:
        The card as written.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in weights_files(folder)}
    card = replace(card, files=files, source=str(folder))
    # The source is where a card is read from, so it is not written down; what is empty or not known is left out.
    entries = {key: value for key, value in asdict(card).items() if key != "source" and value not in (None, (), {})}
    with atomic_path(folder / CARD_FILE) as temporary:
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of folders may be any bytes
    return card


def verify_files(card: ModelCard, folder: Path) -> None:
    """Raise VistokError unless the folder's weights files are exactly those of the card, byte for byte."""
    found = {path.relative_to(folder).as_posix(): path for path in weights_files(folder)}
    for name in sorted({*card.files, *found}):
        if name not in found:
            raise VistokError(f"the weights of '{card.name}' are incomplete: '{folder / name}' is missing, reinstall.")
        if name not in card.files:
            raise VistokError(
                f"'{folder / name}' is not on the card of '{card.name}': remove it, or write the card anew."
            )
        if sha256(found[name]) != card.files[name]:
            raise VistokError(f"'{folder / name}' is not the file of the card of '{card.name}' (SHA-256): reinstall.")


def weights_files(folder: Path) -> list[Path]:
    """Returns all safetensors files in a model's folder, at any depth, sorted."""
    return sorted(path for path in folder.rglob("*.safetensors") if not path.name.startswith("."))
