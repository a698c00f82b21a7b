"""GenEval end to end: folders, resume, summary, report, prompts; stub, exact and Mask2Former detectors."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vistok.cli.eval import app
from vistok.data.scenes import COLOURS, SHAPES
from vistok.errors import VistokError
from vistok.eval.geneval import (
    TASKS,
    DetectedColours,
    Detection,
    ScoringOptions,
    coco_prompts,
    evaluate_folder,
    read_folders,
    read_metadata,
    scene_prompts,
    score_images,
    summarise,
    write_metadata,
    write_prompt_folder,
    write_report,
)
from vistok.eval.geneval.mask2former import BACKGROUNDS, colour_crop, mask_boxes
from vistok.eval.geneval.metadata import COCO_CLASSES, colors
from vistok.eval.geneval.summary import read_summary, wilson_interval
from vistok.eval.protocol import compare

RED_CIRCLE = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a red circle"}
TWO_RINGS = {
    "tag": "counting",
    "include": [{"class": "ring", "count": 2}],
    "exclude": [{"class": "ring", "count": 3}],
    "prompt": "a photo of two rings",
}


class StubDetector:
    """Reads what it finds off the first pixel: (number of rings, circle's colour index, 0)."""

    name = "stub"
    class_names = ("circle", "ring")
    options = ScoringOptions(threshold=0.5, counting_threshold=0.5)
    calls = 0

    def detect(self, images):
        found = []
        for image in images:
            self.calls += 1
            rings, colour, _ = image.getpixel((0, 0))
            box = (0.0, 0.0, 4.0, 4.0)
            circle = Detection("circle", box, 0.9, colour=COLOURS[colour])
            found.append([circle] + [Detection("ring", box, 0.8)] * rings)
        return found


def picture(rings: int, colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), (rings, COLOURS.index(colour), 0))


@pytest.fixture
def generated(tmp_path):
    root = tmp_path / "out"
    write_prompt_folder(root, 0, RED_CIRCLE, [picture(0, "red"), picture(0, "blue")])
    write_prompt_folder(root, 1, TWO_RINGS, [picture(2, "red"), picture(3, "red")])
    (root / "notes").mkdir()
    return root


def evaluate(root, work, **options):
    detector = StubDetector()
    return detector, evaluate_folder(root, detector, DetectedColours(COLOURS), work, **options)


