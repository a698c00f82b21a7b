"""Entries of a recipe to frozen dataclasses: what is unknown, missing, of another type or negative is refused by its
name."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vistok.errors import VistokError

T = TypeVar("T")
Fraction = Annotated[float, "from 0 to 1"]  # an entry that is a share of something, or a probability
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "entries"}


def read_options(cls: type[T], entries: Any, where: str, given: Mapping[str, Any] | None = None) -> T:
    """Returns the dataclass ``cls`` with the entries of a recipe's section.

    A field whose metadata say ``was`` is also read under this older name, with a warning.

    Args:
        cls: a frozen dataclass whose annotations say the entries' types.
        entries: the section as YAML gave it; None is an empty one.
        where: its name in the recipe, for sentences; empty for the recipe itself.
        given: fields that the section must not set, because something else decides them.

    Raises:
        VistokError: an entry is unknown, missing, decided elsewhere, of another type than its field, or a number below
            0 or without end, which no entry means; or a share is beyond 1.
    """
    entries = {} if entries is None else entries
    if not isinstance(entries, Mapping):
        raise VistokError(f"'{where}' must hold entries, one a line, got {entries!r}.")
    entries, given = _renamed(cls, dict(entries), where), dict(given or {})
    known = {field.name: field for field in fields(cls) if field.init}
    section = f"'{where}'" if where else "the recipe"
    if unknown := [name for name in entries if name not in known]:
        raise VistokError(_unknown(section, str(unknown[0]), list(known)))
    if decided := [name for name in entries if name in given and entries[name] != given[name]]:
        raise VistokError(
            f"{_path(where, decided[0])} is decided by what 'init' and 'data' name ({given[decided[0]]}), got "
            f"{entries[decided[0]]!r}: leave it out."
        )
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in required if name not in entries and name not in given]:
        raise VistokError(f"{section} lacks the entries {', '.join(missing)}.")
    hints = get_type_hints(cls, include_extras=True)
    return cls(**given | {name: _read(hints[name], value, _path(where, name)) for name, value in entries.items()})


def check_agreement(config: Any, entries: Mapping[str, Any], where: str, free: tuple[str, ...] = ()) -> None:
    """Refuses entries that contradict the weights which a run goes on from.

    Args:
        config: shape of the loaded network, a dataclass.
        entries: the recipe's section.
        where: its name, for sentences.
        free: entries that a run may change.

    Raises:
        VistokError: an entry is unknown, of another type, or another one than the network's.
    """
    shape = {field.name: getattr(config, field.name) for field in fields(config)}
    wanted = read_options(type(config), entries, where, {k: v for k, v in shape.items() if k not in entries})
    for name in entries:
        if name not in free and getattr(wanted, name) != shape[name]:
            raise VistokError(
                f"{_path(where, name)} is {entries[name]!r}, but the weights that 'init' names have {shape[name]!r}: "
                "leave the entry out, or start from nothing."
            )


def start_network(
    cls: Any,
    name: str | None,
    entries: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    free: tuple[str, ...] = (),
) -> Any:
    """Returns the network that a run begins with: loaded where ``init`` names weights, else untrained.

    Args:
        cls: its class, a ``Pretrained``.
        name: of the weights to go on from; None for new ones of the shape that the entries say.
        entries: the recipe's section ``model``; they must agree with weights that are loaded.
        given: fields of the shape that something else decides: the section must not set them, and weights that are
            loaded must have them.
        free: entries that a run may change on weights that are loaded.

    Raises:
        VistokError: the name leads nowhere, an entry is unknown or another one than the weights', or there is no
            network of this shape.
    """
    if name is None:
        return cls.untrained(read_options(cls.config_class, entries, "model", given))
    network = cls.from_pretrained(name)
    check_agreement(network.config, entries, "model", free)
    check_shape(network.config, given or {}, name)
    return network


def check_shape(config: Any, shape: Mapping[str, Any], name: str) -> None:
    """Refuses a generator to go on from that does not fit what a recipe names.

    Args:
        config: of the generator.
        shape: what the data and the other networks ask for.
        name: of the generator, for the sentence.

    Raises:
        VistokError: an entry is another one.
    """
    for key, value in shape.items():
        if getattr(config, key) != value:
            raise VistokError(
                f"the generator '{name}' has {key} {getattr(config, key)}, but what 'init' and 'data' name asks for "
                f"{value}: name those that it was trained with."
            )


@dataclass(frozen=True)
class NoEntries:
    """A section that must be empty."""


def check_entries(entries: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuses entries of a section that is handed on to a configuration of transformers, which would take any.

    Raises:
        VistokError: an entry is not known.
    """
    if unknown := [name for name in entries if name not in known]:
        raise VistokError(_unknown(f"'{where}'", str(unknown[0]), list(known)))


def _path(where: str, name: str) -> str:
    return f"'{where}.{name}'" if where else f"'{name}'"


def _unknown(section: str, name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known)) or 'none'}."
    return f"{section} has an unknown entry '{name}': {hint}"


def _renamed(cls: type, entries: dict[str, Any], where: str) -> dict[str, Any]:
    for field in fields(cls):
        was = field.metadata.get("was")
        if was in entries and field.name not in entries:
            warnings.warn(
                f"{_path(where, was)} is {_path(where, field.name)} now: use that name.", FutureWarning, stacklevel=3
            )
            entries[field.name] = entries.pop(was)
    return entries


def _read(hint: Any, value: Any, path: str) -> Any:
    """The value as an annotation wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (each for each in arguments if each is not type(None))
        return _read(hint, value, path)
    if hint == Fraction:
        share = _read_scalar(float, value, path)
        if share > 1:
            raise VistokError(f"{path} is a share, from 0 to 1, got {value}.")
        return share
    if origin is Literal:
        if value not in arguments:
            raise VistokError(f"{path} is {value!r}, expected one of {', '.join(map(str, arguments))}.")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, path)
    if origin is dict:
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise _wrong(path, value, "entries")
        return {str(key): _read(arguments[1], each, f"{path[:-1]}.{key}'") for key, each in value.items()}
    if is_dataclass(hint):
        return value if isinstance(value, hint) else read_options(hint, value, path.strip("'"))
    if hint is Any:
        return value
    return _read_scalar(hint, value, path)


def _read_tuple(arguments: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise _wrong(path, value, "a list")
    if arguments[-1] is Ellipsis:
        return tuple(_read(arguments[0], each, path) for each in value)
    if len(value) != len(arguments):
        raise _wrong(path, value, f"a list of {len(arguments)}")
    return tuple(_read(hint, each, path) for hint, each in zip(arguments, value, strict=True))


def _read_scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        if kind in (int, float) and not 0 <= value < math.inf:  # false of NaN as well
            raise VistokError(f"{path} must be 0 or more, got {value}.")
        return value
    if kind is float and isinstance(value, str):
        try:  # YAML reads 1e-3 as text
            number = float(value)
        except ValueError:
            pass
        else:
            raise VistokError(f"{path} is the text {value!r}, which YAML takes for no number: write {_spelt(number)}.")
    raise _wrong(path, value, _KINDS.get(kind, kind.__name__))


def _spelt(number: float) -> str:
    mantissa, _, exponent = f"{number:e}".partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}"


def _wrong(path: str, value: Any, expected: str) -> VistokError:
    return VistokError(f"{path} must be {expected}, got {value!r}.")
