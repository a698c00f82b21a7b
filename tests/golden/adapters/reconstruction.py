"""Centre crop, quantisation, PSNR and SSIM."""

from __future__ import annotations

import torch
from PIL import Image

from tests.golden.case import Case
from vistok.data.images import center_crop as crop_picture
from vistok.eval.reconstruction.metrics import llamagen_quality, psnr, quantise, ssim

SYSTEM = "reconstruction"


def center_crop(case: Case) -> None:
    cropped = crop_picture(Image.fromarray(case.inputs["image"].numpy()), case.config["size"])
    actual = torch.tensor(list(cropped.tobytes()), dtype=torch.uint8).view(cropped.height, cropped.width, 3)
    difference = (actual.int() - case.outputs["crop"].int()).abs()
    assert difference.max() <= case.atol  # the case allows a level for another Pillow version


def psnr_ssim(case: Case) -> None:
    target, output = (case.inputs[name].permute(2, 0, 1)[None] for name in ("target", "output"))
    for rounding, name in (("llamagen", "llamagen"), ("truncate", "trunc255"), ("round", "round")):
        case.close(quantise(output, rounding)[0].permute(1, 2, 0), f"uint8_{name}")
    # The range-1 rows compare pictures that were clamped but not quantised.
    a, b = (((images.double() + 1) / 2).clamp(0, 1) for images in (target, output))
    case.close((a - b).square().mean()[None], "mse_range1")
    case.close(psnr(a, b), "psnr_float_range1")
    case.close(ssim(a, b), "ssim_gauss11_range1")
    case.close(ssim(a, b, "uniform"), "ssim_uniform7_range1")
    published = llamagen_quality(target, output)
    case.close(published["psnr"], "psnr_llamagen")
    case.close(published["ssim"], "ssim_llamagen")


ADAPTERS = {"center_crop": center_crop, "psnr_ssim": psnr_ssim}
