"""Lazy tables: a name leads to an object whose module is imported when it is asked for, and not before."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from vistok.errors import VistokError, unknown_name

SCALARS = (bool, int, float, str)  # types of options that a text can give, in the order in which it is tried


class Option(NamedTuple):
    """An option that a text can give.

    Attributes:
        types: what it may be, of ``SCALARS``.
        default: None where there is none.
    """

    types: tuple[type, ...]
    default: Any

    def parse(self, text: str) -> Any:
        """Returns the value that a text stands for.

        Raises:
            ValueError: it is none of the types.
        """
        for kind in self.types:
            if kind is bool and text in ("true", "false"):
                return text == "true"
            try:
                if kind is not bool:
                    return kind(text)
            except ValueError:
                continue
        raise ValueError(text)


class Registry(Mapping[str, Any]):
    """Objects of one kind by name: the package's own, and those that installed packages add by entry points.

    Args:
        kind: what the objects are, for sentences, e.g. ``"sampler"``.
        table: the package's own, ``name -> "module:attribute"``; they come first and in this order.
        group: entry-point group in which other packages name theirs.
        needs: attributes that an object must have, by which a plugin that is none of the kind is told.
        made: a name leads to what makes an object, such as its class, and not to the object itself.

    Example:
        ``SAMPLERS["sjd"]`` imports ``vistok.samplers.drafters.jacobi`` and returns its ``SpeculativeJacobi``. A package
        adds a sampler with ``[project.entry-points."vistok.samplers"]`` and ``mine = "my_package:MySampler"``.
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str, needs: Sequence[str] = (), made: bool = True):
        self.kind, self.table, self.group, self.needs, self.made = kind, dict(table), group, needs, made

    @cached_property
    def claims(self) -> dict[str, list[EntryPoint]]:
        """Entry points of other packages by the name that they ask for, which may be taken."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            points = found.setdefault(point.name, [])
            if point not in points:  # a package may be found in two places
                points.append(point)
        return found

    @property
    def plugins(self) -> dict[str, EntryPoint]:
        """The first entry point of each name that is not the package's own."""
        return {name: points[0] for name, points in self.claims.items() if name not in self.table}

    def __getitem__(self, name: str) -> Any:
        """The object of a name.

        Raises:
            VistokError: no object has this name (the sentence names the nearest), or a plugin cannot be imported, is
                nothing of this kind, or shares its name with another one.
        """
        if name in self.table:
            module, _, attribute = self.table[name].partition(":")
            return getattr(import_module(module), attribute)
        if name not in self.plugins:
            raise unknown_name(self.kind, name, list(self))
        if len(self.claims[name]) > 1:
            first, second, *_ = (f"'{point.value}'" for point in self.claims[name])
            raise VistokError(
                f"the packages of {first} and {second} both add a {self.kind} '{name}': rename an entry point, or "
                "uninstall one of them."
            )
        what = f"the {self.kind} '{name}' of '{self.plugins[name].value}'"
        try:
            found = self.plugins[name].load()
        except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise VistokError(f"{what} cannot be imported ({said}): repair or uninstall that package.") from error
        if isinstance(found, type) if not self.made else not callable(found):
            seen, meant = ("an object", "its class") if self.made else ("a class", "an object of it")
            raise VistokError(f"{what} is {seen}: name {meant} as the entry point.")
        return require(what, found, self.needs)

    def usable(self) -> dict[str, Any]:
        """Returns all objects by name; a plugin that is not to be had, or takes a name of the package's own, is told
        by a warning, and left out.
        """
        for point in (point for name in self.table for point in self.claims.get(name, ())):
            warnings.warn(
                f"the package of '{point.value}' adds a {self.kind} '{point.name}', but there is one of this name: "
                "rename its entry point, or uninstall the package.",
                stacklevel=2,
            )
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except VistokError as error:
                warnings.warn(str(error), stacklevel=2)
        return found

    def options(self, name: str) -> dict[str, Option]:
        """Returns the options of the dataclass of a name that a text can give.

        Raises:
            VistokError: no object has this name.
        """
        kind = self[name]
        if not dataclasses.is_dataclass(kind):
            return {}
        hints = typing.get_type_hints(kind)
        found = {}
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            scalars = tuple(each for each in SCALARS if each in union)
            if field.init and scalars:
                found[field.name] = Option(scalars, None if field.default is dataclasses.MISSING else field.default)
        return found

    def build(self, text: str, own: Mapping[str, Any] | None = None) -> Any:
        """Returns an instance of the dataclass that a text names, with options behind colons: ``kid:subset_size=50``.

        Args:
            text: a name and options.
            own: options that suit the occasion; those of them that the object has take the place of its defaults.

        Raises:
            VistokError: an unknown name or option (the sentence names the nearest), a value of another type, or none
                where one must be given.
        """
        name, *rest = re.split(r":(?=[\w-]+=)", text)
        if ":" in name:
            raise VistokError(f"'{text}' does not name a {self.kind}: options are written as in name:option=value.")
        known = self.options(name)
        options = {key: value for key, value in (own or {}).items() if key in known}
        for entry in rest:
            key, _, value = entry.partition("=")
            key = key.replace("-", "_")
            if key not in known:
                if not known:
                    raise VistokError(f"the {self.kind} '{name}' has no options: leave {key} out.")
                raise unknown_name(f"option of the {self.kind} '{name}'", key, list(known))
            try:
                options[key] = known[key].parse(value)
            except ValueError:
                told = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}
                kinds = " or ".join(told[each] for each in known[key].types)
                raise VistokError(f"{key} of the {self.kind} '{name}' is {kinds}, not '{value}'.") from None
        kind = self[name]
        try:
            inspect.signature(kind).bind(**options)
        except TypeError as error:  # "missing a required argument: 'size'"
            raise VistokError(f"the {self.kind} '{name}' cannot be made of '{text}': {error}.") from None
        return kind(**options)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.table, *self.plugins))

    def __len__(self) -> int:
        return len(self.table) + len(self.plugins)

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in self.plugins


def require(what: str, found: Any, needs: Sequence[str]) -> Any:
    """Returns an object of another package, if it has the attributes that it needs.

    Args:
        what: it is, for the sentence.
        found: the object or its class.
        needs: names of attributes.

    Raises:
        VistokError: it lacks some, or its base leaves methods to it that it does not have.
    """
    absent = [name for name in needs if not hasattr(found, name)]
    absent += sorted(getattr(found, "__abstractmethods__", ()))
    if absent:
        raise VistokError(f"{what} has no {', '.join(absent)}: repair or uninstall that package.")
    return found


def lazy_attributes(package: str, table: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    Args:
        package: its ``__name__``.
        table: attribute to the module that holds it; a module's own name stands for the module.
    """

    def __getattr__(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module = import_module(table[name])
        value = module if table[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(table)
