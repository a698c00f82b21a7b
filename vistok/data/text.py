"""A text corpus that every machine has: the Python standard library's own sources and documentation strings.

What is found depends on the installed Python; which modules are held out depends on their names alone, so a module that
was held out in training is held out wherever the model is measured.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vistok.errors import VistokError

CORPUS = "the Python standard library's sources and documentation strings"  # what cards call it
# Tests, tables of character codes, and packages that recent Pythons no longer have.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "encodings", "distutils", "lib2to3"}
)
HELD_OUT_SHARE = 16  # one module in so many
SPLITS = ("train", "held-out")


def is_held_out(name: str) -> bool:
    """Returns whether a source of that name is held out: one in so many, whatever else there is."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: dotted name, such as ``email.parser``.
        source: its text.
    """

    name: str
    source: str

    @property
    def held_out(self) -> bool:
        """Whether no model of this package may train on it."""
        return is_held_out(self.name)

    @property
    def documentation(self) -> str:
        """Its documentation strings without their indentation, one paragraph each; empty if it has none."""
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse(self.source)) if isinstance(node, owners)]
        strings = [ast.get_docstring(node) for node in nodes]
        return "\n\n".join(inspect.cleandoc(string) for string in strings if string)


def check_split(split: str) -> None:
    """Raises VistokError if there is no such split."""
    if split not in SPLITS:
        raise VistokError(f"the corpus has the splits {' and '.join(SPLITS)}, not '{split}'.")


def modules(split: str) -> Iterator[Module]:
    """The modules of a split, by name.

    Args:
        split: ``train`` or ``held-out``.

    Raises:
        VistokError: unknown split, or this Python came without the sources of its library.
    """
    check_split(split)
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts)]
    if not paths:
        raise VistokError(f"there are no sources of the standard library in '{root}': use a Python that has them.")
    for path in sorted(paths):
        parts = path.relative_to(root).with_suffix("").parts
        try:
            module = Module(".".join(parts), path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # a handful of files declare an older encoding
        if module.held_out == (split == "held-out"):
            yield module


def documents(split: str) -> list[str]:
    """The texts of a split: every module's source, and behind it its documentation strings."""
    return [text for module in modules(split) for text in (module.source, module.documentation) if text]


def package_documents(name: str, split: str) -> list[str]:
    """Returns the sources of a split of an installed package, in the order of their paths: Python beside the corpus.

    Raises:
        VistokError: unknown split, or the package is not installed, or came without sources.
    """
    check_split(split)
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    texts = []
    for root in map(Path, (found and found.submodule_search_locations) or []):
        for path in sorted(root.rglob("*.py")):
            if is_held_out(path.relative_to(root.parent).as_posix()) != (split == "held-out"):
                continue
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    if not any(texts):
        raise VistokError(f"there are no {split} sources of a package '{name}': install it, or name another one.")
    return [text for text in texts if text]
