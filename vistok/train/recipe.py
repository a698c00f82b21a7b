"""Recipes: what to train, as plain YAML over plain dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import yaml

from vistok.errors import VistokError


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
    precision: str = "fp32"
    compile: bool = False
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 100
    optimization: Optimization = field(default_factory=Optimization)
    model: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    init: dict = field(default_factory=dict)
    guidance: float | None = None
    temperature: float | None = None
    sampling: dict = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            VistokError: no such file, not YAML, an unknown or a missing entry.
        """
        try:
            entries = yaml.safe_load(Path(path).read_text())
        except FileNotFoundError:
            raise VistokError(f"no recipe at '{path}': give the path of a YAML file, as those in recipes/.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise VistokError(f"'{path}' is not a YAML recipe: {str(error).splitlines()[0]}.") from None
        if not isinstance(entries, dict):
            raise VistokError(f"'{path}' is not a recipe: expected entries such as 'name:' and 'task:'.")
        entries["optimization"] = _build(Optimization, entries.get("optimization") or {}, path)
        return _build(cls, entries, path)

    def to_dict(self) -> dict:
        """The recipe as plain JSON values."""
        return asdict(self)


def _build(cls, entries: dict, path: str | Path):
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(entries) - known):
        raise VistokError(f"'{path}' has unknown entries {unknown}: known are {sorted(known)}.")
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(entries)):
        raise VistokError(f"'{path}' lacks the entries {missing}.")
    for name in ("betas", "aliases"):
        if name in entries:
            entries[name] = tuple(entries[name])
    return cls(**entries)
