"""Cards of the published ENAT checkpoints and their tokenizer. They are no files of the hub: a user names a path.

The published guidance counts from 0; the cards' counts from 1, as everywhere here.
"""

from __future__ import annotations

from vistok.zoo.model_card import ModelCard

PAPER = "2411.06959"


def _enat(size: int, file: str, guidance: float, annealed: float, metrics: dict[str, float]) -> ModelCard:
    grid = size // 16
    return ModelCard(
        name=f"enat-l-{size}",
        task="class-to-image",
        family="enat",
        parameters=574_298_113 + 1024 * (grid**2 - 256),
        files={file: None},
        source="",
        licence="unknown",  # the page of the weights could not be consulted
        preset="ENAT-L",
        config={"grid": grid},
        parts={"tokenizer": "enat-vqgan"},
        data="ImageNet-1k",
        metrics=metrics,
        guidance=guidance,
        sampling={"steps": 8, "annealed": annealed, "choice": 1.5},
        paper=PAPER,
    )


PUBLISHED: tuple[ModelCard, ...] = (
    _enat(256, "nnet_ema.pth", 3.5, 6.0, {"FID": 2.79}),
    _enat(512, "nnet_ema_512.pth", 4.5, 4.0, {}),
    ModelCard(
        name="enat-vqgan",
        task="image-tokenizer",
        family="maskgit_vqgan",
        parameters=54_515_587,
        files={"vqgan_jax_strongaug.ckpt": None},
        source="",
        licence="unknown",
        preset="MaskGIT-VQGAN",
        data="ImageNet-1k",
        paper=PAPER,
    ),
)
