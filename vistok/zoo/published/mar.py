"""Cards of the published MAR checkpoints and their autoencoder. Nothing is fetched unless a user names the hub id."""

from __future__ import annotations

from vistok.zoo.model_card import ModelCard

PAPER = "2406.11838"
REPO = "jadechoghari/mar"
# The code's repository states MIT; the page of the weights could not be consulted.
LICENCE = "unknown"


def _mar(name: str, preset: str, parameters: int, fid: float, inception_score: float, guidance: float) -> ModelCard:
    return ModelCard(
        name=f"mar-{name}",
        task="class-to-image",
        family="mar",
        parameters=parameters,
        files={f"mar-{name}.safetensors": None},
        source=REPO,
        licence=LICENCE,
        preset=preset,
        parts={"tokenizer": "mar-kl16"},
        data="ImageNet-1k",
        metrics={"FID": fid, "IS": inception_score, "guidance scale": guidance, "iterations": 256},
        paper=PAPER,
    )


PUBLISHED: tuple[ModelCard, ...] = (
    _mar("base", "MAR-B", 207_924_768, 2.31, 281.7, 2.9),
    _mar("large", "MAR-L", 478_326_304, 1.78, 296.0, 3.0),
    _mar("huge", "MAR-H", 942_403_104, 1.55, 303.7, 3.2),
    ModelCard(
        name="mar-kl16",
        task="image-tokenizer",
        family="kl",
        parameters=66_456_019,
        files={"kl16.safetensors": None},
        source=REPO,
        licence=LICENCE,
        preset="KL-16",
        data="ImageNet-1k",
        metrics={"rFID": 0.53},
        paper=PAPER,
    ),
)
