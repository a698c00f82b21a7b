"""From what a user names to a tokenizer, whatever its family."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from vistok.errors import VistokError, unknown_name
from vistok.registry import Registry, require
from vistok.runtime import resolve_device
from vistok.tokenizers.interface import Capabilities, Tokenizer
from vistok.zoo import card_of_file, cards, is_embedded, resolve, sha256
from vistok.zoo.checkpoint import shard_files, weights_file
from vistok.zoo.pretrained import CONFIG_FILE, FAMILY, read_entries
from vistok.zoo.registry import local_path

TOKENIZERS = Registry(
    "tokenizer family",
    {
        "vq": "vistok.tokenizers.vq:VQTokenizer",
        "vq_upscaled": "vistok.tokenizers.vq_upscaled:UpscaledVQ",
        "kl": "vistok.tokenizers.kl:KLAutoencoder",
        "titok": "vistok.tokenizers.titok:TiTok",
        "flextok": "vistok.tokenizers.flextok:FlexTok",
        "seed": "vistok.tokenizers.seed:Seed",
        "tokenflow": "vistok.tokenizers.tokenflow:TokenFlow",
        "maskgit_vqgan": "vistok.tokenizers.maskgit_vqgan:MaskGITVQGAN",
    },
    "vistok.tokenizers",
)


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
        """Where it runs: that of its weights, or the CPU where it has none."""
        return next((tensor.device for tensor in _state(self.tokenizer).values()), torch.device("cpu"))


def load_tokenizer(name: str, preset: str | None = None, device: torch.device | str | None = "cpu") -> LoadedTokenizer:
    """Loads an embedded tokenizer, a folder, a checkpoint file or a hub id, strictly.

    A family that another package adds by an entry point is loaded from a folder whose ``config.json`` names it as
    ``family``, by its ``from_pretrained(folder, preset)``; the entry point's own name stands for what it gives when it
    is called without arguments.

    Args:
        name: what the user named.
        preset: shape of a checkpoint file whose name is not a published one.
        device: where it runs, see ``resolve_device``.

    Raises:
        VistokError: the name leads nowhere, or to no tokenizer.
    """
    place = resolve_device(device)
    if not is_embedded(name) and name in TOKENIZERS.plugins:
        tokenizer = _of_plugin(name, TOKENIZERS[name], place)
        return LoadedTokenizer(name, _digest(name, tokenizer), tokenizer)
    path = resolve(name)
    if path.is_dir():
        family, weights = _family_of_folder(path), None
    else:
        family, weights = _family_of_file(path, preset), path
    found = TOKENIZERS[family]
    if not hasattr(found, "from_pretrained"):
        raise VistokError(f"the tokenizer family '{family}' reads no folders or files: name it as '{family}'.")
    if family in TOKENIZERS.plugins:
        tokenizer = _of_plugin(family, found.from_pretrained, place, path, preset)
        digest = _digest(family, tokenizer)
    else:
        tokenizer = _on(found.from_pretrained(path, preset), place)
        digest = _sha256(weights_file(path) if weights is None else weights)
    return LoadedTokenizer(_identifier(name, path), digest, tokenizer)


def _of_plugin(family: str, make: Callable[..., Any], device: torch.device, *source: Any) -> Any:
    """Makes a tokenizer of another package, from a folder and a preset or without arguments.

    Raises:
        VistokError: it is not made of these, or is no tokenizer.
    """
    what = f"the tokenizer family '{family}' of '{TOKENIZERS.plugins[family].value}'"
    try:
        inspect.signature(make).bind(*source)
    except TypeError as error:  # "missing a required argument: 'levels'"
        of = "a folder and a preset" if source else "its name alone"
        raise VistokError(f"{what} is not made of {of}: {error}.") from None
    tokenizer = require(what, make(*source), ("capabilities", "encode", "decode"))
    if not isinstance(tokenizer.capabilities, Capabilities):
        raise VistokError(f"{what} must state its capabilities as vistok.tokenizers.Capabilities.")
    return _on(tokenizer, device)


def _on(tokenizer: Any, device: torch.device) -> Any:
    return tokenizer.to(device) if hasattr(tokenizer, "to") else tokenizer


def _state(tokenizer: Any) -> dict[str, torch.Tensor]:
    return tokenizer.state_dict() if isinstance(tokenizer, torch.nn.Module) else {}


def _digest(family: str, tokenizer: Any) -> str:
    """What identifies a tokenizer of another package, whose files are not known: its family and its weights."""
    digest = hashlib.sha256(family.encode())
    for key, value in sorted(_state(tokenizer).items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(weights: Path) -> str:
    """SHA-256 of a weights file; of several, that of theirs."""
    digests = [sha256(file) for file in shard_files(weights)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _identifier(name: str, path: Path) -> str:
    """A card's own name, or a path's last part: what says the same on another machine."""
    known = next((card.name for card in cards() if card.embedded and path.name == card.name), None)
    return known or (path.name if local_path(name) is not None else name)


def _family_of_folder(folder: Path) -> str:
    """What ``config.json`` says; by its entries where it is a published one, or written before it said so."""
    entries = read_entries(folder / CONFIG_FILE)
    if FAMILY in entries:
        family = str(entries[FAMILY])
        if family not in TOKENIZERS:
            raise unknown_name("tokenizer family", family, list(TOKENIZERS))
        return family
    if "model" in entries:
        return "titok"
    if "_target_" in json.dumps(entries):
        return "flextok"
    absent: dict[str, int] = {}  # by family that knows all entries: how many of its own are not there
    for family in TOKENIZERS.table:
        found = TOKENIZERS[family]
        own = {field.name for field in fields(found.config_class)}
        if set(entries) <= own | set(found.published_entries):
            absent[family] = len(own - set(entries))
    if entries and absent:
        return min(absent, key=absent.__getitem__)
    seen = ", ".join(list(entries)[:5])
    raise VistokError(f"'{folder / CONFIG_FILE}' is not the shape of a tokenizer (it has {seen}): name another folder.")


def _family_of_file(path: Path, preset: str | None) -> str:
    card = card_of_file(path)
    if preset is None and card is not None and card.family in TOKENIZERS:
        return card.family
    kinds = TOKENIZERS.usable().items()
    presets = {known: family for family, kind in kinds for known in getattr(kind, "presets", {})}
    if preset is None:
        raise VistokError(
            f"'{path.name}' is no published file name of a tokenizer: give a preset, one of {', '.join(presets)}."
        )
    if preset not in presets:
        raise unknown_name("tokenizer preset", preset, list(presets))
    return presets[preset]
