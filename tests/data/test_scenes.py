"""The embedded world: reproducible, valid, and truthfully described."""

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    boxes,
    captions,
    groups,
    questions,
    relation,
    render,
    render_masks,
    sample_scenes,
    statements,
    vocabulary,
)
from vistok.data.scenes.files import write_scenes
from vistok.data.scenes.language import NUMBERS, OPENINGS, plural
from vistok.errors import VistokError


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 2**40), count=st.integers(1, 40))
def test_a_scene_depends_on_its_seed_and_number_alone(seed, start, count):
    whole = sample_scenes(count + 3, seed, start)
    part = sample_scenes(count, seed, start + 3)
    for name in ("group", "centre", "tones", "texture", "background"):
        assert torch.equal(getattr(whole[3:], name), getattr(part, name))
    present = part.present
    assert torch.equal(whole[3:].shape[present], part.shape[present])


def test_other_seeds_give_other_scenes():
    assert not torch.equal(sample_scenes(8, 0).centre, sample_scenes(8, 1).centre)


def test_objects_lie_inside_and_apart():
    scenes = sample_scenes(2000, 3)
    masks = render_masks(scenes, 64) > 0
    assert int(masks.sum(1).max()) == 1, "two objects share a pixel"
    box = boxes(scenes, 64)[scenes.present]
    assert box.min() >= 0
    assert box.max() <= 64


def test_pictures_have_the_promised_range_and_size():
    for side in (64, 128):
        images = render(sample_scenes(20, 1), side)
        assert images.shape == (20, 3, side, side)
        assert images.min() >= -1
        assert images.max() <= 1


def test_everything_occurs():
    scenes = sample_scenes(3000, 0)
    here = scenes.present
    assert set(scenes.shape[here].tolist()) == set(range(len(SHAPES)))
    assert set(scenes.colour[here].tolist()) == set(range(len(COLOURS)))
    assert set(scenes.size[here].tolist()) == {0, 1}
    assert set(scenes.background.tolist()) == set(range(len(BACKGROUNDS)))
    assert set(here.sum(1).tolist()) == {1, 2, 3, 4}
    assert 0 <= int(scenes.label.min()) <= int(scenes.label.max()) < 48


def test_backgrounds_vary():
    corners = render(sample_scenes(500, 0), 32)[:, :, :8, :8]
    assert len({tuple(corner.flatten().tolist()) for corner in corners}) > 400


def test_captions_name_exactly_what_is_there():
    """Read back with a parser of its own, not with the code that wrote them."""
    words = {plural(s): s for s in SHAPES} | {s: s for s in SHAPES}
    number = {w: i for i, w in enumerate(NUMBERS)} | {"a": 1, "an": 1}
    opening = "|".join(sorted((re.escape(o) for o in OPENINGS if o), key=len, reverse=True))
    scenes = sample_scenes(400, 5)
    for scene, text in zip(groups(scenes), captions(scenes), strict=True):
        body = re.sub(rf"^({opening})", "", text)
        body = re.sub(r" on a \w+ background$", "", body)
        found = {}
        for part in re.split(
            r", | and | to the left of | to the right of | left of | right of | above | below | over | under ", body
        ):
            tokens = part.split()
            found[words[tokens[-1]]] = number[tokens[0]]
            for colour in set(tokens) & set(COLOURS):
                assert colour == next(g.colour for g in scene if g.shape == words[tokens[-1]])
        assert found == {g.shape: g.count for g in scene}, text


def test_stated_relations_hold():
    stated = [s for s in statements(sample_scenes(600, 6)) if s.where is not None]
    assert len(stated) > 50
    for s in stated:
        (ax, ay), (bx, by) = s.groups[0].centre, s.groups[1].centre
        assert {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}[s.where]


def test_relation_needs_a_clear_axis():
    assert relation((0.1, 0.5), (0.8, 0.5)) == "left"
    assert relation((0.5, 0.9), (0.5, 0.1)) == "below"
    assert relation((0.1, 0.1), (0.6, 0.6)) is None


def test_wordings_vary_but_stay_in_the_vocabulary():
    scenes = sample_scenes(500, 7)
    first, second = captions(scenes, 0), captions(scenes, 1)
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 400
    known = set(vocabulary())
    assert {w for text in first + second for w in text.replace(",", " ,").split()} <= known


def test_answers_are_right():
    scenes = sample_scenes(200, 8)
    for scene, background in zip(groups(scenes), scenes.background.tolist(), strict=True):
        asked = {q["question"]: q["answer"] for q in questions(scene, BACKGROUNDS[background])}
        assert asked["how many objects are there?"] == NUMBERS[sum(g.count for g in scene)]
        for group in scene:
            assert asked[f"is there a {group.shape}?"] == "yes"
            assert asked[f"how many {plural(group.shape)} are there?"] == NUMBERS[group.count]
            if group.count == 1:
                assert asked[f"what color is the {group.shape}?"] == group.colour


def test_written_scenes_can_be_read(tmp_path):
    write_scenes(tmp_path / "set", 5, 64, 2)
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert all((tmp_path / "set" / line["file"]).exists() for line in lines)
    assert all(1 <= len(line["objects"]) <= 4 for line in lines)


@pytest.mark.parametrize("stays", ["manifest.json", "000003.png"])
def test_scenes_are_not_mixed_with_another_set(tmp_path, stays):
    for seed in (1, 2):  # replacing all of an older set is fine
        write_scenes(tmp_path, 3, 32, seed)
    (tmp_path / stays).write_text("of a larger set, or of a job")
    before = (tmp_path / "000000.png").read_bytes()
    with pytest.raises(VistokError, match=stays):
        write_scenes(tmp_path, 3, 32, 3)
    assert (tmp_path / "000000.png").read_bytes() == before


@pytest.mark.parametrize(("count", "side"), [(0, 64), (4, 8)])
def test_nonsense_numbers_are_refused(tmp_path, count, side):
    with pytest.raises(VistokError, match="at least"):
        write_scenes(tmp_path / "set", count, side)
    assert not (tmp_path / "set").exists()


def test_the_largest_kinds_are_those_of_no_smaller_object():
    scenes = sample_scenes(64, 6)
    for row in range(64):
        here = scenes.present[row]
        kinds, radii = scenes.kind[row][here], scenes.radius[row][here]
        assert set(scenes.kinds_present[row].nonzero().flatten().tolist()) == set(kinds.tolist())
        expected = set(kinds[radii == radii.max()].tolist())
        assert set(scenes.largest_kinds[row].nonzero().flatten().tolist()) == expected
    assert bool((scenes.largest_kinds != scenes.kinds_present).any())
