"""Reading checkpoints: tensors only, out of the wrappers that trainers put around them, and loaded strictly."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import re
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.files import atomic_path

_WRAPPERS = ("model", "module", "state_dict", "model_state_dict", "weights", "params", "net", "network")
_AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "model_ema_state_dict", "state_dict_ema", "params_ema")
# What torch.compile, FSDP and activation checkpointing put into the middle of names.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_ZIP_MAGIC = b"PK\x03\x04"  # only the zip format of torch.save can be memory-mapped
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHOWN = 2  # keys of a kind that an error names


def weights_file(folder: str | Path) -> Path:
    """Returns the weights in a model's folder: one file, or the index of several.

    Raises:
        VistokError: the folder holds none.
    """
    folder = Path(folder)
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise VistokError(
        f"there are no weights in '{folder}' (looked for {', '.join(_FOLDER_FILES)}): name another folder."
    )


def shard_files(index: str | Path) -> list[Path]:
    """Returns the files that an index of shards names, sorted; for any other file, that file.

    Raises:
        VistokError: the index is no such index, or names a file that is absent or lies elsewhere.
    """
    index = Path(index)
    if index.suffix != ".json":
        return [index]
    try:
        names = set(_weight_map(index).values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VistokError(f"'{index}' is not the index of a checkpoint in several files: fetch it again.") from error
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise VistokError(f"'{index}' names '{name}', which does not lie beside it: fetch that file too.")
    return [index.parent / name for name in sorted(names)]


def read_state_dict(path: str | Path, prefer_ema: bool = False) -> dict[str, Tensor]:
    """Returns the weights in a checkpoint, on the CPU and memory-mapped where the format allows.

    Args:
        path: a ``.safetensors`` file, a file of ``torch.save``, which is read with ``weights_only=True``, or the
            ``.index.json`` of a checkpoint in several files.
        prefer_ema: take the averaged weights, such as the entry ``ema``, where there are any, instead of the trained.

    Returns:
        Tensors by key, out of the entries that trainers put them in, such as ``model``, ``module`` (DeepSpeed) or
        ``state_dict`` (Lightning), also nested, without what DistributedDataParallel, FSDP, activation checkpointing
        and ``torch.compile`` add to names. Prefixes of the user's own are removed by ``load_strict``.

    Raises:
        VistokError: the file is absent, damaged, holds more than data, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        seen = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise VistokError(f"'{path}' {seen}: name a .safetensors or .pt file.")
    if path.suffix == ".json":
        return _read_shards(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
    except OSError as error:
        raise VistokError(f"cannot read '{path}' ({error.strerror}).") from error
    checkpoint = _read(path, mmap=magic == _ZIP_MAGIC)
    return _without_prefixes(_unwrap(checkpoint, path, prefer_ema))


def write_state_dict(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors, for :func:`read_state_dict`; the file is whole or absent.

    Args:
        path: where to.
        state: the tensors, on any device.
        metadata: entries of the file's head beside the format, which transformers asks for.
    """
    from safetensors.torch import save_file

    tensors = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


def _weight_map(index: Path) -> Any:
    return json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]


def _read_shards(index: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in shard_files(index):
        state |= read_state_dict(file)
    listed = _without_prefixes(_weight_map(index))
    if missing := sorted(set(listed) - set(state)):
        raise VistokError(
            f"the files of '{index}' are not complete: they {_listed('lack', missing)}; fetch them again."
        )
    return state


@cache
def _harmless() -> list[Any]:
    """Classes that hold values and run nothing, and that trainers leave beside the weights."""
    import numpy as np

    numbers = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdgFD"} | {np.dtypes.StrDType, np.dtypes.BytesDType}
    harmless: list[Any] = [argparse.Namespace, types.SimpleNamespace, np.dtype, np.ndarray, *numbers]
    harmless += [datetime.datetime, datetime.date, datetime.timedelta]
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):  # its names before and since numpy 2
        harmless += [(scalar, f"{package}.scalar"), (reconstruct, f"{package}._reconstruct")]
    for kind, pure in (("PosixPath", pathlib.PurePosixPath), ("WindowsPath", pathlib.PureWindowsPath)):
        for module in ("pathlib", "pathlib._local"):  # since Python 3.13
            harmless += [(pure, f"{module}.{kind}"), (pure, f"{module}.Pure{kind}")]
    return harmless


def _read(path: Path, mmap: bool) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise VistokError(f"'{path}' is truncated or no safetensors file: fetch it again.") from error
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, beside the sentence that says it all
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file makes the readers raise a dozen types
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
        if refused:
            raise VistokError(
                f"'{path}' holds a Python object ({refused[1]}) that could run code when it is read, so it was not "
                "loaded: ask for the weights as .safetensors."
            ) from error
        if "TorchScript" in str(error):
            raise VistokError(
                f"'{path}' is a TorchScript program and not a checkpoint, and programs are not run: name the weights "
                "themselves, as .safetensors or .pt."
            ) from error
        raise VistokError(
            f"'{path}' is truncated, damaged or no checkpoint: fetch it again, or name a .safetensors or .pt file."
        ) from error


def _tensors(entry: Any) -> dict[str, Tensor] | None:
    """The entry as a state dict, if it is one: named tensors, and beside them nothing that could hold more."""
    if not isinstance(entry, Mapping) or any(isinstance(value, Mapping | list | tuple) for value in entry.values()):
        return None
    found = {key: value for key, value in entry.items() if isinstance(value, Tensor)}
    return found if found and all(isinstance(key, str) for key in found) else None


def _search(entry: Any, names: tuple[str, ...]) -> dict[str, Tensor] | None:
    if (found := _tensors(entry)) is not None or not isinstance(entry, Mapping):
        return found
    for name in names:
        if isinstance(entry.get(name), Mapping) and (found := _search(entry[name], names)) is not None:
            return found
    flat = {key: value for key, value in entry.items() if isinstance(value, Tensor)}
    alone = [found for value in entry.values() if (found := _tensors(value)) is not None]
    if not flat and len(alone) == 1:  # under a name of the user's own, but there is no other
        return alone[0]
    return flat if flat and not alone and all(isinstance(key, str) for key in flat) else None


def _nameless_average(checkpoint: Any) -> str | None:
    """The entry of averaged weights that are a list of tensors, as torch-ema saves them; None if there is none."""

    def listed(value: Any) -> bool:
        return isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value)

    entries = checkpoint if isinstance(checkpoint, Mapping) else {}
    for name in _AVERAGES:
        value = entries.get(name)
        if listed(value) or (isinstance(value, Mapping) and any(map(listed, value.values()))):
            return name
    return None


def _unwrap(checkpoint: Any, path: Path, prefer_ema: bool) -> Mapping[str, Tensor]:
    names = (*_AVERAGES, *_WRAPPERS) if prefer_ema else (*_WRAPPERS, *_AVERAGES)
    if prefer_ema and (nameless := _nameless_average(checkpoint)) is not None:
        warnings.warn(
            f"the averaged weights of '{path}', its entry '{nameless}', are tensors without names, so the trained ones "
            "are taken: save them by name for the averaged.",
            stacklevel=2,
        )
    if (found := _search(checkpoint, names)) is not None:
        return found
    entries = checkpoint if isinstance(checkpoint, Mapping) else {}
    seen = ", ".join(str(key) for key in list(entries)[:8]) or type(checkpoint).__name__
    raise VistokError(f"'{path}' holds no weights (found: {seen}; expected tensors, or one of {', '.join(names)}).")


def _without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what wrappers put into names, ``module.`` where every key begins with it, and states that are no weights."""
    plain = {}
    for key, value in state.items():
        for infix in _INFIXES:
            key = key.replace(infix, "")
        if not key.endswith("_extra_state"):
            plain[key] = value
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    return plain


def without_common_prefix(state: Mapping[str, Tensor], expected: Collection[str]) -> Mapping[str, Tensor]:
    """Returns the weights without the prefix that a user's own wrapper gave to every key, as Lightning's ``model.``

    Args:
        state: tensors by key.
        expected: keys of the network; where one of them is among the weights, these are returned as they are.
    """
    if not state or any(key in expected for key in state):
        return state
    words = next(iter(state)).split(".")[:-1]
    for count in range(1, len(words) + 1):
        prefix = ".".join(words[:count]) + "."
        if not all(key.startswith(prefix) for key in state):
            return state
        if any(key.removeprefix(prefix) in expected for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    drop: Iterable[str] = (),
    variants: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> None:
    """Loads weights into a module: no key missing, none left over, every shape equal, no integers for real numbers,
    and every number finite.

    A prefix that all keys share and the module does not know is removed first.

    Args:
        module: receives the weights, in its own dtype.
        state: tensors by key.
        what: what the module is, for the sentence, e.g. ``"GPT-B"``.
        drop: regular expressions of whole keys that carry no weights: they are passed over, and may be absent.
        variants: builders of the known variants; when the weights do not fit, the one that they fit is named.

    Raises:
        VistokError: the weights do not fit.
    """
    own = module.state_dict()
    dropped = [re.compile(pattern) for pattern in drop]
    state = without_common_prefix(state, own.keys())
    state = {key: value for key, value in state.items() if key in own or not any(p.fullmatch(key) for p in dropped)}
    absent = [key for key in own if key not in state and any(p.fullmatch(key) for p in dropped)]
    shapes = _shapes(state)
    expected = {key: shape for key, shape in _shapes(own).items() if key not in absent}
    if shapes == expected:
        for key, value in state.items():
            if own[key].is_floating_point() and not value.is_floating_point():
                kind = str(value.dtype).removeprefix("torch.")
                raise VistokError(
                    f"the weights of {what} are not real numbers: {key} is {kind}; name weights that are not quantized."
                )
        for key, _ in module.named_parameters():
            if key in state and not _finite(state[key]):
                raise VistokError(
                    f"the weights of {what} are not all numbers: {key} holds nan or inf, as after a training that "
                    "diverged or numbers too large for float16; name an earlier checkpoint, or one of a wider format."
                )
        module.load_state_dict(state, strict=not absent)
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
        raise VistokError(f"the checkpoint is a {guess}, not a {what}: name that variant (it {complaints}).")
    if prefix := _prefix_of(shapes, expected):
        others = sorted({key.split(".")[0] for key in shapes if not key.startswith(prefix)})
        raise VistokError(
            f"the checkpoint holds a {what} under the prefix '{prefix}', beside {', '.join(others[:5])}: save the keys "
            f"that begin with '{prefix}' alone."
        )
    raise VistokError(f"the checkpoint is not a {what}: it {complaints}; name one that belongs to this model.")


def _finite(weights: Tensor) -> bool:
    if not weights.numel() or weights.is_meta:
        return True
    numbers = weights.float() if weights.element_size() == 1 else weights  # no minimum is known of float8
    low, high = numbers.aminmax()  # in one pass, and nan wins
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _prefix_of(shapes: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]) -> str | None:
    """The prefix under which the whole network stands among other weights."""
    first = next(iter(expected), None)
    candidates = [key.removesuffix(first) for key in shapes if first and key.endswith(f".{first}")]
    return next((p for p in candidates if all(shapes.get(p + key) == shape for key, shape in expected.items())), None)


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
