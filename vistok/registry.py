"""Lazy tables: a name leads to an object whose module is imported when it is asked for, and not before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

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

    def __iter__(self) -> Iterator[str]:
        return iter((*self.table, *self.plugins))

    def __len__(self) -> int:
        return len(self.table) + len(self.plugins)

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in self.plugins


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
