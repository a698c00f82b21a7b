"""Reading checkpoints: tensors only, out of the wrappers that trainers put around them, and loaded strictly."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError

_WRAPPERS = ("model", "module", "state_dict")
_AVERAGES = ("ema", "model_ema")
_ZIP_MAGIC = b"PK\x03\x04"  # only the zip format of torch.save can be memory-mapped
_SHOWN = 2  # keys of a kind that an error names


def read_state_dict(path: str | Path, prefer_ema: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint, on the CPU and memory-mapped where the format allows.

    Args:
        path: a ``.safetensors`` file, or a file of ``torch.save``, which is read with ``weights_only=True``.
        prefer_ema: take the entry ``ema`` or ``model_ema``, where there is one, instead of the trained weights.

    Returns:
        Tensors by key, out of the entries ``model``, ``module`` (DeepSpeed), ``state_dict`` or an average, without the
        prefixes of DistributedDataParallel and of ``torch.compile``.

    Raises:
        VistokError: the file is absent, damaged, holds more than data, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        seen = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise VistokError(f"'{path}' {seen}: name a .safetensors or .pt file")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
    except OSError as error:
        raise VistokError(f"cannot read '{path}' ({error.strerror})") from error
    checkpoint = _read(path, mmap=magic == _ZIP_MAGIC)
    return _without_prefixes(_unwrap(checkpoint, path, prefer_ema))


def _read(path: Path, mmap: bool) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise VistokError(f"'{path}' is truncated or no safetensors file: fetch it again") from error
    try:
        # Published training checkpoints keep their command line in a Namespace, which only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the sentence that says it all
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file makes the readers raise a dozen types
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
        if refused:
            raise VistokError(
                f"'{path}' holds a Python object ({refused[1]}) that could run code when it is read, so it was not "
                "loaded: ask for the weights as .safetensors"
            ) from error
        raise VistokError(
            f"'{path}' is truncated, damaged or no checkpoint: fetch it again, or name a .safetensors or .pt file"
        ) from error


def _is_state_dict(entry: Any) -> bool:
    return isinstance(entry, Mapping) and bool(entry) and all(isinstance(value, Tensor) for value in entry.values())


def _unwrap(checkpoint: Any, path: Path, prefer_ema: bool) -> Mapping[str, Tensor]:
    if _is_state_dict(checkpoint):
        return checkpoint
    names = (*_AVERAGES, *_WRAPPERS) if prefer_ema else (*_WRAPPERS, *_AVERAGES)
    entries = checkpoint if isinstance(checkpoint, Mapping) else {}
    for name in names:
        if _is_state_dict(entries.get(name)):
            return entries[name]
    found = ", ".join(str(key) for key in list(entries)[:8]) or type(checkpoint).__name__
    raise VistokError(f"'{path}' holds no weights (found: {found}; expected tensors, or one of {', '.join(names)})")


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop ``_orig_mod.`` wherever ``torch.compile`` put it, and ``module.`` where every key begins with it."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    if all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    return plain


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    drop: Iterable[str] = (),
    variants: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> None:
    """Load weights into a module: no key missing, none left over, every shape equal.

    Args:
        module: receives the weights, in its own dtype.
        state: tensors by key.
        what: what the module is, for the sentence, e.g. ``"GPT-B"``.
        drop: regular expressions of whole keys that carry no weights and are passed over.
        variants: builders of the known variants; when the weights do not fit, the one that they fit is named.

    Raises:
        VistokError: the weights do not fit.
    """
    dropped = [re.compile(pattern) for pattern in drop]
    state = {key: value for key, value in state.items() if not any(p.fullmatch(key) for p in dropped)}
    shapes = _shapes(state)
    expected = _shapes(module.state_dict())
    if shapes == expected:
        module.load_state_dict(state)
        return
    problems = [
        _listed("lacks", [key for key in expected if key not in shapes]),
        _listed("has the unexpected", [key for key in shapes if key not in expected]),
        _listed(
            "has other shapes:",
            [
                f"{key} is {list(shapes[key])}, expected {list(expected[key])}"
                for key in expected
                if shapes.get(key, expected[key]) != expected[key]
            ],
        ),
    ]
    complaints = " and ".join(filter(None, problems))
    guess = _guess(shapes, variants or {})
    if guess:
        raise VistokError(f"the checkpoint is a {guess}, not a {what}: name that variant (it {complaints})")
    raise VistokError(f"the checkpoint is not a {what}: it {complaints}; name one that belongs to this model")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def _listed(verb: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{verb} {', '.join(items[:_SHOWN])}{more}"


def _guess(shapes: Mapping[str, torch.Size], variants: Mapping[str, Callable[[], nn.Module]]) -> str | None:
    """The variant whose keys and shapes are exactly these; variants are built without memory."""
    for name, build in variants.items():
        with torch.device("meta"):
            if _shapes(build().state_dict()) == shapes:
                return name
    return None
