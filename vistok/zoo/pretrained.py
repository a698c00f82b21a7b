"""``from_pretrained`` and ``save_pretrained`` for networks whose shape is a dataclass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.files import writable_folder, write_json
from vistok.runtime import DTYPES, resolve_dtype
from vistok.zoo.checkpoint import load_strict, read_state_dict, weights_file, write_state_dict
from vistok.zoo.hub import Pushable
from vistok.zoo.model_card import CARD_FILE, ModelCard, write_card
from vistok.zoo.registry import card_of_file, card_of_folder, resolve

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FAMILY = "family"  # entry of a config.json
BASE = "base"  # part of a card
T = TypeVar("T", bound="Pretrained")


def read_entries(path: Path) -> dict[str, Any]:
    """Returns the entries of a ``config.json``.

    Raises:
        VistokError: it is absent or no JSON object.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        raise VistokError(f"'{path}' is missing or not JSON: name a folder that save_pretrained wrote.") from None
    if not isinstance(entries, dict):
        raise VistokError(f"'{path}' is not a JSON object: name a folder that save_pretrained wrote.")
    return entries


def family_of_folder(folder: Path) -> str | None:
    """Returns the family of the network that ``save_pretrained`` wrote into a folder; None if none is told there."""
    path = folder / CONFIG_FILE
    family = read_entries(path).get(FAMILY) if path.is_file() else None
    return family if isinstance(family, str) else None


