"""A tokenizer of another package, by one file and an entry point, works wherever the package's own do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

TOY = '''
import json
from pathlib import Path

import torch

from vistok.tokenizers import Capabilities


class Brightness:
    """One token for each block of pixels: its mean brightness."""

    def __init__(self, block=4, levels=64):
        self.block, self.levels = block, levels
        self.capabilities = Capabilities(levels, "grid", multiple=block)

    @classmethod
    def from_pretrained(cls, folder, preset=None):
        return cls(json.loads((Path(folder) / "config.json").read_text())["block"])

    def encode(self, images):
        self.capabilities.check_images(images)
        means = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), self.block)[:, 0]
        return ((means + 1) / 2 * (self.levels - 1)).round().long().clamp(0, self.levels - 1)

    def decode(self, tokens, length=None):
        self.capabilities.check_tokens(tokens)
        values = tokens.float() / (self.levels - 1) * 2 - 1
        return torch.nn.functional.interpolate(values[:, None], scale_factor=float(self.block)).expand(-1, 3, -1, -1)
'''


@pytest.fixture
def vistok(install, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        grey = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3 + i, np.ones((8, 8), np.uint8))
        Image.fromarray(grey).save(folder / f"{i}.png")
    return install(TOY, "vistok.tokenizers", "brightness = toy:Brightness")


def test_its_own_name_stands_for_it(vistok, tmp_path):
    done = vistok("tokenize", tmp_path / "pictures", "--tokenizer", "brightness", "-o", tmp_path / "t", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == 2 * 16 * 16
    back = vistok("detokenize", tmp_path / "t", "-o", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    for i in range(2):
        before, after = (
            np.array(Image.open(tmp_path / f / f"{i}.png").convert("L"), int) for f in ("pictures", "back")
        )
        assert np.abs(before - after).max() <= 255 / 63 / 2 + 1


def test_a_folder_whose_config_names_the_family_loads(vistok, tmp_path):
    (tmp_path / "coarse").mkdir()
    (tmp_path / "coarse" / "config.json").write_text('{"family": "brightness", "block": 8}')
    done = vistok("tokenize", tmp_path / "pictures" / "0.png", "--tokenizer", "coarse", "-o", "a.vtok", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == 8 * 8
    foreign = vistok("detokenize", tmp_path / "a.vtok", "--tokenizer", "vq-mini")
    assert foreign.returncode == 2 and "was made by 'coarse'" in foreign.stderr
    back = vistok("detokenize", tmp_path / "a.vtok", "--tokenizer", "coarse", "-o", "a.png")
    assert back.returncode == 0, back.stderr
    (tmp_path / "coarse" / "config.json").write_text('{"family": "brightnes", "block": 8}')
    unknown = vistok("tokenize", tmp_path / "pictures", "--tokenizer", "coarse")
    assert unknown.returncode == 2 and "did you mean brightness" in unknown.stderr


def test_its_reconstructions_are_measured(vistok, tmp_path):
    done = vistok("eval", "reconstruction", tmp_path / "pictures", "--tokenizer", "brightness", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert next(each for each in json.loads(done.stdout) if each["protocol"]["metric"] == "psnr")["value"] > 35
