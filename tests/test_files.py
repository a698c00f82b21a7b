"""Files are whole or absent, names tell files from folders, and JSON is what every parser reads."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest

from vistok.cli.output import with_json_file
from vistok.errors import VistokError
from vistok.files import atomic_path, check_writable, is_folder_target, to_json, write_json
from vistok.jobs import ShardedJob


@pytest.mark.parametrize("name", ["samples", "cfg-1.75-seed-0", "run.v2", "GPT-B-topk-0-topp-1.0", ".hidden", "a.b/c"])
def test_folders(tmp_path, name):
    assert is_folder_target(tmp_path / name)
    (tmp_path / name).mkdir(parents=True)
    assert is_folder_target(tmp_path / name)  # and the second call sees the same
    check_writable(tmp_path / name, folder=True)
    check_writable(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "cfg-1.75.webp", "x/y.tiff"])
def test_files(tmp_path, name):
    assert not is_folder_target(tmp_path / name)
    (tmp_path / name).mkdir(parents=True)
    assert is_folder_target(tmp_path / name)  # what exists as a folder is one
    with pytest.raises(VistokError, match="is a folder: name a file"):
        check_writable(tmp_path / name, folder=False)


@pytest.mark.parametrize("name", ["a.pdf", "a.PDF", "a.svg", "a.json", "a.txt", "a.zip", "a.vtok"])
def test_other_kinds_of_files_do_not_become_folders(tmp_path, name):
    with pytest.raises(VistokError, match=rf"{name}.*\.png"):
        is_folder_target(tmp_path / name)
    with pytest.raises(VistokError, match=f"{name}.*leave"):
        check_writable(tmp_path / name, folder=True)


@pytest.mark.parametrize("name", ["a.png", "a.TIF", "a.pdf"])
def test_pictures_are_other_files_where_no_pictures_are_written(tmp_path, name):
    with pytest.raises(VistokError, match=rf"{name}.*\.vtok"):
        is_folder_target(tmp_path / name, {".vtok"})


def test_a_file_that_is_no_picture_is_no_folder(tmp_path):
    (tmp_path / "notes").write_text("x")
    with pytest.raises(VistokError, match="notes"):
        is_folder_target(tmp_path / "notes")
    with pytest.raises(VistokError, match="is a file: name a folder"):
        check_writable(tmp_path / "notes", folder=True)


def test_long_names_links_and_places_that_are_no_files(tmp_path):
    long = tmp_path / ("ä" * 120 + ".txt")
    write_json(long, [1])
    assert json.loads(long.read_text()) == [1]
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "target.json")
    write_json(link, [2])
    assert link.is_symlink() and json.loads((tmp_path / "target.json").read_text()) == [2]
    write_json("/dev/null", [3])
    assert Path("/dev/null").is_char_device()
    (tmp_path / "folder").mkdir()
    with pytest.raises(VistokError, match="it is a folder"), atomic_path(tmp_path / "folder"):
        pass


def test_a_full_disk_gets_a_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(VistokError, match="make room"), atomic_path(tmp_path / "x.png"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_become_null(tmp_path):
    document = {"a": math.nan, "b": [math.inf, 1.5], "c": np.float32(2), "d": np.array([1.0, -np.inf]), "e": Path("x")}
    text = to_json(document)
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found == {"a": None, "b": [None, 1.5], "c": 2.0, "d": [1.0, None], "e": "x"}
    write_json(tmp_path / "x.json", document)
    assert json.loads((tmp_path / "x.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sample --json", "sample --json -"),
        ("sample --json --seed 3", "sample --json - --seed 3"),
        ("sample --json -p x", "sample --json - -p x"),
        ("sample --json - -p x", "sample --json - -p x"),
        ("tokenize --json a.png b.png", "tokenize --json - a.png b.png"),
        ("tokenize a.png --json figures.json", "tokenize a.png --json figures.json"),
        ("tokenize --json figures.JSON a.png", "tokenize --json figures.JSON a.png"),
        ("train --json recipe.yaml", "train --json - recipe.yaml"),
        ("tokenize --json=out a.png", "tokenize --json=out a.png"),
        ("tokenize -- --json", "tokenize -- --json"),
    ],
)
def test_json_may_stand_alone(words, told):
    once = with_json_file(words.split(), any_name=False)
    assert " ".join(once) == told
    assert with_json_file(once, any_name=False) == once


def test_json_of_measuring_commands_takes_any_name():
    assert with_json_file(["fid", "--json", "out", "real"], any_name=True) == ["fid", "--json", "out", "real"]
    assert with_json_file(["fid", "real", "--json"], any_name=True) == ["fid", "real", "--json", "-"]
    assert with_json_file(["fid", "--json", "-", "real"], any_name=True) == ["fid", "--json", "-", "real"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\udcff"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(VistokError, match=r"manifest\.json"):
        ShardedJob(tmp_path, {"model": "x"}, 2, ".png")


@pytest.mark.parametrize("name", ["000001.png", "metadata.jsonl"])
def test_files_that_no_job_is_known_of_are_no_part_of_a_new_one(tmp_path, name):
    """Neither taken for done, as pictures of a camera or of another tool would be, nor replaced."""
    (tmp_path / name).write_text("of somebody else")
    with pytest.raises(VistokError, match=name):
        ShardedJob(tmp_path, {"model": "x"}, 2, ".png", ["metadata.jsonl"])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).rename(tmp_path / "other.png")
    for _ in range(2):  # a job goes on among its own
        job = ShardedJob(tmp_path, {"model": "x"}, 2, ".png", ["metadata.jsonl"])
        job.claim()
        (tmp_path / name).write_text("of the job")
    assert job.path(0) not in tmp_path.iterdir()


def test_a_job_claims_its_folder_once_there_is_something_to_write(tmp_path):
    folder = tmp_path / "new"
    failed, other = (ShardedJob(folder, {"model": name}, 2, ".png", ["metadata.jsonl"]) for name in "xy")
    with pytest.raises(ZeroDivisionError):
        failed.settle("window", lambda: 1 // 0)
    assert not folder.exists()
    assert other.settle("window", lambda: 8) == 8
    with pytest.raises(VistokError, match="another job"):  # which came in between
        failed.claim()
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "window.json"]


def test_another_job_is_told_by_what_the_user_changed(tmp_path):
    asked = {"seed": 1, "law": {"guidance": 2.0, "top_k": 0}}
    ShardedJob(tmp_path, asked, 2, ".png").claim()
    with pytest.raises(VistokError, match=r"its guidance, seed, upscale differ\)"):
        other = {"seed": 2, "law": {"guidance": 3.0, "top_k": 0}, "upscale": {"factor": 2}}
        ShardedJob(tmp_path, other, 2, ".png")


@pytest.mark.parametrize("name", ["x" * 300, "ä" * 130, "x" * 300 + "/a.png"])
def test_names_that_are_too_long_are_told_before_any_work(tmp_path, name):
    for folder in (None, True, False):
        with pytest.raises(VistokError, match="255 bytes"):
            check_writable(tmp_path / name, folder)
    with pytest.raises(VistokError, match="cannot write"):
        write_json(tmp_path / name, [1])
