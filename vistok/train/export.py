"""The card of a model that a recipe trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from vistok.train.recipe import Recipe
from vistok.zoo.model_card import ModelCard, write_card
from vistok.zoo.registry import resolve


def write_training_card(
    directory: Path,
    recipe: Recipe,
    module: nn.Module,
    task: str,
    family: str,
    metrics: Mapping[str, float],
    steps: int,
    parts: Mapping[str, str] | None = None,
    paper: str | None = None,
    data: str | None = None,
) -> ModelCard:
    """Writes ``card.json`` beside the exported weights, with their SHA-256.

    Args:
        directory: where the weights were written.
        recipe: what trained them.
        module: the trained network, for its size.
        task, family, paper: as in ModelCard.
        parts: as in ModelCard; of relative paths the whole ones are written.
        metrics: held-out figures.
        steps: optimizer steps that were taken.
        data: what it was trained on; by default the scenes of the recipe's seed.
    """
    card = ModelCard(
        name=recipe.name,
        task=task,
        family=family,
        parameters=sum(p.numel() for p in module.parameters()),
        files={},
        source=str(directory),
        licence="Apache-2.0",
        aliases=recipe.aliases,
        parts={role: located(name) for role, name in (parts or {}).items()},
        recipe=f"recipes/{recipe.name}.yaml",
        seed=recipe.seed,
        steps=steps,
        data=data or f"vistok.data.scenes, seed {recipe.data['seed']}",
        metrics={key: float(f"{value:.4g}") for key, value in metrics.items()},
        guidance=recipe.guidance,
        temperature=recipe.temperature,
        sampling=recipe.sampling,
        paper=paper,
    )
    return write_card(directory, card)


def located(name: str) -> str:
    """Returns a name of weights that leads to the same ones from any folder: paths are made whole, others stay."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and resolve(name) == path else name
