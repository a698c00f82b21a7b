"""Cards of published checkpoints. Nothing is fetched unless a user names the hub id."""

from __future__ import annotations

from typing import Any

from vistok.zoo.model_card import ModelCard

PAPER = "2406.06525"
CLASS_REPO = "FoundationVision/LlamaGen"
TEXT_REPO = "peizesun/llamagen_t2i"
# The README of the LlamaGen repository, which links the class-conditional files, states MIT; the text repository's
# page could not be consulted.
CLASS_LICENCE = "MIT"
TEXT_LICENCE = "unknown"
CLASS_DATA, TEXT_DATA = "ImageNet-1k", "LAION-COCO 50M"
FINE_DATA = TEXT_DATA + ", 10M high-aesthetic images"


def _tokenizer(name: str, preset: str, parameters: int, file: str, text: bool, rfid: dict[str, float]) -> ModelCard:
    return ModelCard(
        name=name,
        task="image-tokenizer",
        family="vq",
        parameters=parameters,
        files={file: None},
        source=TEXT_REPO if text else CLASS_REPO,
        licence=TEXT_LICENCE if text else CLASS_LICENCE,
        preset=preset,
        data=FINE_DATA if text else CLASS_DATA,
        metrics={"rFID by image size": rfid} if rfid else {},
        paper=PAPER,
    )


def _class_model(size: str, image_size: int, parameters: int, fid: float, guidance: float) -> ModelCard:
    return ModelCard(
        name=f"llamagen-{size.lower()}-{image_size}",
        task="class-to-image",
        family="llamagen",
        parameters=parameters,
        files={f"c2i_{size}_{image_size}.pt": None},
        source=CLASS_REPO,
        licence=CLASS_LICENCE,
        preset=f"GPT-{size}",
        config={"model_type": "c2i", "block_size": (image_size // 16) ** 2},
        parts={"tokenizer": "llamagen-vq16"},
        data=CLASS_DATA,
        metrics={"FID": fid, "guidance scale": guidance},
        paper=PAPER,
    )


def _text_model(stage: int, image_size: int, data: str) -> ModelCard:
    config: dict[str, Any] = {
        "model_type": "t2i",
        "block_size": (image_size // 16) ** 2,
        "cls_token_num": 120,
        "caption_dim": 2048,
    }
    return ModelCard(
        name=f"llamagen-xl-t2i-{image_size}",
        task="text-to-image",
        family="llamagen",
        parameters=777_678_080,
        files={f"t2i_XL_stage{stage}_{image_size}.pt": None},
        source=TEXT_REPO,
        licence=TEXT_LICENCE,
        preset="GPT-XL",
        config=config,
        parts={"tokenizer": "llamagen-vq16-t2i", "text_encoder": "google/flan-t5-xl"},
        data=data,
        paper=PAPER,
    )


PUBLISHED: tuple[ModelCard, ...] = (
    _tokenizer("llamagen-vq16", "VQ-16", 71_883_403, "vq_ds16_c2i.pt", False, {"256": 2.19, "384": 0.94, "512": 0.70}),
    _tokenizer("llamagen-vq8", "VQ-8", 70_109_835, "vq_ds8_c2i.pt", False, {"256": 0.59, "384": 0.37, "512": 0.39}),
    _tokenizer("llamagen-vq16-t2i", "VQ-16", 71_883_403, "vq_ds16_t2i.pt", True, {}),
    _class_model("B", 256, 110_888_448, 5.46, 2.0),
    _class_model("B", 384, 110_888_448, 6.09, 2.25),
    _class_model("L", 256, 342_910_976, 3.80, 1.75),
    _class_model("L", 384, 342_910_976, 3.08, 2.0),
    _class_model("XL", 384, 774_699_520, 2.63, 1.75),
    _class_model("XXL", 384, 1_410_972_672, 2.34, 1.75),
    _class_model("3B", 384, 3_096_659_200, 2.19, 1.65),
    _text_model(1, 256, TEXT_DATA),
    _text_model(2, 512, FINE_DATA),
)