def test_a_folder_is_scored_with_reasons_and_a_report(generated, tmp_path):
    _, report = evaluate(generated, tmp_path / "work")
    assert [record["correct"] for record in report.records] == [True, False, True, False]
    reasons = [record["reason"] for record in report.failures]
    assert reasons == ["expected red circle>=1, found 0 red; and 1 blue", "expected ring<3, found 3"]
    assert report.summary.overall == 0.5 and report.summary.prompt_accuracy == 1.0

    write_report(report, tmp_path / "report")
    written = [json.loads(line) for line in (tmp_path / "report" / "results.jsonl").read_text().splitlines()]
    assert summarise(written) == read_summary(tmp_path / "report" / "summary.json") == report.summary
    assert {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"} == set(written[0])
    lines = (tmp_path / "report" / "failures.txt").read_text().splitlines()
    assert len(lines) == 2 and "found 3" in lines[1]
    assert Image.open(tmp_path / "report" / "failures.png").width > 8


def test_an_interrupted_evaluation_goes_on_where_it_was(generated, tmp_path):
    first, whole = evaluate(generated, tmp_path / "work")
    (tmp_path / "work" / "000001.json").unlink()
    second, resumed = evaluate(generated, tmp_path / "work")
    assert (first.calls, second.calls) == (4, 2)
    assert resumed.records == whole.records
    with pytest.raises(VistokError, match="another job"):
        evaluate(generated, tmp_path / "work", options=ScoringOptions(threshold=0.1))
    metadata = tmp_path / "metadata.jsonl"
    write_metadata(metadata, [RED_CIRCLE | {"prompt": "one red circle"}, TWO_RINGS])
    with pytest.raises(VistokError, match=r"another job .*prompts"):
        evaluate(generated, tmp_path / "work", metadata=metadata)


def test_scores_of_other_prompts_do_not_stand_beside_each_other(generated, tmp_path):
    results = [evaluate(generated, tmp_path / "work")[1].result("first")]
    again = generated.rename(tmp_path / "again")
    results.append(evaluate(again, tmp_path / "work")[1].result("second"))
    assert compare(results) == results
    write_metadata(again / "00000" / "metadata.jsonl", [colors("ring", "red")])
    results.append(evaluate(again, tmp_path / "other")[1].result("third"))
    with pytest.raises(VistokError, match=r"different protocols.*2 prompts"):
        compare(results)


def test_records_name_pictures_where_they_lie_now(generated, tmp_path):
    _, first = evaluate(generated, tmp_path / "work")
    moved = generated.rename(tmp_path / "elsewhere")
    judge, again = evaluate(moved, tmp_path / "work")
    assert judge.calls == 0 and again.summary == first.summary
    assert all(Path(record["filename"]).is_relative_to(moved) for record in again.records)
    write_report(again, tmp_path / "report")
    assert (tmp_path / "report" / "failures.png").exists()


def test_pictures_that_were_painted_again_are_judged_again(tmp_path):
    """Uncompressed or not: a picture of the same name and size is another one when it was written later."""
    root = tmp_path / "out"
    write_prompt_folder(root, 0, RED_CIRCLE, [picture(0, "red")])
    path = root / "00000" / "samples" / "0000.png"
    _, first = evaluate(root, tmp_path / "work")
    size = path.stat().st_size
    data = bytearray(path.read_bytes())
    write_prompt_folder(root, 0, RED_CIRCLE, [picture(0, "blue")])
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    assert first.summary.overall == 1 and len(data) == path.stat().st_size
    with pytest.raises(VistokError, match=r"another job .*pictures"):
        evaluate(root, tmp_path / "work")
    _, second = evaluate(root, tmp_path / "new")
    assert second.summary.overall == 0


def test_another_classifier_of_colours_is_another_job(generated, tmp_path):
    evaluate(generated, tmp_path / "work")
    named = DetectedColours(COLOURS)
    named.name = "clip 0123"
    with pytest.raises(VistokError, match=r"another job .*colours"):
        evaluate_folder(generated, StubDetector(), named, tmp_path / "work")
    report = evaluate_folder(generated, StubDetector(), named, tmp_path / "other")
    assert "colours=clip 0123" in report.protocol.options


def test_prompts_without_pictures_are_named_or_count_as_wrong(generated, tmp_path):
    metadata = tmp_path / "metadata.jsonl"
    records = [RED_CIRCLE, TWO_RINGS, RED_CIRCLE | {"tag": "single_object", "prompt": "a photo of a ring"}]
    write_metadata(metadata, records)
    with pytest.raises(VistokError, match=r'1 of the 3 prompts.*00002 "a photo of a ring".*--missing-wrong'):
        evaluate(generated, tmp_path / "work", metadata=metadata)
    _, report = evaluate(generated, tmp_path / "work", metadata=metadata, missing_wrong=True)
    assert report.summary.tasks["single_object"].accuracy == 0 and report.summary.tasks["single_object"].images == 2
    assert report.summary.overall == pytest.approx(1 / 3) and "counted wrong" in report.protocol.reference
    write_report(report, tmp_path / "report")
    assert "has no picture" in (tmp_path / "report" / "failures.txt").read_text()


def test_what_the_score_does_not_show_is_told(generated, tmp_path):
    (generated / "00001" / "samples" / "0001.png").unlink()
    (generated / "00001" / "samples" / "0001.jpg").write_bytes(b"x")
    _, report = evaluate(generated, tmp_path / "work")
    told = "; ".join(report.notes)
    assert "single_object, two_object" in told and "1 of 2 prompts have fewer pictures" in told and "1 file" in told


def test_two_folders_of_one_prompt_are_refused(generated):
    write_prompt_folder(generated, 0, RED_CIRCLE, [picture(0, "red")]).rename(generated / "0")
    write_prompt_folder(generated, 0, RED_CIRCLE, [picture(0, "red")])
    with pytest.raises(VistokError, match="both prompt 0"):
        read_folders(generated)


def test_rewritten_prompts_are_judged_by_the_official_line_and_labelled(generated, tmp_path):
    metadata = tmp_path / "metadata.jsonl"
    write_metadata(metadata, [RED_CIRCLE | {"prompt": "one circle, painted red"}, TWO_RINGS])
    _, report = evaluate(generated, tmp_path / "work", metadata=metadata)
    assert "rewritten" in report.protocol.reference
    write_metadata(metadata, [TWO_RINGS, TWO_RINGS])
    with pytest.raises(VistokError, match="other objects"):
        read_folders(generated, metadata)


def test_prompts_that_the_detector_cannot_judge_are_refused(generated, tmp_path):
    write_prompt_folder(generated, 2, {**RED_CIRCLE, "include": [{"class": "dog", "count": 1}]}, [picture(0, "red")])
    with pytest.raises(VistokError, match="cannot find a 'dog'"):
        evaluate(generated, tmp_path / "work")


@pytest.mark.parametrize("damage", ["no folder", "no prompts", "no pictures", "no metadata"])
def test_folders_that_cannot_be_scored_say_why(tmp_path, damage):
    root = tmp_path / "out"
    if damage != "no folder":
        root.mkdir()
    if damage == "no pictures":
        (root / "00000").mkdir()
    if damage == "no metadata":
        (write_prompt_folder(root, 0, RED_CIRCLE, [picture(0, "red")]) / "metadata.jsonl").unlink()
    expected = {"no folder": "there is no", "no prompts": "no GenEval set", "no pictures": "no pictures"}
    with pytest.raises(VistokError, match=expected.get(damage, "no metadata.jsonl")):
        read_folders(root)


ITEM = {"class": "dog", "count": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude": None}, "'exclude' is None"),
        ({"exclude": ITEM}, "'exclude' is"),
        ({"exclude": [None]}, "every item"),
        ({"exclude": [ITEM | {"count": 0}]}, "at least 1"),
        ({"include": None}, "at least one object"),
        ({"include": []}, "at least one object"),
        ({"include": ["dog"]}, "every item"),
        ({"include": [{"class": ["dog"], "count": 1}]}, "every item"),
        ({"include": [ITEM | {"count": 0}]}, "at least 1"),
        ({"include": [ITEM | {"count": -1}]}, "at least 1"),
        ({"include": [ITEM | {"count": True}]}, "at least 1"),
        ({"include": [ITEM | {"count": 1.0}]}, "at least 1"),
        ({"include": [ITEM | {"color": None}]}, "color .* None"),
        ({"include": [ITEM | {"color": ["red", "blue"]}]}, "color"),
        ({"include": [ITEM | {"colour": "red"}]}, "'dog' has colour"),
        ({"include": [ITEM, ITEM | {"position": "left of"}]}, "position .*'left of'"),
        ({"include": [ITEM, ITEM | {"position": None}]}, "position .*None"),
        ({"include": [ITEM, ITEM | {"position": ["left of"]}]}, "position"),
        ({"include": [ITEM, ITEM | {"position": ["left of", "0"]}]}, "position"),
        ({"include": [ITEM, ITEM | {"position": ["left of", 1]}]}, "earlier item"),
        ({"include": [ITEM | {"position": ["left of", -1]}]}, "earlier item"),
        ({"include": [ITEM, ITEM | {"position": [["left of"], 0]}]}, "earlier item"),
        ({"prompt": None}, "prompt is None"),
        ({"tag": ["colors"]}, "its tag"),
    ],
)
def test_metadata_that_ask_for_nothing_or_for_what_is_not_understood_are_named(tmp_path, change, message):
    record = {"tag": "position", "prompt": "x", "include": [ITEM]}
    write_metadata(tmp_path / "m.jsonl", [record, record | change])
    with pytest.raises(VistokError, match=rf"line 2 .*{message}"):
        read_metadata(tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 .* not JSON"),
        ('{"tag": "colours"}', "its tag"),
        ('{"tag": "colors", "prompt": "x"}', "include"),
        ('{"tag": "colors", "prompt": "x", "include": [{"class": "a"}]}', "class and a count"),
        (
            '{"tag": "position", "prompt": "x", "include": [{"class": "a", "count": 1, "position": ["near", 0]}]}',
            "relation",
        ),
        ("", "empty"),
    ],
)
def test_metadata_lines_out_of_format_are_named(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(VistokError, match=message):
        read_metadata(tmp_path / "m.jsonl")


def test_prompt_sets_are_reproducible_distinct_and_in_the_published_format(tmp_path):
    scenes = scene_prompts(SHAPES, COLOURS, seed=3)
    assert scenes == scene_prompts(SHAPES, COLOURS, seed=3) != scene_prompts(SHAPES, COLOURS, seed=4)
    for prompts, classes in ((scenes, SHAPES), (coco_prompts(), COCO_CLASSES)):
        write_metadata(tmp_path / "m.jsonl", prompts)
        assert read_metadata(tmp_path / "m.jsonl") == prompts
        assert {record["tag"] for record in prompts} == set(TASKS)
        texts = Counter(record["prompt"] for record in prompts)
        assert max(texts.values()) == 1
        assert {item["class"] for record in prompts for item in record["include"]} == set(classes)
        assert all("exclude" in record for record in prompts if record["tag"] == "counting")
    position = next(record for record in scenes if record["tag"] == "position")
    reference, described = position["include"]
    assert position["prompt"].index(f" {described['class']} ") < position["prompt"].index(described["position"][0])
    assert position["prompt"].endswith(reference["class"])
    assert not any(
        "color" in item and item["class"] == "person" for record in coco_prompts() for item in record["include"]
    )


def test_scene_prompts_stay_inside_what_captions_can_say():
    from vistok.data.scenes import vocabulary

    words = set(vocabulary())
    assert {word for record in scene_prompts(SHAPES, COLOURS) for word in record["prompt"].split()} <= words


def test_summary_by_hand():
    def records(tag, prompt, *verdicts):
        return [{"tag": tag, "metadata": prompt, "correct": verdict} for verdict in verdicts]

    summary = summarise(
        records("colors", "a", True, True, False, True)
        + records("colors", "b", False, False, False, False)
        + records("single_object", "c", True, True)
    )
    assert summary.tasks["colors"].accuracy == 3 / 8 and summary.tasks["single_object"].accuracy == 1
    assert summary.overall == (3 / 8 + 1) / 2  # the mean of the tasks, not of the pictures
    assert summary.image_accuracy == 5 / 10 and summary.prompt_accuracy == 2 / 3
    assert list(summary.tasks) == ["single_object", "colors"]


def test_pictures_of_one_prompt_do_not_count_as_independent():
    together = [{"tag": "colors", "metadata": str(p), "correct": p < 10} for p in range(20) for _ in range(4)]
    mixed = [{"tag": "colors", "metadata": str(p), "correct": i < 2} for p in range(20) for i in range(4)]
    wide, narrow = (summarise(records).tasks["colors"] for records in (together, mixed))
    assert (wide.low, wide.high) == pytest.approx(wilson_interval(0.5, 20))
    assert (narrow.low, narrow.high) == pytest.approx(wilson_interval(0.5, 80))


def test_the_exact_detector_scores_ground_truth_pictures_through_the_same_code():
    from vistok.data.scenes import groups, render, sample_scenes
    from vistok.eval.geneval.load import load_detector

    detector, colours = load_detector("scenes")
    scenes = sample_scenes(40, seed=5)
    pixels = ((render(scenes, 64) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures, wrong = [], []
    for scene, array in zip(groups(scenes), pixels, strict=True):
        include = [{"class": g.shape, "count": g.count, "color": g.colour} for g in scene[:1]]
        metadata = {"tag": "colors", "include": include, "prompt": ""}
        pictures.append((metadata, Image.fromarray(array), ""))
        other = COLOURS[(COLOURS.index(scene[0].colour) + 1) % len(COLOURS)]
        wrong.append(({**metadata, "include": [include[0] | {"color": other}]}, Image.fromarray(array), ""))
    right = [record["correct"] for record in score_images(pictures, detector, colours)]
    assert sum(right) >= 38
    assert not any(record["correct"] for record in score_images(wrong, detector, colours))


def test_the_exact_detector_takes_pictures_of_several_sizes():
    from vistok.data.images import to_pil
    from vistok.data.scenes import render, sample_scenes
    from vistok.eval.geneval.detectors import SceneDetector

    scenes = sample_scenes(2, seed=5)
    small, large = (to_pil(render(scenes, side)) for side in (64, 128))
    mixed = SceneDetector().detect([small[0], large[1], small[1]])
    assert mixed == [SceneDetector().detect([image])[0] for image in (small[0], large[1], small[1])]


def test_boxes_of_masks():
    masks = torch.zeros(2, 6, 7, dtype=torch.bool)
    masks[0, 2:4, 1:6] = True
    assert mask_boxes(masks).tolist() == [[1, 2, 6, 4], [0, 0, 0, 0]]


def test_the_background_of_a_colour_crop_is_grey_or_the_pictures_own():
    image, mask = Image.new("RGB", (4, 4), (1, 2, 3)), np.zeros((4, 4), dtype=bool)
    mask[0, 0] = True
    grey, own = (colour_crop(image, (0.0, 0.0, 6.0, 4.0), mask, BACKGROUNDS[name]) for name in ("grey", "original"))
    assert [crop.getpixel((0, 0)) for crop in (grey, own)] == [(1, 2, 3)] * 2
    assert grey.getpixel((3, 3)) == (153, 153, 153) and own.getpixel((3, 3)) == (1, 2, 3)
    assert grey.getpixel((5, 0)) == own.getpixel((5, 0)) == (0, 0, 0)


@pytest.fixture
def clip_folder(tmp_path):
    """A CLIP of random weights with a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    (tmp_path / "clip").mkdir()
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters), "-</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path / "clip")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=size | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clipscore_of_pictures_with_captions(clip_folder, tmp_path):
    from vistok.eval.clip_score import ClipModel, clip_scores

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    plain = clip_scores(ClipModel(clip_folder), [image, image], ["a dog", "a zebra"], weight=1.0)
    assert plain.shape == (2,) and (plain >= 0).all() and (plain <= 1 + 1e-6).all()

    with pytest.warns(UserWarning, match="a dog.*cut off"):
        clip_scores(ClipModel(clip_folder), [image], ["a dog " * 100])

    broken = ClipModel(clip_folder)
    broken.model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(VistokError, match="NaN"):
        clip_scores(broken, [image], ["a dog"])

    (tmp_path / "pictures").mkdir()
    image.save(tmp_path / "pictures" / "a.png")
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps({"image": "a.png", "caption": c}) + "\n" for c in ("a dog", "a zebra")))
    folders = ("--images", tmp_path / "pictures", "--captions", captions, "--clip", clip_folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*left out")
        outcome = CliRunner().invoke(app, ["clipscore", *map(str, folders), "--json", "-"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)[0]["value"] == pytest.approx(2.5 * plain.mean().item(), rel=1e-5)

    first = json.loads(outcome.stdout)[0]["protocol"]
    captions.write_text(captions.read_text().replace("a dog", "a cat"))
    other = CliRunner().invoke(app, ["clipscore", *map(str, folders), "--json", "-"])
    assert first["reference"] != json.loads(other.stdout)[0]["protocol"]["reference"]

    for name in ("b.png", "c.jpe"):  # a folder of one's own, of which one picture has a caption
        image.save(tmp_path / "pictures" / name, format="png")
    with pytest.warns(match=r"of 'pictures' was left out: 2 pictures without a caption \(b.png, c.jpe\)"):
        outcome = CliRunner().invoke(app, ["clipscore", *map(str, folders), "--json", "-"])
    assert json.loads(outcome.stdout)[0]["protocol"]["samples"] == 2
    for weight in ("nan", "-1", "0", "inf"):
        refused = CliRunner().invoke(app, ["clipscore", *map(str, folders), "--weight", weight])
        assert isinstance(refused.exception, VistokError) and "weight of the cosine" in str(refused.exception)


@pytest.mark.slow  # imports transformers' Mask2Former and runs it at 800 pixels
def test_mask2former_and_clip_from_folders_judge_a_picture(clip_folder, tmp_path):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    from vistok.eval.geneval.load import load_detector

    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    detector_config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=80,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
    )
    Mask2FormerForUniversalSegmentation(detector_config).save_pretrained(tmp_path / "mask2former")
    with pytest.raises(VistokError, match="needs a CLIP"):
        load_detector(str(tmp_path / "mask2former"))

    detector, colours = load_detector(str(tmp_path / "mask2former"), str(clip_folder))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    (found,) = detector.detect([image])
    assert found and all(d.mask.shape == (60, 90) and d.label in COCO_CLASSES for d in found)
    named = colours.colours(image, "dog", found[:3])
    next(detector.model.parameters()).fill_(float("nan"))
    with pytest.raises(VistokError, match="NaN"):
        detector.detect([image])
    assert "grey" in colours.name
    with pytest.raises(VistokError, match="did you mean original"):
        load_detector(str(tmp_path / "mask2former"), str(clip_folder), "orginal")
    assert len(named) == 3 and set(named) <= set(colours.colour_names)
