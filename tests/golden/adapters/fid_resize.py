"""Resizing conventions and the complete pre-processing of three libraries."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.eval.sets.resize import RESIZES, Resize, inception_input

SYSTEM = "fid_resize"

CONVENTIONS = {
    "clean_pil_bicubic_float": RESIZES["clean"],
    "torch_bicubic_antialias_clipped": RESIZES["clean"],
    "pil_bicubic_uint8": RESIZES["pil"],
    "pil_bilinear_float": Resize("bilinear", clip=True),
    "torch_bilinear_antialias": RESIZES["torchmetrics"],
    "pil_box_float": Resize("box", clip=True),
    "pil_lanczos_float": Resize("lanczos", clip=True),
    "tf1_bilinear": RESIZES["tf1"],
    "torch_bilinear_legacy": RESIZES["pytorch-fid"],
    "torch_bilinear_legacy_uint8": RESIZES["pytorch-fid"],
}


def resize(case: Case) -> None:
    images = case.inputs["image"].permute(2, 0, 1)[None]
    for name in list(case.outputs):
        resized = CONVENTIONS[name](images, tuple(case.config["out_hw"]))[0].permute(1, 2, 0)
        # .to(uint8) truncates, which is what the legacy quantised row does; the PIL rows are whole already.
        case.close(resized.to(case.outputs[name].dtype), name)


def preprocess(case: Case) -> None:
    images = case.inputs["image"].permute(2, 0, 1)[None]
    grid = case.inputs["rows_cols"]
    means = []
    for name, convention in (
        ("torch_fidelity", "tf1"),
        ("pytorch_fid", "pytorch-fid"),
        ("clean_fid", "clean"),
    ):
        pixels = inception_input(images, convention)[0]
        case.close(pixels[:, grid][:, :, grid], name)
        means.append(pixels.mean())
    case.close(torch.stack(means), "means")


ADAPTERS = {"resize": resize, "preprocess": preprocess}