def saved_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns the number format that weights are saved in, by its name or as it is; None for their own.

    Raises:
        VistokError: it is unknown, or one of integers.
    """
    if dtype is None:
        return None
    found = resolve_dtype(dtype)
    if not found.is_floating_point:
        raise VistokError(f"weights are saved as real numbers, not as {found}: name one of {', '.join(DTYPES)}.")
    return found


def _frozen(value: Any) -> Any:
    """Lists of a JSON file, also nested, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Pretrained(Pushable, nn.Module):
    """A network that is built from one frozen dataclass, the only argument of its class.

    Attributes:
        config: the dataclass.
        config_class: its type.
        presets: published shapes by name.
        family: name of the kind of network, written to ``config.json`` where there are others with the same use.
        published_entries: entries of the reference's own ``config.json`` and ours of the same meaning; None for those
            that say nothing about the network's function.
        dropped_keys: regular expressions of checkpoint entries that carry no weights.
        renamed_keys: regular expressions of parts of published keys, and what they are replaced by, in this order.
        idle_keys: entries that compute nothing and are part of the published files. Files beside a ``base`` leave them
            out.
        card: of the folder that the weights came from; what it tells about use travels with ``save_pretrained``. Its
            part ``base`` names a model whose weights are the rest of these.
        base_prefix: what the names of a ``base``'s weights have before them here.
    """

    config: Any
    config_class: ClassVar[type]
    family: ClassVar[str | None] = None
    published_entries: ClassVar[Mapping[str, str | None]] = {}
    presets: ClassVar[dict[str, Any]] = {}
    dropped_keys: ClassVar[tuple[str, ...]] = ()
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    idle_keys: ClassVar[tuple[str, ...]] = ()
    base_prefix: ClassVar[str] = ""
    card: ModelCard | None = None

    @classmethod
    def from_preset(cls: type[T], name: str, **overrides: Any) -> T:
        """Returns an untrained model of a published shape: ``LlamaGen.from_preset("GPT-XL", model_type="t2i")``."""
        if name not in cls.presets:
            raise unknown_name(f"{cls.__name__} preset", name, list(cls.presets))
        return cls.untrained(cls.config_class(**(asdict(cls.presets[name]) | overrides)))

    @classmethod
    def untrained(cls: type[T], config: Any) -> T:
        """Returns a network of a shape that a user wrote, with new weights.

        Raises:
            VistokError: there is none of this shape, such as one whose width its heads do not divide.
        """
        build: Callable[[Any], T] = cls  # each network has an ``__init__`` of its own
        try:
            return build(config)
        except VistokError:
            raise
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise VistokError(f"no {cls.__name__} has this shape ({reason}): mend its configuration.") from error

    @classmethod
    def from_pretrained(
        cls: type[T], name: str | Path, preset: str | None = None, prefer_ema: bool = False, **overrides: Any
    ) -> T:
        """Loads a model strictly: no key missing, none left over.

        Args:
            name: an embedded model, a folder written by ``save_pretrained``, a checkpoint file, or a hub id
                ``owner/name:file``.
            preset: shape of a checkpoint file; by default told by the published file's name.
            prefer_ema: take the averaged weights of a training checkpoint.
            overrides: entries that replace those of the preset, e.g. ``block_size``.

        Returns:
            The model in evaluation mode, float32, on the CPU.

        Raises:
            VistokError: the name leads nowhere, or the weights are not those of this model.
        """
        path = resolve(name)
        if path.is_dir():
            if preset is not None:
                raise VistokError(f"'{name}' tells its shape itself: leave the preset '{preset}' out.")
            model, weights = cls.untrained(cls.read_config(path / CONFIG_FILE)), weights_file(path)
            model.card = card_of_folder(path)
        else:
            preset, overrides = cls.preset_of_file(path, preset, overrides)
            model, weights = cls.from_preset(preset, **overrides), path
        state = cls.rename(read_state_dict(weights, prefer_ema=prefer_ema))
        base = None if model.card is None else model.card.parts.get(BASE)
        if base is not None:
            own = model.state_dict()
            shared = read_state_dict(weights_file(resolve(base)))
            rest = {key: own[key] for key in cls.idle_keys} | {cls.base_prefix + key: x for key, x in shared.items()}
            state = rest | state
        variants = {key: partial(cls.from_preset, key, **overrides) for key in cls.presets}
        load_strict(model, state, preset or cls.__name__, cls.dropped_keys, variants)
        return model.eval()

    @classmethod
    def preset_of_file(cls, path: Path, preset: str | None, overrides: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns the preset of a checkpoint file, and what replaces its entries: as given, else as its card says.

        Raises:
            VistokError: none is given, and the file has no published name.
        """
        card = card_of_file(path)
        if preset is None and card is not None and card.preset in cls.presets:
            return card.preset, {**card.config, **overrides}
        if preset is None:
            beside = (path.parent / CONFIG_FILE).is_file()
            folder = f", or the folder '{path.parent}' if its {CONFIG_FILE} tells it" if beside else ""
            raise VistokError(
                f"'{path.name}' is no published file name, so its shape is not known: give a preset, "
                f"one of {', '.join(cls.presets)}{folder}."
            )
        return preset, overrides

    @classmethod
    def rename(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns weights under our keys; keys that are ours already stay.

        Raises:
            VistokError: two of them become one.
        """
        renamed: dict[str, Tensor] = {}
        for key, value in state.items():
            for theirs, ours in cls.renamed_keys.items():
                key = re.sub(theirs, ours, key)
            if key in renamed:
                raise VistokError(f"the checkpoint holds {key} twice, under two names: keep one of them.")
            renamed[key] = value
        return renamed

    @classmethod
    def read_config(cls, path: Path) -> Any:
        """Returns the shape in a ``config.json``, in our entries or those of the reference's own hub classes.

        Raises:
            VistokError: it is absent, of another family, or has entries that this model does not know.
        """
        entries = read_entries(path)
        family = entries.pop(FAMILY, cls.family)
        if family != cls.family:
            raise VistokError(f"'{path}' is that of a {family}, not of a {cls.__name__}: load it as what it is.")
        for theirs, ours in cls.published_entries.items():
            value = entries.pop(theirs, None)
            if ours is None or value is None:
                continue
            if entries.setdefault(ours, value) != value:
                raise VistokError(f"'{path}' has {theirs} {value} and another {ours} {entries[ours]}: no such network.")
        if unknown := sorted(set(entries) - {f.name for f in fields(cls.config_class)}):
            raise VistokError(f"'{path}' has entries that a {cls.__name__} does not know: {', '.join(unknown)}.")
        try:
            return cls.config_class(**{key: _frozen(value) for key, value in entries.items()})
        except TypeError as error:
            raise VistokError(f"'{path}' is not the shape of a {cls.__name__} ({error}).") from error

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | str | None = None, without: Collection[str] = ()
    ) -> None:
        """Writes ``config.json`` and ``model.safetensors``, and the card of the weights if they have one.

        Args:
            folder: where to.
            dtype: of the floating-point weights in the file, such as ``float16``; unchanged if None.
            without: entries of weights that stand in the files of the card's ``base``.

        Raises:
            VistokError: the folder cannot be written, or the dtype is none of weights.
        """
        folder = writable_folder(folder)
        number_format = saved_dtype(dtype)
        family = {} if self.family is None else {FAMILY: self.family}
        write_json(folder / CONFIG_FILE, family | asdict(self.config))
        state = {
            key: value.to(number_format) if number_format and value.is_floating_point() else value
            for key, value in self.state_dict().items()
            if key not in without
        }
        write_state_dict(folder / WEIGHTS_FILE, state)
        if self.card is None:
            (folder / CARD_FILE).unlink(missing_ok=True)  # of what was there before
        else:  # not how it was trained and measured: the weights may have changed since
            write_card(folder, replace(self.card, aliases=(), recipe=None, seed=None, steps=None, metrics={}))
