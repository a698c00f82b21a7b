"""From what a user names to a tokenizer, whatever its family."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vistok.errors import VistokError, unknown_name
from vistok.tokenizers.interface import Tokenizer
from vistok.zoo import card_of_file, cards, resolve, sha256
from vistok.zoo.pretrained import CONFIG_FILE, WEIGHTS_FILE

FAMILIES = {
    "vq": ("vistok.tokenizers.vq", "VQTokenizer"),
    "kl": ("vistok.tokenizers.kl", "KLAutoencoder"),
    "titok": ("vistok.tokenizers.titok", "TiTok"),
    "flextok": ("vistok.tokenizers.flextok", "FlexTok"),
    "tokenflow": ("vistok.tokenizers.tokenflow", "TokenFlow"),
    "maskgit_vqgan": ("vistok.tokenizers.maskgit_vqgan", "MaskGITVQGAN"),
}


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and what identifies it.

    Attributes:
        name: what the user named.
        sha256: of the weights file, in hex.
        tokenizer: in evaluation mode.
    """

    name: str
    sha256: str
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.tokenizer.parameters()).device


def tokenizer_class(family: str) -> Any:
    """The class of a family.

    Raises:
        VistokError: no tokenizer family has that name.
    """
    if family not in FAMILIES:
        raise unknown_name("tokenizer family", family, list(FAMILIES))
    module, name = FAMILIES[family]
    return getattr(import_module(module), name)


def load_tokenizer(name: str, preset: str | None = None, device: str | None = None) -> LoadedTokenizer:
    """Load an embedded tokenizer, a folder, a checkpoint file or a hub id, strictly.

    Args:
        name: what the user named.
        preset: shape of a checkpoint file whose name is not a published one.
        device: where it runs; the CPU by default.

    Raises:
        VistokError: the name leads nowhere, or to no tokenizer.
    """
    path = resolve(name)
    if path.is_dir():
        family, weights = _family_of_folder(path), path / WEIGHTS_FILE
    else:
        family, weights = _family_of_file(path, preset), path
    tokenizer = tokenizer_class(family).from_pretrained(path, preset).to(device or "cpu")
    return LoadedTokenizer(_identifier(name, path), sha256(weights), tokenizer)


def _identifier(name: str, path: Path) -> str:
    """A card's own name, or a path's last part: what says the same on another machine."""
    known = next((card.name for card in cards() if card.embedded and path.name == card.name), None)
    return known or (path.name if Path(name).expanduser().exists() else name)


def _family_of_folder(folder: Path) -> str:
    try:
        entries = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise VistokError(
            f"'{folder / CONFIG_FILE}' is missing or not JSON: name a folder that save_pretrained wrote."
        ) from None
    if "model" in entries:
        return "titok"
    if "_target_" in json.dumps(entries):
        return "flextok"
    for family in FAMILIES:
        if set(entries) == {field.name for field in fields(tokenizer_class(family).config_class)}:
            return family
    seen = ", ".join(list(entries)[:5])
    raise VistokError(f"'{folder / CONFIG_FILE}' is not the shape of a tokenizer (it has {seen}): name another folder.")


def _family_of_file(path: Path, preset: str | None) -> str:
    card = card_of_file(path)
    if preset is None and card is not None and card.family in FAMILIES:
        return card.family
    presets = {known: family for family in FAMILIES for known in tokenizer_class(family).presets}
    if preset is None:
        raise VistokError(
            f"'{path.name}' is no published file name of a tokenizer: give a preset, one of {', '.join(presets)}."
        )
    if preset not in presets:
        raise unknown_name("tokenizer preset", preset, list(presets))
    return presets[preset]
