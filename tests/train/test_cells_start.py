"""A One-D-Piece encoder in closed form: each token tells its own cell, and the first ones the whole picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.ops.rope import rope_2d
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.train.tasks.starts.cells import Cells, lattice_order, start_from_cells

CONFIG = TiTokConfig(
    encoder=(128, 1, 4), decoder=(128, 2, 4), num_tokens=64, codebook_size=128, token_size=8, legacy=False,
    pixel_decoder=False, variable_length=True, image_size=32, patch_size=8,
)  # fmt: skip


def start(config: TiTokConfig) -> TiTok:
    torch.manual_seed(0)
    tokenizer = TiTok(config).eval()
    images = render(sample_scenes(48, 5), config.image_size)
    start_from_cells(tokenizer, Cells(config, images), images, torch.Generator().manual_seed(0))
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return start(CONFIG)


def psnr(tokenizer: TiTok, length: int) -> float:
    images = render(sample_scenes(16, 6), tokenizer.config.image_size)
    error = (tokenizer.decode(tokenizer.encode(images), length).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


@pytest.mark.parametrize("side", [4, 8])
def test_each_quarter_of_the_order_covers_the_picture_evenly(side):
    order = lattice_order(side)
    assert sorted(order.tolist()) == list(range(side**2))
    for part in order.split(side**2 // 4):
        rows, columns = part // side, part % side
        assert rows.diff().unique().tolist() == [0, 2] and len(rows.unique()) == side // 2
        assert len(columns.unique()) == side // 2
    # A cell of the second lattice stands as far behind its upper left neighbour everywhere: a quarter of the sequence.
    quarter = side**2 // 4
    assert ((order[quarter : 2 * quarter] - order[:quarter]) == side + 1).all()


def test_a_token_tells_its_own_cell_alone(tokenizer):
    images = render(sample_scenes(8, 7), 32)
    changed = images.clone()
    changed[:, :, 8:16, 16:24] = torch.rand(8, 3, 8, 8) * 2 - 1  # row 1, column 2 of the grid
    differ = tokenizer.encode(images) != tokenizer.encode(changed)
    cells = lattice_order(4).repeat(4)
    assert not differ[:, cells != 6].any()
    assert differ[:, cells == 6].float().mean() > 0.5


def test_the_encoder_gives_what_is_told(tokenizer):
    """Weak components count as much as strong ones: without them, a cross has the codes of a diamond."""
    images = render(sample_scenes(48, 5), 32)
    cells = Cells(CONFIG, images)
    wanted = cells(images).flatten(0, 1)
    given = F.normalize(tokenizer.latents(images)[:, :, 0], dim=1).transpose(1, 2).flatten(0, 1)
    gain = (given * wanted).sum(0) / wanted.square().sum(0)
    assert gain.min() > 0.8 and gain.max() < 1.2


def test_wholes_and_quarters_have_codes_of_their_own(tokenizer):
    tokens = tokenizer.encode(render(sample_scenes(8, 7), 32))
    assert (tokens[:, :16] < 96).all() and (tokens[:, 16:] >= 96).all()


def test_contrast_is_of_what_a_token_tells():
    """A patch of one colour has none; a black and white quarter is told by its own token and the whole."""
    images = torch.full((1, 3, 32, 32), 0.3)
    images[:, :, 8:12, 20:24:2] = 1  # cell 6, of whose quarters this is the upper right one
    images[:, :, 8:12, 21:24:2] = -1
    contrast = Cells(CONFIG, render(sample_scenes(8, 5), 32)).contrast(images)[0]
    where = lattice_order(4) == 6
    assert contrast.shape == (4, 16) and contrast[:, ~where].abs().max() < 1e-3
    whole, *quarters = contrast[:, where].flatten().tolist()
    assert sorted(quarters)[:2] == pytest.approx([0, 0], abs=1e-3)
    assert max(quarters) == pytest.approx(3**0.5, abs=1e-3) and 0 < whole < max(quarters)


def test_the_first_tokens_are_worth_the_most(tokenizer):
    """Before any training: the first lattice, all cells, and their quarters."""
    assert psnr(tokenizer, 16) > psnr(tokenizer, 4) + 2
    assert psnr(tokenizer, 64) > psnr(tokenizer, 16) + 1


def test_one_token_a_cell_will_do():
    tokenizer = start(replace(CONFIG, encoder=(128, 1, 1), decoder=(128, 2, 1), num_tokens=16))
    assert psnr(tokenizer, 16) > psnr(tokenizer, 4) + 2


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"num_tokens": 20}, "16.*20"),
        ({"l2_norm": False}, "l2_norm"),
        ({"encoder": (128, 2, 4)}, "one layer"),
        ({"decoder": (128, 2, 2)}, "4 heads"),
        ({"encoder": (32, 1, 4)}, "wide"),
        ({"patch_size": 32, "num_tokens": 1}, "even sides"),
    ],
)
def test_shapes_without_a_closed_form(changes, culprit):
    with pytest.raises(VistokError, match=culprit):
        start(replace(CONFIG, **changes))


def test_a_sequence_with_places_has_the_positions_of_a_grid():
    shape = {"dim": 32, "n_layer": 1, "n_head": 2, "vocab_size": 8, "block_size": 16}
    places = tuple((float(row), float(column)) for row in range(4) for column in range(4))
    config = LlamaGenConfig(layout="sequence", places=places, **shape)
    torch.testing.assert_close(LlamaGen(config).rope, rope_2d(4, 4, 16, prefix=1))
    with pytest.raises(VistokError, match=r"16 tokens.*15"):
        LlamaGen(replace(config, places=places[:15]))
    with pytest.raises(VistokError, match="in a grid"):
        LlamaGen(replace(config, layout="grid"))


def test_places_travel_with_the_weights(tmp_path):
    places = ((0.0, 0.0), (2.0, 2.0), (0.0, 2.0), (2.0, 0.0))
    shape = {"dim": 32, "n_layer": 1, "n_head": 2, "vocab_size": 8, "block_size": 4}
    model = LlamaGen(LlamaGenConfig(layout="sequence", places=places, **shape))
    model.save_pretrained(tmp_path)
    found = LlamaGen.from_pretrained(tmp_path)
    assert found.config == model.config and torch.equal(found.rope, model.rope)
