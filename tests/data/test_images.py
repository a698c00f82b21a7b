"""Crops cut the right square, bytes round-trip, folders are read in order, and files are whole or absent."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistok.data import images
from vistok.errors import VistokError

sides = st.integers(1, 150)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green grows downwards."""
    array = np.zeros((height, width, 3), np.uint8)
    array[..., 0] = np.linspace(0, 255, width)
    array[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(array)


@settings(max_examples=30, deadline=None)
@given(width=sides, height=sides, size=st.integers(2, 40), seed=st.integers(0, 99))
def test_crops_have_the_size_asked_for(width, height, size, seed):
    image = ramp(width, height)
    assert images.center_crop(image, size).size == (size, size)
    assert images.random_crop(image, size, random.Random(seed)).size == (size, size)


def test_center_crop_takes_the_middle_of_the_long_side():
    crop = np.array(images.center_crop(ramp(160, 40), 20)).astype(int)
    assert abs(crop[..., 0].mean() - 127.5) < 2
    assert crop[..., 0].max() - crop[..., 0].min() == pytest.approx(255 / 4, abs=6)
    assert crop[..., 1].max() - crop[..., 1].min() > 240


def test_random_crop_moves_and_is_set_by_its_generator():
    image = ramp(90, 60)
    first, again, other = (images.random_crop(image, 32, random.Random(seed)) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (4, 9_001)])
def test_a_square_of_a_strip_is_cut_before_it_is_enlarged(size, monkeypatch):
    """A strip of 40,000 pixels would be 8 GB once it is 256 high."""
    resize, made = Image.Image.resize, []

    def watched(image, size, *args, **options):
        made.append(size[0] * size[1])
        return resize(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    strip, along = ramp(*size), int(size[0] == 1 or size[0] < size[1])
    middle = np.array(images.center_crop(strip, 64))[..., along]
    assert middle.shape == (64, 64) and abs(middle.mean() - 127.5) < 1
    found = [np.array(images.random_crop(strip, 64, random.Random(seed)))[..., along].mean() for seed in range(40)]
    assert min(found) < 32 and max(found) > 223, "from all along it"
    assert max(made) <= images.STRIP * 80**2


def test_ten_crop_mirrors_the_first_five():
    crops = [np.array(crop) for crop in images.ten_crop(ramp(64, 64), 20, enlarge=1.2)]
    assert len(crops) == 10
    top_left, top_right, bottom_left, _, _ = crops[:5]
    assert top_left[..., 0].mean() < top_right[..., 0].mean()
    assert top_left[..., 1].mean() < bottom_left[..., 1].mean()
    # The mirror image's left corner is the right corner mirrored.
    np.testing.assert_array_equal(crops[5], top_right[:, ::-1])


def test_bytes_survive_the_way_to_tensor_and_back():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([array, array.T, array[::-1]], -1))
    tensor = images.to_tensor(image)
    assert tensor.min() == -1 and tensor.max() == 1
    assert images.to_pil(tensor[None])[0].tobytes() == image.tobytes()


def test_bytes_are_truncated_not_rounded_and_clamped():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.0039, 0.0079, 1.0, 9.0])
    pixels = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert images.to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 129, 255, 255]


def test_grid_places_images_row_by_row():
    colours = ["red", "lime", "blue"]
    sheet = images.grid([Image.new("RGB", (4, 3), colour) for colour in colours], gap=1)
    assert sheet.size == (9, 7)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((5, 0)) == (0, 255, 0)
    assert sheet.getpixel((0, 4)) == (0, 0, 255)
    assert sheet.getpixel((4, 0)) == sheet.getpixel((8, 6)) == (255, 255, 255)
    assert images.grid([Image.new("RGB", (4, 3))] * 3, columns=3, gap=0).size == (12, 3)


def test_folder_is_read_at_any_depth_in_order(tmp_path):
    for i, name in enumerate(["b.png", "a/z.jpg", "a/b/c.PNG", ".hidden.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2 + i, 2)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    folder = images.ImageFolder(tmp_path, transform=lambda image: (image.mode, image.width))
    assert [path.name for path in folder.paths] == ["c.PNG", "z.jpg", "b.png"]
    assert [folder[i] for i in range(len(folder))] == [("RGB", 4), ("RGB", 3), ("RGB", 2)]
    assert images.ImageFolder(tmp_path)[2].shape == (3, 2, 2)


def test_folder_without_pictures_and_no_folder_at_all(tmp_path):
    with pytest.raises(VistokError, match="no image in the folder"):
        images.ImageFolder(tmp_path)
    with pytest.raises(VistokError, match="no folder"):
        images.ImageFolder(tmp_path / "absent")


@pytest.mark.parametrize("kept", [0, 20, 200])
def test_a_broken_picture_is_named(tmp_path, kept):
    path = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(VistokError, match=r"cannot read '.*broken\.png'"):
        images.ImageFolder(tmp_path)[0]
    with pytest.raises(VistokError, match="there is no image"):
        images.load_image(tmp_path / "absent.png")


def test_save_image_makes_the_folder_and_writes_what_was_given(tmp_path):
    image = ramp(8, 8)
    images.save_image(image, tmp_path / "new" / "x.png")
    assert images.load_image(tmp_path / "new" / "x.png").tobytes() == image.tobytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    images.save_image(ramp(8, 8), path)
    before = path.read_bytes()

    def interrupted(self, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.save_image(ramp(9, 9), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_image_refuses_a_name_without_a_format(tmp_path):
    with pytest.raises(VistokError, match=r"end the name in \.png"):
        images.save_image(ramp(2, 2), tmp_path / "picture")
    (tmp_path / "file").touch()
    with pytest.raises(VistokError, match="cannot write"):
        images.save_image(ramp(2, 2), tmp_path / "file" / "x.png")
