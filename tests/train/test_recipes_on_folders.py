"""Every tokenizer's recipe trains on a folder of pictures of all kinds, and its export tokenizes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.train.tiny import RECIPES, tiny
from vistok.cli.main import app
from vistok.data.images import load_image
from vistok.errors import VistokError
from vistok.tokenizers import TOKENIZERS, load_tokenizer
from vistok.tokenizers.files import tokenize_files
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task
from vistok.train.trainer import Trainer

TASKS = {"vq", "vq-upscaled", "kl", "one-d-piece", "flextok", "tokenflow", "seed"}
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if Recipe.load(path).task in TASKS)
QUICK = ("vq-mini", "one-d-piece-mini")
SLOW = pytest.mark.slow(reason="all recipes together take two minutes")


def draw_every_kind(root: Path) -> Path:
    """Grey, 16-bit, CMYK, animated and turned pictures, larger and smaller than any tokenizer's."""
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.convert("L").save(root / "grey.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(root / "deep.png")
    image.convert("CMYK").save(root / "ink.tif")
    image.save(root / "moving.gif", save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "turned.jpg", exif=exif)
    image.resize((9, 200)).save(root / "narrow.png")
    for path in root.iterdir():
        path.with_suffix(".txt").write_text("a red circle")
    return root


@pytest.mark.filterwarnings("ignore:.*frame")
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in NAMES])
def test_a_recipe_trains_on_pictures_of_every_kind(name, tmp_path):
    folder = draw_every_kind(tmp_path / "mine")
    base = tiny(name, steps=2)
    left_out = ("supervision", "pictures")  # of scenes, and more than there are
    data = {key: value for key, value in base.data.items() if key not in left_out}
    mine = replace(base, data=data | {"source": "folder", "path": str(folder)})
    metrics = Trainer(mine, build_task(mine), tmp_path / "run").train()
    assert metrics and not any(key.startswith(("probe", "right_class")) for key in metrics)
    loaded = load_tokenizer(str(tmp_path / "run" / "export"))
    if loaded.tokenizer.capabilities.codebook_size is None:
        return
    for path in sorted(folder.glob("*.*[gf]")):
        out = tmp_path / f"{path.stem}.vtok"
        size = None if loaded.tokenizer.capabilities.image_size else 64
        summary = tokenize_files(loaded, [(path, out)], size=size)
        assert summary.pictures == 1 and out.exists()


def test_every_family_that_is_trained_has_a_recipe():
    trained = {load_tokenizer_family(name) for name in NAMES}
    assert trained == set(TOKENIZERS.table) - {"maskgit_vqgan"}  # whose published weights alone are of use


def load_tokenizer_family(name: str) -> str:
    task = Recipe.load(RECIPES / f"{name}.yaml").task
    return {"one-d-piece": "titok"}.get(task, task.replace("-", "_"))


@pytest.mark.parametrize("tokenizer", ["vq-mini", "one-d-piece-mini", "tokenflow-mini"])
@pytest.mark.parametrize("options", [(), ("--tiles", "--size", "64")], ids=["middle", "tiles"])
@pytest.mark.filterwarnings("ignore:.*frame")
def test_pictures_of_every_kind_go_to_tokens_and_back(tmp_path, tokenizer, options):
    folder = draw_every_kind(tmp_path / "mine")
    size = () if options else ("--size", "64")
    run = CliRunner().invoke(
        app, ["tokenize", str(folder), "--tokenizer", tokenizer, "-o", str(tmp_path / "tokens"), *size, *options]
    )
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["detokenize", str(tmp_path / "tokens"), "-o", str(tmp_path / "back")])
    assert run.exit_code == 0, run.output
    sizes = {path.stem: load_image(path).size for path in (tmp_path / "back").iterdir()}
    assert len(sizes) == 6
    if options:
        assert sizes["turned"] == (90, 70), "as a viewer turns it"
        assert sizes["narrow"] == (9, 200)
    else:
        assert set(sizes.values()) == {(64, 64)}


@pytest.mark.parametrize(
    ("tokenizer", "options", "culprit"),
    [
        ("one-d-piece-mini", ("--tokens", "257"), "257"),
        ("tokenflow-mini", ("--tokens", "7"), "7"),
        ("vq-mini", ("--tokens", "7"), "256"),
        ("one-d-piece-mini", ("--size", "32"), "64x64"),
        ("vq-mini", ("--size", "3"), "smaller than one token"),
    ],
)
def test_lengths_and_sizes_that_a_tokenizer_has_not(tmp_path, tokenizer, options, culprit):
    Image.new("RGB", (70, 80)).save(tmp_path / "a.png")
    run = CliRunner().invoke(
        app, ["tokenize", str(tmp_path / "a.png"), "--size", "64", "--tokenizer", tokenizer, *options]
    )
    assert isinstance(run.exception, VistokError) and culprit in str(run.exception)
    assert not (tmp_path / "a.vtok").exists()


def test_an_empty_folder_is_told(tmp_path):
    (tmp_path / "none").mkdir()
    run = CliRunner().invoke(app, ["tokenize", str(tmp_path / "none")])
    assert isinstance(run.exception, VistokError) and "none" in str(run.exception)
