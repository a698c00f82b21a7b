"""One training loop for every model: accelerate, clipping, EMA, warm-up and cosine, and resume at any step.

A task says what is trained and on what; the trainer says how. Data is a pure function of the step, and every random
draw of a step is seeded by it, so a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vistok.errors import VistokError
from vistok.files import atomic_path, check_writable, to_json
from vistok.ops.noise import derive_seed
from vistok.runtime import processes
from vistok.train.recipe import Optimization, Recipe


class Task(Protocol):
    """What a recipe's ``task`` names.

    Attributes:
        model: the module whose parameters are trained; its forward returns ``(loss, metrics)`` for a batch.
    """

    model: nn.Module

    def batch(self, step: int, rows: slice) -> Mapping[str, torch.Tensor]:
        """Returns rows of the batch of a step, a pure function of both."""

    def after_step(self, step: int) -> None:
        """Does what must happen between steps, such as reviving codes; by default nothing."""

    def evaluate(self) -> dict[str, float]:
        """Returns held-out metrics of the current weights of ``model``."""

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the trained model in the published layout, with its card."""


def parameter_groups(model: nn.Module, config: Optimization) -> list[torch.optim.Optimizer]:
    """Returns optimizers over all trainable parameters.

    Muon (Jordan et al., 2024) takes the linear maps inside stacks of blocks when ``muon_lr`` is set; AdamW takes the
    rest.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    stack = re.compile(r"\.(layers|block|(\w+_)?blocks|transformer)\.\d+\.")
    stacked = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and stack.search(f".{name}")
    }
    # The fused projection of nn.MultiheadAttention is a bare parameter.
    stacked |= {n for n, _ in named if n.endswith(".in_proj_weight") and stack.search(f".{n}")}
    hidden = [p for n, p in named if config.muon_lr and n in stacked]
    taken = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def learning_rate_scale(step: int, steps: int, config: Optimization) -> float:
    """Returns the factor of the learning rate: a linear warm-up to 1, then a cosine down to ``final_lr``."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Run a recipe's task to its last step.

    Args:
        recipe: the run.
        task: what is trained.
        directory: where checkpoints, ``metrics.jsonl`` and the exported model go; an earlier run there is resumed.
    """

    def __init__(self, recipe: Recipe, task: Task, directory: Path):
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.recipe, self.task, self.directory = recipe, task, directory
        check_writable(directory, folder=True)
        directory.mkdir(parents=True, exist_ok=True)
        processes()  # so that those without an accelerator meet as well
        self.accelerator = Accelerator(
            mixed_precision="bf16" if recipe.precision == "bf16" else "no",
            log_with="tensorboard",  # where it is installed (extra ``dev``)
            project_dir=directory,
            # Some steps leave weights out, such as those of a stage, or that published files have and nothing reads.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if recipe.batch_size % self.accelerator.num_processes:
            raise VistokError(
                f"a batch of {recipe.batch_size} cannot be shared by {self.accelerator.num_processes} processes: set "
                "'batch_size' to a multiple."
            )
        self.optimizers = parameter_groups(task.model, recipe.optimization)
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        task.model.to(self.accelerator.device)
        self.average = {n: p.detach().clone() for n, p in task.model.named_parameters() if p.requires_grad}
        self.step = 0
        self.seconds = 0.0
        self._resume()
        self._trim_log()
        self.model, *self.optimizers = self.accelerator.prepare(task.model, *self.optimizers)
        if recipe.compile:
            self.model = torch.compile(self.model)

    @property
    def checkpoint(self) -> Path:
        """The file that a killed run goes on from."""
        return self.directory / "checkpoint.pt"

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = {}
        device = self.accelerator.device  # cpu:0 among several processes, where torch.load knows only cpu
        try:
            state = torch.load(self.checkpoint, "cpu" if device.type == "cpu" else device, weights_only=True)
            self.task.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
            changed = self.recipe.changed_from(state["recipe"]) if state.get("recipe") else None
            reason = f"its {', '.join(changed)} differ" if changed else str(error).strip().splitlines()[0]
            raise VistokError(
                f"'{self.checkpoint}' is not of this recipe ({reason}): name another folder as --out, or remove it."
            ) from None
        self.average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
        self._check_earlier(state.get("recipe"))

    def _check_earlier(self, earlier: str | None) -> None:
        """Tells how the recipe of an earlier run differs; refuses where nothing of this one would be done."""
        changed = [] if earlier is None else self.recipe.changed_from(earlier)
        differ = f"the recipe has changed since (its {', '.join(changed)})" if changed else None
        if self.step > self.recipe.steps or (self.step == self.recipe.steps and differ):
            why = differ or f"the recipe asks for {self.recipe.steps}"
            raise VistokError(
                f"'{self.directory}' is trained to step {self.step}, and {why}: name another folder as --out, or ask "
                "for more steps."
            )
        if differ and self.accelerator.is_main_process:
            print(f"vistok: '{self.directory}' goes on from step {self.step}, and {differ}.", file=sys.stderr)

    @property
    def log(self) -> Path:
        """The file that metrics are written to, a line of JSON each."""
        return self.directory / "metrics.jsonl"

    def _trim_log(self) -> None:
        """Drops the lines of an earlier run whose steps, or whose last evaluation, this one does and logs again."""
        if not self.accelerator.is_main_process or not self.log.exists():
            return
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if self._is_settled(line)]
        if kept != lines:
            with atomic_path(self.log) as path:
                path.write_text("".join(kept), encoding="utf-8")

    def _is_settled(self, line: str) -> bool:
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):  # half a line of a machine that went down
            return False
        evaluated_again = self.step == self.recipe.steps and "loss" not in entry
        return step < self.step or (step == self.step and not evaluated_again)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.task.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "recipe": self.recipe.to_json(),
        }
        with atomic_path(self.checkpoint) as path:
            torch.save(state, path)

    def _log(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(to_json({"step": self.step, **entry}) + "\n")
        self.accelerator.log(entry, self.step)

    def train(self) -> dict[str, float]:
        """Trains to the last step, exports, and returns the held-out metrics."""
        from vistok.progress import progress

        recipe, config = self.recipe, self.recipe.optimization
        self.accelerator.init_trackers("tensorboard")
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = recipe.batch_size // world
        rows = slice(rank * share, (rank + 1) * share)
        self.model.train()
        began = time.perf_counter()
        with progress(f"train {recipe.name}", recipe.steps, self.step) as advance:
            while self.step < recipe.steps:
                torch.manual_seed(derive_seed(recipe.seed, self.step * world + rank))
                batch = {k: v.to(self.accelerator.device) for k, v in self.task.batch(self.step, rows).items()}
                with self.accelerator.autocast():
                    loss, metrics = self.model(**batch)
                self.accelerator.backward(loss)
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
                scale = learning_rate_scale(self.step, recipe.steps, config)
                for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * scale
                    optimizer.step()
                    optimizer.zero_grad()
                self.step += 1
                self._average(config.ema)
                self.task.after_step(self.step)
                advance()
                if self.step % recipe.log_every == 0:
                    now = time.perf_counter()
                    self.seconds, began = self.seconds + now - began, now
                    parts = self._mean({"loss": loss.detach(), **metrics})
                    told = {"grad_norm": float(norm), "lr_scale": scale, "seconds": self.seconds}
                    self._log({"loss": parts.pop("loss")} | told | parts)
                if self.step % recipe.save_every == 0:
                    self._save()
                if self.step % recipe.eval_every == 0 and self.step < recipe.steps:
                    self._log(self._evaluate())
        self._save()
        metrics = self._evaluate()
        self._log(metrics)
        if self.accelerator.is_main_process:
            with self._averaged():
                self.task.export(self.directory / "export", metrics, self.step)
        self.accelerator.end_training()
        return metrics

    def _mean(self, figures: dict[str, torch.Tensor]) -> dict[str, float]:
        """Returns figures of this process's rows as means over all processes."""
        values = torch.stack(
            [torch.as_tensor(value, device=self.accelerator.device).float() for value in figures.values()]
        )
        return dict(zip(figures, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        decay = min(decay, (1 + self.step) / (10 + self.step))  # short memory at first
        named = [(self.average[n], p.detach()) for n, p in self.task.model.named_parameters() if p.requires_grad]
        # Not an AveragedModel: that copies frozen teachers too, and has one decay for all steps.
        get_ema_multi_avg_fn(decay)(*map(list, zip(*named, strict=True)), self.step)

    def _averaged(self):
        return _Swapped(self.task.model, self.average)

    def _evaluate(self) -> dict[str, float]:
        self.task.model.eval()
        with torch.no_grad(), self._averaged():
            metrics = self.task.evaluate()
        self.task.model.train()
        return metrics


class _Swapped:
    """While open, the model holds the averaged weights."""

    def __init__(self, model: nn.Module, average: dict[str, torch.Tensor]):
        self.pairs = [(p, average[n]) for n, p in model.named_parameters() if n in average]

    def _swap(self) -> None:
        for parameter, average in self.pairs:
            parameter.data, average.data = average.data, parameter.data

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_) -> None:
        self._swap()
