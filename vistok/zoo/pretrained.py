"""``from_pretrained`` and ``save_pretrained`` for networks whose shape is a dataclass."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from vistok.errors import VistokError, unknown_name
from vistok.files import atomic_path
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.model_card import ModelCard, write_card
from vistok.zoo.registry import card_of_file, card_of_folder, resolve

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
T = TypeVar("T", bound="Pretrained")


class Pretrained:
    """Mixin of an ``nn.Module`` that is built from one frozen dataclass.

    Attributes:
        config_class: the dataclass.
        presets: published shapes by name.
        dropped_keys: regular expressions of checkpoint entries that carry no weights.
        card: of the folder that the weights came from; what it tells about use travels with ``save_pretrained``.
    """

    config_class: ClassVar[type]
    presets: ClassVar[dict[str, Any]] = {}
    dropped_keys: ClassVar[tuple[str, ...]] = ()
    card: ModelCard | None = None

    @classmethod
    def from_preset(cls: type[T], name: str, **overrides: Any) -> T:
        """An untrained model of a published shape, e.g. ``LlamaGen.from_preset("GPT-XL", model_type="t2i")``."""
        if name not in cls.presets:
            raise unknown_name(f"{cls.__name__} preset", name, list(cls.presets))
        return cls(cls.config_class(**(asdict(cls.presets[name]) | overrides)))

    @classmethod
    def from_pretrained(
        cls: type[T], name: str | Path, preset: str | None = None, prefer_ema: bool = False, **overrides: Any
    ) -> T:
        """Load a model strictly: no key missing, none left over.

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
            model, weights = cls(cls.read_config(path / CONFIG_FILE)), path / WEIGHTS_FILE
            model.card = card_of_folder(path)
        else:
            card = card_of_file(path)
            if preset is None and card is not None and card.preset in cls.presets:
                preset, overrides = card.preset, {**card.config, **overrides}
            if preset is None:
                raise VistokError(
                    f"'{path.name}' is no published file name, so its shape is not known: give a preset, "
                    f"one of {', '.join(cls.presets)}."
                )
            model, weights = cls.from_preset(preset, **overrides), path
        state = read_state_dict(weights, prefer_ema=prefer_ema)
        variants = {key: (lambda key=key: cls.from_preset(key, **overrides)) for key in cls.presets}
        load_strict(model, state, preset or cls.__name__, cls.dropped_keys, variants)
        return model.eval()

    @classmethod
    def read_config(cls, path: Path) -> Any:
        """The shape in a ``config.json``.

        Raises:
            VistokError: it is absent or has entries that this model does not know.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise VistokError(f"'{path}' is missing or not JSON: name a folder that save_pretrained wrote.") from None
        if unknown := sorted(set(entries) - {f.name for f in fields(cls.config_class)}):
            raise VistokError(f"'{path}' has entries that a {cls.__name__} does not know: {', '.join(unknown)}.")
        return cls.config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()})

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            folder: where to.
            dtype: of the floating-point weights in the file; unchanged if None.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        with atomic_path(folder / CONFIG_FILE) as path:
            path.write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        state = {
            key: (value.to(dtype) if dtype and value.is_floating_point() else value).contiguous().cpu()
            for key, value in self.state_dict().items()
        }
        with atomic_path(folder / WEIGHTS_FILE) as path:
            save_file(state, path, metadata={"format": "pt"})
        if self.card is not None:  # not how it was trained and measured: the weights may have changed since
            write_card(folder, replace(self.card, aliases=(), recipe=None, seed=None, steps=None, metrics={}))
