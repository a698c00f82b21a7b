"""One-D-Piece: encode, proxy logits and pictures from prefixes."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.zoo.checkpoint import load_strict

SYSTEM = "one_d_piece"


def _config(case: Case) -> TiTokConfig:
    c = case.config
    shape = (c["width"], c["layers"], c["heads"])
    return TiTokConfig(
        shape,
        shape,
        num_tokens=c["nlat"],
        codebook_size=c["K"],
        token_size=c["tok"],
        l2_norm=c["codebook_use_l2_norm"],
        commitment=c["commitment_cost"],
        legacy=c["is_legacy"],
        variable_length=True,
        image_size=c["img"],
        patch_size=c["patch"],
        proxy_size=c["proxyK"],
        proxy_dim=c["proxyD"],
        proxy_channels=c["hid"],
        proxy_mult=tuple(c["mult"]),
        proxy_res_blocks=c["nres"],
    )


@torch.no_grad()
def codec(case: Case) -> None:
    model = TiTok(_config(case))
    load_strict(model, case.weights, case.id)
    model.eval()
    images = case.inputs["image"] * 2 - 1
    case.close(model.latents(images), "pre_quant")
    quantized = model.quantize(model.latents(images))
    case.close(quantized.indices, "indices")
    case.close(quantized.latents, "z_quantized")
    case.close(quantized.codebook_loss[None], "codebook_loss")
    case.close(quantized.commitment_loss[None], "commitment_loss")

    tokens = model.encode(images)
    case.close(tokens[:, None], "indices")
    lengths = case.config["decode_lengths"]
    for length in lengths:
        case.close(model.proxy_logits(model.quantize.codes(tokens[:, :length])), f"proxy_logits_len{length}")
        case.close((model.decode(tokens, length) + 1) / 2, f"image_len{length}")
    # One batch whose rows have different lengths gives the same pictures.
    rows = torch.tensor([i for _ in lengths for i in range(len(tokens))])
    ragged = torch.tensor([length for length in lengths for _ in range(len(tokens))])
    pictures = (model.decode(tokens[rows], ragged) + 1) / 2
    for length, part in zip(lengths, pictures.chunk(len(lengths)), strict=True):
        case.close(part, f"image_len{length}")


ADAPTERS = {"codec": codec}
