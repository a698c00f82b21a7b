"""MAR's network and training masks: strict loading of published layouts, and what the masks hide."""

from __future__ import annotations

import argparse

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.mar import MAR, Diffusion, MARConfig, respace
from vistok.train.tasks.mar import draw_mask

SMALL = {
    "img_size": 16,
    "vae_stride": 4,
    "vae_embed_dim": 2,
    "encoder_embed_dim": 8,
    "encoder_depth": 1,
    "encoder_num_heads": 2,
    "decoder_embed_dim": 12,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "class_num": 5,
    "buffer_size": 2,
    "diffloss_d": 1,
    "diffloss_w": 8,
}


def test_evaluation_takes_the_averaged_weights_of_a_training_checkpoint(tmp_path) -> None:
    trained, averaged = MAR(MARConfig(**SMALL)), MAR(MARConfig(**SMALL))
    path = tmp_path / "checkpoint-last.pth"
    states = {"model": trained.state_dict(), "model_ema": averaged.state_dict()}
    torch.save({**states, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}, path)
    for prefer_ema, wanted in ((True, averaged), (False, trained)):
        loaded = MAR.from_pretrained(path, preset="MAR-B", prefer_ema=prefer_ema, **SMALL)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), wanted.parameters(), strict=True))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path) -> None:
    path = tmp_path / "mar.pt"
    state = MAR(MARConfig(**SMALL)).state_dict()
    torch.save({key: value for key, value in state.items() if key != "mask_token"}, path)
    with pytest.raises(VistokError, match="mask_token"):
        MAR.from_pretrained(path, preset="MAR-B", **SMALL)


@pytest.mark.parametrize(
    ("preset", "parameters", "entries"),
    [("MAR-B", 207_924_768, 364), ("MAR-L", 478_326_304, 476), ("MAR-H", 942_403_104, 604)],
)
def test_published_shapes(preset: str, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        model = MAR.from_preset(preset)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == (parameters, entries)


def test_tokens_of_patches_go_back_to_latents() -> None:
    model = MAR(MARConfig(**SMALL | {"patch_size": 2, "vae_stride": 2}))
    latents = torch.randn(3, 2, 8, 8)
    tokens = model.own_tokens(latents)
    assert tokens.shape == (3, 16, 8)
    assert torch.equal(tokens[0, 0], latents[0, :, :2, :2].flatten())
    assert torch.equal(model.image_tokens(tokens), latents)


def test_training_masks_hide_the_same_number_in_every_row() -> None:
    torch.manual_seed(0)
    counts = []
    for _ in range(200):
        mask = draw_mask(4, 64, 0.7)
        assert (mask.sum(1) == mask[0].sum()).all()
        counts.append(int(mask[0].sum()))
    assert min(counts) >= 45 and max(counts) == 64
    assert 54 < sum(counts) / len(counts) < 58  # the truncated normal's mean ratio is 0.866


@pytest.mark.parametrize("spacing", ["ddim7,3", "0", "a", "2000", "ddim999", "-5"])
def test_impossible_spacings_are_refused(spacing: str) -> None:
    with pytest.raises(VistokError):
        respace(spacing)


def test_spacings() -> None:
    assert respace("4").tolist() == [0, 333, 666, 999]
    assert respace("ddim4").tolist() == [0, 250, 500, 750]
    assert respace("2,1").tolist() == [0, 499, 500]
    assert len(Diffusion("25")) == 25
