"""Lazy tables: a name leads to an object whose module is imported when it is asked for, and not before."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from vistok.errors import VistokError, unknown_name


class Registry(Mapping[str, Any]):
    """Objects of one kind by name: the package's own, and those that installed packages add by entry points.

    Args:
        kind: what the objects are, for sentences, e.g. ``"sampler"``.
        table: the package's own, ``name -> "module:attribute"``; they come first and in this order.
        group: entry-point group in which other packages name theirs.

    Example:
        ``SAMPLERS["sjd"]`` imports ``vistok.samplers.drafters.jacobi`` and returns its ``SpeculativeJacobi``. A package
        adds a sampler with ``[project.entry-points."vistok.samplers"]`` and ``mine = "my_package:MySampler"``.
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str):
        self.kind, self.table, self.group = kind, dict(table), group

    @cached_property
    def plugins(self) -> dict[str, EntryPoint]:
        """Entry points of other packages by name.

        Raises:
            VistokError: one takes a name that is taken.
        """
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self.table or found.get(point.name, point) != point:
                raise VistokError(
                    f"the package of '{point.value}' adds a {self.kind} '{point.name}', but there is one of this name: "
                    "rename its entry point, or uninstall the package."
                )
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Any:
        """The object of a name.

        Raises:
            VistokError: no object has this name (the sentence names the nearest), or a plugin cannot be imported.
        """
        if name in self.table:
            module, _, attribute = self.table[name].partition(":")
            return getattr(import_module(module), attribute)
        if name not in self.plugins:
            raise unknown_name(self.kind, name, list(self))
        try:
            return self.plugins[name].load()
        except (ImportError, AttributeError) as error:
            raise VistokError(
                f"the {self.kind} '{name}' of '{self.plugins[name].value}' cannot be imported ({error}): "
                "repair or uninstall that package."
            ) from error

    def build(self, text: str) -> Any:
        """Returns an instance of the dataclass that a text names, with options behind colons: ``"kid:subset_size=50"``.

        Raises:
            VistokError: unknown name or option (the sentence names the nearest), or a value that an option does not
                take.
        """
        name, *settings = text.split(":")
        kind = self[name]
        options: dict[str, Any] = {}
        known = {f.name: f for f in dataclasses.fields(kind) if f.init} if dataclasses.is_dataclass(kind) else {}
        types = get_type_hints(kind) if settings else {}
        for setting in settings:
            option, equals, value = setting.partition("=")
            if not equals:
                raise VistokError(f"'{setting}' of the {self.kind} '{name}' has no value: write {name}:option=value.")
            if option not in known:
                raise unknown_name(f"option of the {self.kind} '{name}'", option, list(known))
            options[option] = _value(f"{name}:{option}", value, types[option])
        return kind(**options)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.table, *self.plugins))

    def __len__(self) -> int:
        return len(self.table) + len(self.plugins)

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in self.plugins


def _value(option: str, text: str, kind: Any) -> Any:
    """An option's value out of its text: a number, a truth value, or the text itself."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise VistokError(f"{option} is '{text}', expected {expected}.") from None


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
