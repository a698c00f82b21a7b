"""Cards of the published ControlAR checkpoints. Nothing is fetched unless a user names the hub id."""

from __future__ import annotations

from vistok.zoo.model_card import ModelCard


def _controlar(file: str, image_size: int, *controls: str) -> ModelCard:
    base = file.endswith("_base")
    return ModelCard(
        name=f"controlar-{file.lower().replace('_', '-')}",
        task="text-to-image",
        family="controlar",
        parameters=900_958_720 if base else 835_943_296,
        files={f"{file}.safetensors": None},
        source="wondervictor/ControlAR",
        licence="unknown",  # the page of the weights could not be consulted
        aliases=("controlar",) if file == "canny_MR" else (),
        preset="ControlAR-XL-base" if base else "ControlAR-XL",
        config={"block_size": (image_size // 16) ** 2, "controls": controls},
        parts={"tokenizer": "llamagen-vq16-t2i", "text_encoder": "google/flan-t5-xl"},
        guidance=4.0,
        paper="2410.02705",
    )


PUBLISHED: tuple[ModelCard, ...] = (
    _controlar("canny_MR", 768, "canny"),
    _controlar("depth_MR", 768, "depth"),
    _controlar("hed", 512, "hed"),
    _controlar("seg_cocostuff", 512, "seg"),
    _controlar("edge_base", 512, "canny", "hed", "lineart"),
    _controlar("depth_base", 512, "depth"),
)
