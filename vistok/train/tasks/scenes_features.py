"""Train ``scenes-features``, the embedded network of distribution metrics, to say what is on a scene."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vistok.data.files import atomic_path
from vistok.eval.scenes_features import SceneFeatures, SceneFeaturesObjective, training_batch
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.vq import HELD_OUT_SEED


class SceneFeaturesTask:
    """The ``scenes-features`` task."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.model = SceneFeaturesObjective(SceneFeatures())

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Freshly drawn scenes, half of them blurred and noisy."""
        start = step * self.recipe.batch_size + rows.start
        return training_batch(rows.stop - rows.start, self.recipe.data["seed"], start)

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and the heads' accuracies on held-out scenes."""
        device = self.model.heads.weight.device
        batch = training_batch(self.recipe.data.get("eval_scenes", 512), HELD_OUT_SEED, 0)
        loss, metrics = self.model(**{key: value.to(device) for key, value in batch.items()})
        return {"held_out_loss": float(loss)} | {key: float(value) for key, value in metrics.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the network without its heads."""
        from safetensors.torch import save_file

        network = self.model.network
        with atomic_path(directory / "model.safetensors") as path:
            save_file({key: value.contiguous().cpu() for key, value in network.state_dict().items()}, path)
        write_training_card(directory, self.recipe, network, "image-features", "scenes-features", metrics, steps)
