"""Recipes: what to train, as plain YAML over plain dataclasses."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from vistok.errors import VistokError
from vistok.files import to_json
from vistok.ops.noise import check_seed
from vistok.train.options import read_options

# Entries that change how a run is watched or how long it is, and not what it learns by then.
_FREE = ("aliases", "compile", "steps", "log_every", "eval_every", "save_every", "guidance", "temperature", "sampling")


@dataclass(frozen=True)
class Optimization:
    """How the weights move.

    Attributes:
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon for the hidden weight matrices; 0 gives every weight to AdamW.
        betas, weight_decay: of AdamW; decay acts on tensors of two or more dimensions.
        warmup: steps of linear warm-up.
        final_lr: fraction of the peak that the cosine ends at.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones that are evaluated and exported; 0 averages nothing.
    """

    lr: float = 1e-4
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup: int = 100
    final_lr: float = 0.1
    clip: float = 1.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "weight_decay", "warmup", "final_lr", "clip"):
            if not 0 <= getattr(self, name) < math.inf:  # false of NaN as well
                raise VistokError(f"'optimization.{name}' must be 0 or more, got {getattr(self, name)}.")
        if not all(0 <= each < 1 for each in (*self.betas, self.ema)):
            raise VistokError(
                f"'optimization.betas' and 'optimization.ema' lie in [0, 1), got {list(self.betas)} and {self.ema}."
            )


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        name: name of the model that comes out.
        task: which of ``vistok.train.tasks`` trains it.
        aliases: other names that lead to it.
        seed: of initial weights, data order and dropout.
        steps: optimizer steps.
        batch_size: samples per step over all processes.
        precision: ``fp32`` or ``bf16`` autocast.
        compile: train through ``torch.compile``.
        log_every, eval_every, save_every: steps between log lines, evaluations and checkpoints.
        optimization: see Optimization.
        model: the task's model configuration.
        data: the task's data configuration.
        init: where the run starts from: nothing, or embedded model names by role.
        guidance, temperature, sampling: for the card of a generator, the scale of guidance, the temperature and the
            samplers' options that suit it.
    """

    name: str
    task: str
    steps: int
    batch_size: int
    aliases: tuple[str, ...] = ()
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 100
    optimization: Optimization = field(default_factory=Optimization)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    temperature: float | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise VistokError(f"'{name}' must be at least 1, got {getattr(self, name)}.")
        if self.name in ("", ".", "..") or re.search(r"[/\\]", self.name):
            raise VistokError(f"'name' is that of a model and of its folder, got {self.name!r}: write a word.")
        check_seed(self.seed)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a recipe from a YAML file.

        Raises:
            VistokError: no such file, not YAML, an entry that is unknown, missing or of another type, or a number out
                of range.
        """
        try:
            entries = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise VistokError(f"no recipe at '{path}': give the path of a YAML file, as those in recipes/.") from None
        except OSError as error:
            raise VistokError(f"cannot read the recipe '{path}': {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise VistokError(f"'{path}' is not a YAML recipe: {str(error).splitlines()[0]}.") from None
        if not isinstance(entries, dict):
            raise VistokError(f"'{path}' is not a recipe: expected entries such as 'name:' and 'task:'.")
        try:
            return read_options(cls, entries, "")
        except VistokError as error:
            raise VistokError(f"'{path}': {error}") from None

    def to_dict(self) -> dict:
        """Returns the recipe as plain JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns the recipe as one line of JSON."""
        return to_json(self.to_dict())

    def changed_from(self, earlier: str) -> list[str]:
        """Returns which entries that count for the weights are others than in an earlier recipe's JSON, such as
        ``optimization.lr``.
        """
        old, new = (_flat(json.loads(text)) for text in (earlier, self.to_json()))
        return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _flat(entries: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in entries.items():
        if name in _FREE:
            continue
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            found[name] = value
    return found
