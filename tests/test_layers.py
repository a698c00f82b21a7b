"""Imports point down: each layer uses those below it, and only the samplers' targets know particular models.

Imports under ``TYPE_CHECKING`` are exempt from the order: they name what a caller hands in, and nothing runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the top. Parts of one layer may import each other.
LAYERS = (
    ("cli",),
    ("studio",),
    ("pipelines", "sampling_job", "train", "doctor"),
    ("eval",),
    ("samplers", "projectors", "context"),
    ("models", "tokenizers"),
    ("zoo", "data"),
    ("ops",),
    ("errors", "progress", "files", "jobs", "runtime", "registry", "moved"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
FACADES = {"vistok", "vistok.__main__"}  # the package's own names and ``python -m vistok``
KNOW_MODELS = ("vistok.samplers.targets", "vistok.samplers.continuous")
# Protocols, what all transformers models share, and draft heads, which belong to drafters: no particular model.
GENERAL = (
    "vistok.models.interface",
    "vistok.models.attach",
    "vistok.models.codes",
    "vistok.models.families",
    "vistok.models.huggingface",
    "vistok.models.heads",
)


def parse_package() -> dict[str, ast.Module]:
    """The syntax tree of every module by its dotted name."""
    paths = (ROOT / "vistok").rglob("*.py")
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8")) for path, name in names.items()}


def find_imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """The modules of the package that a tree imports at any depth, but for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            full = (f"{node.module}.{name.name}" for name in node.names)
            yield from (name if name in modules else node.module for name in full)
        yield from find_imports(node, modules)


def is_wrong(module: str, imported: str) -> bool:
    """Whether an import points up, or teaches a sampler a particular model."""
    if module in FACADES or imported == "vistok":
        return imported.startswith("vistok.cli") and module != "vistok.__main__"
    part, other = module.split(".")[1], imported.split(".")[1]
    knows = part == "samplers" and other == "models" and not imported.startswith(GENERAL)
    return LEVEL[other] < LEVEL[part] or (knows and not module.startswith(KNOW_MODELS))


def test_imports_point_down():
    trees = parse_package()
    modules = set(trees)
    wrong = [(m, other) for m, tree in trees.items() for other in find_imports(tree, modules) if is_wrong(m, other)]
    assert sorted(wrong) == [], "imports that point up"


def test_every_part_of_the_package_has_its_layer():
    parts = {name.split(".")[1] for name in parse_package() if name not in FACADES}
    assert parts <= set(LEVEL)
