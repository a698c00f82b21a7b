"""Pictures of any size go to tokens in tiles and back, with every tokenizer."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.tokenizers.test_borders import INDICES, build
from tests.tokenizers.test_files import app
from vistok.data.images import load_image, save_image, to_tensor
from vistok.data.scenes import render, sample_scenes
from vistok.data.vtok import read_vtok
from vistok.tokenizers.files import detokenize_files, tokenize_files
from vistok.tokenizers.load import LoadedTokenizer, load_tokenizer


def _run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def large(tmp_path):
    """A picture of 150x101 pixels."""
    scene = render(sample_scenes(1, 7), 150)[0, :, :101]
    path = tmp_path / "large.png"
    save_image(Image.fromarray(((scene + 1) * 127.5).byte().movedim(0, -1).numpy()), path)
    return path


@pytest.fixture(scope="module")
def tokenizers():
    torch.manual_seed(0)
    return {name: tokenizer.eval() for name, tokenizer in build().items()}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("size", [(16, 16), (90, 37), (7, 80), (5, 5)])
def test_every_tokenizer_takes_tiles_of_any_picture(tokenizers, tmp_path, name, size):
    loaded = LoadedTokenizer(name, "ab" * 32, tokenizers[name])
    save_image(Image.new("RGB", size, "teal"), tmp_path / "in.png")
    side = loaded.tokenizer.capabilities.image_size or 16
    given = None if loaded.tokenizer.capabilities.image_size else side
    summary = tokenize_files(loaded, [(tmp_path / "in.png", tmp_path / "a.vtok")], size=given, overlap=side // 4)
    content = read_vtok(tmp_path / "a.vtok")
    assert (content.tiling.width, content.tiling.height) == size and summary.pixels == size[0] * size[1]
    detokenize_files(loaded, [(tmp_path / "a.vtok", tmp_path / "out.png")])
    assert load_image(tmp_path / "out.png").size == size


def test_batches_do_not_change_a_picture_in_tiles(large, tmp_path):
    loaded = load_tokenizer("one-d-piece-mini")
    for batch in (1, 5):
        pair = [(large, tmp_path / f"{batch}.vtok")]
        tokenize_files(loaded, pair, length=16, batch_size=batch, overlap=8)
    assert (tmp_path / "1.vtok").read_bytes() == (tmp_path / "5.vtok").read_bytes()
    assert len(read_vtok(tmp_path / "1.vtok").tokens) == 6 * 16


def test_the_command_keeps_the_whole_picture(large, tmp_path):
    """Nothing is cropped, and a tile's border is not seen: errors there are those of elsewhere."""
    result = _run("tokenize", large, "--size", 64, "--tiles", "--overlap", 16, "-o", tmp_path / "a.vtok")
    assert result.exit_code == 0, result.output
    assert _run("detokenize", tmp_path / "a.vtok", "-o", tmp_path / "b.png").exit_code == 0
    before, after = to_tensor(load_image(large)), to_tensor(load_image(tmp_path / "b.png"))
    assert before.shape == after.shape == (3, 101, 150)
    error = (before - after).square().mean(0)
    assert -10 * (error.mean() / 4).log10() > 22
    lefts = sorted({left for _, left in read_vtok(tmp_path / "a.vtok").tiling.corners})
    borders = torch.cat([error[:, x - 1 : x + 1].flatten() for x in lefts[1:]])
    assert borders.mean() < 3 * error.mean()


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--tiles",), "--size"),
        (("--tiles", "--size", 30), "multiples of 4"),
        (("--overlap", 3), "--tiles"),
        (("--tiles", "--size", 64, "--overlap", 40), "0 to 32"),
        (("--tiles", "--tokenizer", "one-d-piece-mini", "--size", 32), "64 pixels"),
    ],
)
def test_tiles_that_a_tokenizer_does_not_take(large, tmp_path, options, culprit):
    result = _run("tokenize", large, *options, "-o", tmp_path / "a.vtok")
    assert result.exit_code != 0 and culprit in str(result.exception)
    assert not (tmp_path / "a.vtok").exists()
