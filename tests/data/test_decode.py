"""Whatever a file holds, the picture is the one that a viewer shows, or a sentence says why not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from vistok.data import decode
from vistok.data.images import ImageFolder, load_image, to_tensor
from vistok.errors import VistokError

GREY = np.tile(np.linspace(16, 240, 64).astype(np.uint8), (48, 1))
PICTURE = np.stack([GREY, GREY[:, ::-1], np.full_like(GREY, 90)], -1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("grey16.png", GREY.astype(np.uint16) * 257),
        ("grey16.tiff", GREY.astype(np.uint16) * 257),
        ("big_endian.tiff", GREY.astype(">u2") * 257),
        ("grey32.tiff", GREY.astype(np.int32) * 257),
        ("bytes32.tiff", GREY.astype(np.int32)),
        ("float.tiff", GREY.astype(np.float32) / 255),
        ("float_bytes.tiff", GREY.astype(np.float32)),
        ("grey8.png", GREY),
    ],
)
def test_depths_are_scaled_and_not_clipped(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    seen = np.array(load_image(tmp_path / name))
    assert np.array_equal(seen, np.repeat(GREY[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_other_mode_is_read_as_pillow_does(tmp_path, mode):
    suffix = ".tiff" if mode in ("CMYK", "YCbCr") else ".png"
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(tmp_path / f"x{suffix}")
    assert np.array_equal(load_image(tmp_path / f"x{suffix}"), image.convert("RGB"))


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        (GREY.astype(np.float32) - 128, "real numbers from -112 to 112"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
        (np.full((4, 4), 9e5, np.float32), "900000"),
        (np.full((4, 4), np.inf, np.float32), "inf"),
        (np.full((4, 4), 70000, np.int32), "32-bit integers.*70000"),
        (np.full((4, 4), -1, np.int32), "32-bit integers.*-1"),
    ],
)
def test_values_without_an_agreed_white_are_refused(tmp_path, values, culprit):
    Image.fromarray(values).save(tmp_path / "odd.tiff")
    with pytest.raises(VistokError, match=rf"odd\.tiff.*{culprit}.*scale it"):
        load_image(tmp_path / "odd.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_orientations_are_those_of_a_viewer(tmp_path, orientation, suffix):
    picture = Image.fromarray(PICTURE)
    tag = Image.Exif()
    tag[0x0112] = orientation
    path = tmp_path / f"photo{suffix}"
    picture.save(path, exif=tag, **({"quality": 95} if suffix == ".jpg" else {}))
    with Image.open(path) as stored:
        plain, shown = stored.convert("RGB"), ImageOps.exif_transpose(stored).convert("RGB")
    assert load_image(path).size == ((48, 64) if orientation > 4 else (64, 48))
    assert np.array_equal(load_image(path), shown)
    assert np.array_equal(ImageFolder(tmp_path)[0], to_tensor(shown))
    assert np.array_equal(load_image(path, turn=False), plain)


def test_a_damaged_orientation_is_none(tmp_path, monkeypatch):
    def broken(image):
        raise SyntaxError("not a TIFF file")

    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    monkeypatch.setattr(decode.ImageOps, "exif_transpose", broken)
    assert np.array_equal(load_image(tmp_path / "x.png"), PICTURE)


def _transparent(mode: str, hidden: tuple[int, int, int]) -> Image.Image:
    """Left half opaque grey, right half transparent over a hidden colour."""
    image = Image.new("RGBA", (8, 4), (*hidden, 0))
    image.paste((100, 100, 100, 255), (0, 0, 4, 4))
    if mode == "P":
        image = image.quantize(2)
    elif mode == "L":
        hidden_grey = hidden[0]
        image = image.convert("L")
        image.info["transparency"] = hidden_grey
    elif mode == "RGB":
        image = image.convert("RGB")
        image.info["transparency"] = hidden
    else:
        image = image.convert(mode)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (200, 200, 200)])
def test_transparency_shows_white_whatever_it_hides(tmp_path, mode, hidden):
    image = _transparent(mode, hidden)
    keyed = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    image.save(tmp_path / "x.png", **keyed)
    seen = load_image(tmp_path / "x.png")
    assert (seen.mode, seen.getpixel((1, 1)), seen.getpixel((6, 1))) == ("RGB", (100, 100, 100), (255, 255, 255))


def test_half_transparency_is_half_white_and_may_be_dropped(tmp_path):
    Image.new("RGBA", (4, 4), (0, 100, 200, 128)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == (127, 177, 227)
    assert load_image(tmp_path / "x.png", blend=False).getpixel((0, 0)) == (0, 100, 200)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tiff"])
def test_of_an_animation_the_first_frame_is_read_and_that_is_said_once(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(decode, "_said", False)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match=rf"x\{suffix}' has 2 frames"):
        assert load_image(tmp_path / f"x{suffix}").getpixel((3, 3)) == (255, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / f"x{suffix}")
