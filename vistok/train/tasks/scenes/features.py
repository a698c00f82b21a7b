"""Train ``scenes-features``, the embedded network of distribution metrics, to say what is on a scene."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vistok.data.scenes.splits import HELD_OUT, check_training_seed
from vistok.models.vision.inception import fold_batch_norms
from vistok.models.vision.scenes import SceneFeatures
from vistok.train.export import write_training_card
from vistok.train.options import NoEntries, read_options
from vistok.train.recipe import Recipe
from vistok.train.tasks.scenes.features_objective import SceneFeaturesObjective, training_batch
from vistok.train.trainer import Task
from vistok.zoo.checkpoint import write_state_dict

STATISTICS_BATCHES = 8  # from which the batch norms of the averaged weights are estimated


@dataclass(frozen=True, kw_only=True)
class SceneFeaturesData:
    """Entries of ``data`` of the ``scenes-features`` task.

    Attributes:
        seed: the world that is trained on.
        eval_pictures: how many held-out scenes are evaluated on.
    """

    seed: int
    eval_pictures: int = field(default=512, metadata={"was": "eval_scenes"})


class SceneFeaturesTask(Task):
    """The ``scenes-features`` task: see SceneFeaturesData."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(SceneFeaturesData, recipe.data, "data")
        check_training_seed(self.data.seed)
        for name in ("model", "init"):
            read_options(NoEntries, getattr(recipe, name), name)
        torch.manual_seed(recipe.seed)
        self.model = SceneFeaturesObjective(SceneFeatures()).to(memory_format=torch.channels_last)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns freshly drawn scenes, half of them blurred and noisy."""
        start = step * self.recipe.batch_size + rows.start
        return training_batch(rows.stop - rows.start, self.data.seed, start)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns loss and accuracies on held-out scenes, with batch norms that fit the averaged weights."""
        self._estimate_batch_norms()
        loss, metrics = self.model(**self._to_device(training_batch(self.data.eval_pictures, HELD_OUT, 0)))
        return {"held_out_loss": float(loss)} | {key: float(value) for key, value in metrics.items()}

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.model.heads.weight.device) for key, value in batch.items()}

    def _estimate_batch_norms(self) -> None:
        """The running statistics belong to the trained weights, not to their average: take plain means anew."""
        norms = [module for module in self.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.model.train()
        for step in range(STATISTICS_BATCHES):
            self.model(**self._to_device(self.batch(step, slice(0, 64))))
        self.model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the network without its heads, its batch norms folded into its convolutions, in half precision."""
        network = fold_batch_norms(copy.deepcopy(self.model.network).eval())
        state = {key: value.half() for key, value in network.state_dict().items()}
        write_state_dict(directory / "model.safetensors", state)
        write_training_card(directory, self.recipe, network, "image-features", "scenes-features", metrics, steps)
