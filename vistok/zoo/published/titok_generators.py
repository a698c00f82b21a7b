"""Cards of the published generators of TiTok's and One-D-Piece's tokens. Nothing is fetched unless a user names the hub
id.

Guidance counts from 1, as everywhere here. The published scale of TiTok-L-32, which is linear, counts from 0.
"""

from __future__ import annotations

from typing import Any

from vistok.zoo.model_card import ModelCard

BY_LOGITS = {"schedule": "arccos", "order": "logit"}


def _generator(
    name: str, preset: str, parameters: int, source: str, tokenizer: str, fid: float, **use: Any
) -> ModelCard:
    return ModelCard(
        name=f"maskgit-{name}",
        task="class-to-image",
        family="titok-maskgit",
        parameters=parameters,
        files={"model.safetensors": None},
        source=source,
        licence="Apache-2.0",
        preset=preset,
        parts={"tokenizer": tokenizer},
        data="ImageNet-1k",
        metrics={"FID": fid},
        **use,
    )


def _titok(size: str, tokens: int, parameters: int, fid: float, **use: Any) -> ModelCard:
    name = f"titok-{size.lower()}-{tokens}"
    source = f"yucornetto/generator_titok_{size.lower()}{tokens}_imagenet"
    preset = f"MaskGIT-TiTok-{size}-{tokens}"
    return _generator(name, preset, parameters, source, name, fid, paper="2406.07550", **use)


def _one_d_piece(size: str, fid: float, **use: Any) -> ModelCard:
    name = f"one-d-piece-{size.lower()}-256"
    source = f"turing-motors/MaskGIT_One-D-Piece-{size}-256"
    return _generator(name, "MaskGIT-One-D-Piece-256", 177_374_464, source, name, fid, paper="2501.10064", **use)


PUBLISHED: tuple[ModelCard, ...] = (
    _titok(
        "L", 32, 177_202_432, 2.77, guidance=5.5, sampling={"steps": 8, "annealed": 9.5, "choice": 9.5, **BY_LOGITS}
    ),
    _titok("B", 64, 177_227_008, 2.48, sampling=BY_LOGITS),
    _one_d_piece("S", 2.67, sampling=BY_LOGITS),
    _one_d_piece(
        "B",
        2.70,
        guidance=8.5,
        sampling={"steps": 16, "annealed": 2.5, "choice": 2.5, "guidance_schedule": "power-cosine", **BY_LOGITS},
    ),
    _one_d_piece("L", 2.35, sampling=BY_LOGITS),
)
