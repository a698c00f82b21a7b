"""Cards of the published xAR checkpoints. Nothing is fetched unless a user names the hub id."""

from __future__ import annotations

from vistok.zoo.model_card import ModelCard


def _xar(size: str, parameters: int, fid: float, guidance: float, steps: int) -> ModelCard:
    return ModelCard(
        name=f"xar-{size.lower()}",
        task="class-to-image",
        family="xar",
        parameters=parameters,
        files={f"xAR-{size}.pth": None},
        source="OliverRen/xAR",
        licence="unknown",  # the page of the weights could not be consulted
        preset=f"xAR-{size}",
        parts={"tokenizer": "mar-kl16"},
        data="ImageNet-1k",
        metrics={"FID": fid, "guidance scale": guidance, "steps an entity": steps},
        guidance=guidance,
        sampling={"num_steps": steps},
        paper="2502.20388",
    )


PUBLISHED: tuple[ModelCard, ...] = (
    _xar("B", 172_638_224, 1.72, 2.7, 40),
    _xar("L", 608_397_968, 1.28, 2.3, 50),
    _xar("H", 1_186_024_096, 1.24, 2.2, 50),
)
