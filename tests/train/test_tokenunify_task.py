"""TokenUnify's objectives: what is hidden and what is predicted, stages, grey pictures, volumes, and mistakes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.tiny import RECIPES, tiny
from vistok.errors import VistokError
from vistok.models.vision.tokenunify import TokenUnify, from_patches, hide_random, keep_first, patches
from vistok.train.recipe import Recipe
from vistok.train.sources.volumes import open_volume
from vistok.train.tasks.scenes.segmentation import segmentation_probe, shape_masks
from vistok.train.tasks.tokenunify import TokenUnifyTask
from vistok.train.trainer import Trainer

SMALL = {"patch": [8, 8], "grid": [2, 2], "channels": 1, "width": 16, "layers": 1, "heads": 1}


def recipe(model: dict | None = None, **data) -> Recipe:
    base = tiny("tokenunify-mini")
    return replace(base, model=SMALL if model is None else model, data=base.data | data)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 6, 8), (3, 4)), ((3, 4, 6, 8), (2, 3, 4)), ((5, 2, 4, 6, 8), (2, 3, 4))]
)
def test_patches_go_together_again_in_raster_order(shape, size):
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    tokens = patches(values, size)
    assert torch.equal(from_patches(tokens, shape, size), values)
    first = values[(..., *(slice(0, n) for n in size))]
    assert torch.equal(tokens[..., 0, :], first.flatten(first.ndim - len(size)))


def test_the_rest_of_a_prefix_is_filled_and_the_next_is_the_target():
    tokens = torch.rand(3, 6, 5)
    fill = torch.full_like(tokens, 7.0)
    masked, target = keep_first(tokens, torch.tensor([1, 3, 5]), fill)
    for row, kept in enumerate((1, 3, 5)):
        assert torch.equal(masked[row, :kept], tokens[row, :kept]) and bool((masked[row, kept:] == 7).all())
        assert torch.equal(target[row], tokens[row, kept])
    for count in (0, 6, torch.tensor([1, 2, 6])):
        with pytest.raises(VistokError, match="1 to 5"):
            keep_first(tokens, count)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_that_share_of_tokens_is_hidden(share):
    tokens = torch.rand(4, 8, 3) + 1
    hidden = hide_random(tokens, torch.full((4,), share), torch.rand(4, 8))
    assert ((hidden == 0).all(-1).sum(1) == int(8 * share)).all()


def test_stages_weigh_the_objectives():
    """Random prediction alone at first, then the next token and all that come next."""
    stages = [{"start": 0, "random": 1.0}, {"start": 2, "next": 1.0, "next_all": 2.0}]
    task = TokenUnifyTask(recipe(tiny("tokenunify-mini").model, stages=stages))
    loss, parts = task.model(**task.batch(1, slice(0, 4)))
    assert set(parts) == {"random"} and loss == parts["random"]
    loss, parts = task.model(**task.batch(2, slice(0, 4)))
    assert set(parts) == {"next", "next_all"}
    torch.testing.assert_close(loss, parts["next"] + 2 * parts["next_all"])
    rows = task.batch(2, slice(1, 3))
    whole = task.batch(2, slice(0, 4))
    assert all(torch.equal(rows[name], whole[name][1:3]) for name in rows if name != "weights")


def test_grey_pictures_of_a_folder_train(tmp_path):
    for i in range(5):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30)).astype(np.uint8), "L").save(
            tmp_path / f"{i}.png"
        )
    own = recipe(source="folder", path=str(tmp_path), pictures=None)
    metrics = Trainer(own, TokenUnifyTask(own), tmp_path / "run").train()
    assert set(metrics) == {"held_out_random", "held_out_next", "held_out_next_all"}
    found = TokenUnify.from_pretrained(tmp_path / "run" / "export")
    assert found.config.channels == 1


def saved(root):
    np.save(root / "a.npy", np.zeros((9, 9, 9)))
    return (root / "a.npy").read_bytes()


def opened(root, **data):
    model = SMALL | {"patch": [4, 4, 4], "grid": [2, 2, 2]}
    return TokenUnifyTask(recipe(model, source="volumes", path=str(root), **({"pictures": None} | data)))


def test_of_a_volume_only_the_blocks_are_read(tmp_path):
    """Volumes can be larger than the memory: what lies elsewhere in the file is not touched."""
    volume = np.full((20, 20, 20), np.nan)
    volume[6:14, 6:14, 6:14] = np.arange(8)
    np.save(tmp_path / "a.npy", volume)
    assert isinstance(open_volume(tmp_path / "a.npy", (8, 8, 8)), np.memmap)
    source = opened(tmp_path).source
    images = source.held_out().pictures(torch.tensor([0]))
    assert images.shape == (1, 1, 8, 8, 8) and torch.equal(images[0, 0, 3, 3], torch.arange(8) / 7)
    with pytest.raises(VistokError, match="finite"):
        source.augmented(source.draw(0, 8))


def test_what_a_folder_of_volumes_passes_over_is_told(tmp_path):
    for name in ("a.npy", "b.npy", ".c.npy", "d.tif"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.zeros((9, 9, 9)))
    with pytest.warns(UserWarning, match=r"1 hidden file \(.c.npy\); 1 file of other kinds \(.tif\)"):
        opened(tmp_path)
    for count in (0, 3):
        with pytest.raises(VistokError, match=f"'data.pictures' is {count}, but .* has 2 volumes"):
            opened(tmp_path, pictures=count)


def test_volumes_train(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).integers(0, 65535, (9, 12, 14)).astype(np.uint16))
    model = SMALL | {"patch": [4, 4, 4], "grid": [2, 2, 2]}
    own = recipe(model, source="volumes", path=str(tmp_path), pictures=None)
    task = TokenUnifyTask(own)
    images = task.batch(0, slice(0, 4))["images"]
    assert images.shape == (4, 1, 8, 8, 8) and images.amin() == 0 and images.amax() == 1
    assert set(Trainer(own, task, tmp_path / "run").train()) == {
        "held_out_random",
        "held_out_next",
        "held_out_next_all",
    }


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda root: None, "no volume"),
        (lambda root: np.save(root / "a.npy", np.zeros((9, 9))), r"a.npy.*\[9, 9\]"),
        (lambda root: np.save(root / "a.npy", np.zeros((4, 9, 9))), "smaller than a block"),
        (lambda root: np.save(root / "a.npy", np.full((9, 9, 9), np.nan)), "finite"),
        (lambda root: np.save(root / "a.npy", np.array([{}]), allow_pickle=True), "cannot read"),
        (lambda root: (root / "a.npy").write_text("no"), "cannot read"),
        (lambda root: (root / "a.npy").write_bytes(b""), "cannot read"),  # click takes an EOFError for Ctrl-D
        (lambda root: (root / "a.npy").write_bytes(saved(root)[:900]), "cannot read"),
        (lambda root: np.savez(root / "a.npz", np.zeros((9, 9, 9))), "no volume"),
    ],
)
def test_volumes_that_are_none(tmp_path, make, culprit):
    make(tmp_path)
    model = SMALL | {"patch": [4, 4, 4], "grid": [2, 2, 2]}
    with pytest.raises(VistokError, match=culprit):
        TokenUnifyTask(recipe(model, source="volumes", path=str(tmp_path), pictures=None)).batch(0, slice(0, 4))


@pytest.mark.parametrize(
    ("model", "data", "culprit"),
    [
        ({}, {"stages": []}, "stages"),
        ({}, {"stages": [{"start": 1, "next": 1.0}]}, "start: 0"),
        ({}, {"stages": [{"start": 0}]}, "needs a weight"),
        ({}, {"stages": [{"start": 0, "colour": 1.0}]}, "colour"),
        ({}, {"hidden": [0.8, 0.2]}, "hidden"),
        ({"patch": [4, 4, 4], "grid": [2, 2, 2]}, {}, "volumes"),
        ({"grid": [2, 3]}, {}, "squares"),
        ({"channels": 2}, {}, "channels"),
        ({"grid": [1, 1]}, {}, "two patches"),
    ],
)
def test_recipes_that_make_no_sense(model, data, culprit):
    with pytest.raises(VistokError, match=culprit):
        TokenUnifyTask(recipe(SMALL | model, **data))


def test_the_probe_reads_what_features_say():
    """Features that are the masks themselves are read without error, and noise hardly at all."""
    from vistok.train.sources import ScenesSource

    held_out = ScenesSource(64, 3)
    calls = []

    def perfect(images):
        source = ScenesSource(64, 1_000_033) if sum(calls) < 64 else held_out
        index = torch.arange(len(images)) + (sum(calls) if sum(calls) < 64 else sum(calls) - 64)
        calls.append(len(images))
        masks = shape_masks(source.scenes(index), 64)
        one_hot = torch.nn.functional.one_hot(masks, 7).float()
        return one_hot.view(-1, 8, 8, 8, 8, 7).transpose(2, 3).flatten(3).flatten(1, 2)

    assert segmentation_probe(perfect, held_out, 64)["probe_miou"] > 0.9
    assert segmentation_probe(lambda x: torch.rand(len(x), 64, 8), held_out, 64)["probe_miou"] < 0.2


def test_the_recipe_names_the_task():
    assert Recipe.load(RECIPES / "tokenunify-mini.yaml").task == "tokenunify"
