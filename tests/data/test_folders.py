"""One rule for what is found under a folder, and a count of what is not."""

from __future__ import annotations

import warnings

import pytest

from vistok.data.folders import list_files
from vistok.data.images import READABLE_SUFFIXES, ImageFolder
from vistok.errors import VistokError
from vistok.eval.sets.pictures import FolderPictures
from vistok.tokenizers.files import PICTURES, TOKENS, pair_paths


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_what_is_found_and_what_is_counted(tmp_path):
    touch(tmp_path, "b.PNG", "a/z.jfif", "a/y.pgm", "a-1.jpg", "a/.hidden.png", ".DS_Store", "log.txt", "x.npy")
    touch(tmp_path, ".thumbnails/1.png", "a/.ipynb_checkpoints/z.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found = list_files(tmp_path, READABLE_SUFFIXES)
    assert found.names == ["a/y.pgm", "a/z.jfif", "a-1.jpg", "b.PNG"]
    told = "; ".join(found.left_out)
    for part in ("2 hidden folders", ".thumbnails", "1 hidden file", "1 broken link", "2 files of other kinds", ".npy"):
        assert part in told
    assert list_files(tmp_path / "a", {".pgm"}).left_out[0].startswith("1 hidden folder")


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "set/a/1.png", "elsewhere/2.png")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "0").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    found = list_files(tmp_path / "set", READABLE_SUFFIXES)
    assert found.names == ["a/1.png", "b/2.png"]
    assert "2 further ways" in found.left_out[0]
    (tmp_path / "alias").symlink_to(tmp_path / "set")
    assert list_files(tmp_path / "alias", READABLE_SUFFIXES).names == found.names


def test_every_reader_of_folders_has_the_rule(tmp_path):
    touch(tmp_path, "a/1.png", "a/.cache/2.png", "a/3.pgm")
    expected = [tmp_path / "a" / "1.png", tmp_path / "a" / "3.pgm"]
    source = FolderPictures(tmp_path)
    assert [source.path(i) for i in range(len(source))] == ImageFolder(tmp_path).paths == expected
    assert [pair[0] for pair in pair_paths([tmp_path], tmp_path / "out", PICTURES, ".vtok")] == expected


def test_what_is_left_out_is_told_but_for_what_belongs_there(tmp_path):
    touch(tmp_path, "1.png", "1.vtok", "1.heic", ".git/2.png")
    for suffixes, suffix in ((PICTURES, ".vtok"), (TOKENS, ".png")):
        with pytest.warns(UserWarning) as told:
            pair_paths([tmp_path], tmp_path / "out", suffixes, suffix)
        (told,) = (str(each.message) for each in told)
        assert "1 hidden folder (.git); 1 file of other kinds (.heic)" in told
    touch(tmp_path, "plain/1.png", "plain/1.vtok")
    with warnings.catch_warnings(action="error"):
        pair_paths([tmp_path / "plain"], tmp_path / "out", PICTURES, ".vtok")


def test_no_folder_and_a_file_are_told_apart(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(VistokError, match="there is no folder"):
        list_files(tmp_path / "b", READABLE_SUFFIXES)
    with pytest.raises(VistokError, match=r"a\.png' is a file"):
        list_files(tmp_path / "a.png", READABLE_SUFFIXES)
