"""Every tokenizer and the published objectives of the generators train on a folder of one's own pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import vistok
from vistok import zoo
from vistok.cli.main import app
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.tokenizers.load import load_tokenizer
from vistok.train.export import located
from vistok.train.options import read_options
from vistok.train.recipe import Optimization, Recipe
from vistok.train.sources import FolderSource, PictureData, open_source
from vistok.train.sources.captions import read_captions
from vistok.train.tasks import SUPERVISED, TASKS, build_task
from vistok.train.trainer import Trainer

MODES = ("RGB", "L", "RGBA", "P", "1", "LA")
WORDS = ("a red circle", "two small squares", "a blue ring on a plain background")
ONE_D = {"encoder": [32, 1, 2], "decoder": [32, 1, 2], "num_tokens": 4, "codebook_size": 16, "token_size": 4}
ONE_D |= {"legacy": False, "pixel_decoder": False, "variable_length": True, "image_size": 32, "patch_size": 8}
FLEX = {"encoder": [32, 1], "decoder": [32, 1], "head_dim": 16, "registers": 4, "levels": [4, 4, 4]}
FLEX |= {"latent_channels": 5, "latent_size": 8, "patch": 2, "time_features": 16}
FLOW = {"image_size": 64, "codebook_size": 32, "semantic_dim": 8, "scales": [1, 16]}
FLOW |= {"semantic_width": 24, "semantic_depth": 1, "semantic_heads": 2}
VQ = {"codebook_size": 32, "channels": 32, "channel_mult": [1, 1, 2], "res_blocks": 1, "z_channels": 32}
KL = {"channels": 32, "channel_mult": [1, 1, 2], "res_blocks": 1, "z_channels": 4}
KL |= {"encoder_attention": [2], "decoder_attention": [2]}
SEED = {"tower": "scenes", "image_size": 64, "tower_width": 64, "width": 32, "layers": 2, "heads": 2, "hidden": 64}
SEED |= {"num_tokens": 4, "codebook_size": 16, "code_dim": 8, "decode_layers": 1, "decode_heads": 2}
SEED |= {"image_down": [16, 8], "pixels": "vq-mini", "pixel_layers": 1}
SEED_INIT = {"tower": "scenes-features", "text_encoder": "llamagen-mini"}
CELLS = ONE_D | {"encoder": [96, 1, 1], "decoder": [96, 1, 1], "num_tokens": 16}
TOKENIZERS = {  # task: model, init, data
    "vq": (VQ, {}, {"size": 32}),
    "kl": (KL, {}, {"size": 32, "divergence": 1e-3}),
    "one-d-piece": (ONE_D, {}, {}),
    "one-d-piece from cells": (CELLS, {}, {"start": "cells", "start_pictures": 8, "keep": "step", "often": 16}),
    "seed": (SEED, SEED_INIT, {"queries_until": 1, "codes_until": 2}),
    "flextok": (FLEX, {"kl": "kl-mini"}, {}),
    "tokenflow": (FLOW, {"vq": "vq-mini", "teacher": "scenes-features"}, {"semantic": 1.0}),
}
GPT = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 16}
MAR = {"patch_size": 2, "encoder_embed_dim": 32, "encoder_depth": 1, "encoder_num_heads": 2, "buffer_size": 2}
MAR |= {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "diffloss_d": 1, "diffloss_w": 32}
XAR = {"entity": "cell:2", "embed_dim": 32, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}
MASKED = {"embed_dim": 32, "num_heads": 2}
TEXT = {"vq": "vq-mini", "text_encoder": "llamagen-mini"}
GENERATORS = {
    "llamagen": (GPT, TEXT, {"size": 32}),
    "llamagen of classes": (GPT | {"model_type": "c2i"}, {"vq": "vq-mini"}, {"size": 32}),
    "llamagen-sequence": (GPT, TEXT | {"vq": "one-d-piece-mini"}, {"size": 64, "tokens": 8}),
    "mar": (MAR, {"kl": "kl-mini"}, {"size": 32}),
    "xar": (XAR, {"kl": "kl-mini"}, {"size": 32}),
    "enat": (MASKED | {"enc_depth": 1, "dec_depth": 1}, {"tokenizer": "vq-mini"}, {"size": 32}),
    "maskgit": (MASKED | {"depth": 1}, {"tokenizer": "vq-mini"}, {"size": 32}),
}
EAGLE = ({"intermediate_size": 64}, {"vq": "vq-mini", "gpt": "llamagen-mini"})
EAGLE += ({"size": 64, "guidance": 2.0, "token_weight": 1.0, "noise": 1.0},)
READ = {"tokenizer": "vq-mini", "text_encoder": "llamagen-mini"}
MASKED_OF_CAPTIONS = (MASKED | {"depth": 1}, READ, {"size": 32})
XAR_OF_CAPTIONS = (XAR, {"kl": "kl-mini", "text_encoder": "llamagen-mini"}, {"size": 32})
OF_CAPTIONS = {"maskgit of captions": MASKED_OF_CAPTIONS, "xar of captions": XAR_OF_CAPTIONS}
EVERY = TOKENIZERS | GENERATORS | {"eagle": EAGLE} | OF_CAPTIONS


def draw_pictures(root: Path, count: int = 6) -> Path:
    """Pictures of all modes and of many sizes in two folders, with a caption beside each."""
    for i in range(count):
        path = root / ("cats" if i % 2 else "dogs") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40 + 7 * i, 70 - 5 * i, 3), generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.byte().numpy()).convert(MODES[i % len(MODES)]).save(path)
        path.with_suffix(".txt").write_text(WORDS[i % len(WORDS)] + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("mine"))


def recipe(case: str, folder: Path, **data) -> Recipe:
    model, init, entries = EVERY[case]
    source = {"source": "folder", "path": str(folder)}
    return Recipe(
        name="mine",
        task=case.split()[0],
        steps=2,
        batch_size=2,
        log_every=1,
        optimization=Optimization(lr=1e-3, warmup=1),
        model=model,
        init=init,
        data=entries | source | data,
    )


def run(case: str, folder: Path, directory: Path) -> dict[str, float]:
    mine = recipe(case, folder)
    metrics = Trainer(mine, build_task(mine), directory).train()
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines[:2])
    assert zoo.read_card(directory / "export").data == f"pictures of the folder '{folder.name}'"
    return metrics


@pytest.mark.parametrize("task", TOKENIZERS)
def test_a_tokenizer_trains_on_a_folder(task, folder, tmp_path):
    metrics = run(task, folder, tmp_path)
    assert any(name.startswith("psnr") for name in metrics)
    assert not any(name.startswith(("probe", "right_class")) for name in metrics)
    tokenizer = load_tokenizer(str(tmp_path / "export")).tokenizer
    side = tokenizer.capabilities.image_size or 32
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, side, side))).shape == (1, 3, side, side)


@pytest.mark.parametrize("case", GENERATORS)
def test_a_generator_trains_on_a_folder_with_its_published_loss_alone(case, folder, tmp_path):
    metrics = run(case, folder, tmp_path)
    assert metrics["held_out_loss"] > 0
    task = build_task(recipe(case, folder))
    assert "vistok.train.tasks.scenes" not in type(task).__module__
    _, parts = task.model(**task.batch(0, slice(0, 2)))
    assert set(parts) in ({"codes"}, {"head"}, {"velocity"})
    if case == "llamagen of classes":
        assert LlamaGen.from_pretrained(tmp_path / "export").config.num_classes == 2
        assert zoo.read_card(tmp_path / "export").task == "class-to-image"


@pytest.mark.parametrize("case", EVERY)
def test_a_batch_is_a_function_of_step_and_rows(case, folder):
    def batch(step, rows):
        torch.manual_seed(step)
        return build_task(recipe(case, folder)).batch(step, rows)

    whole, again, half = batch(3, slice(0, 2)), batch(3, slice(0, 2)), batch(3, slice(1, 2))
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
        if value.ndim == 0:  # one number for all rows
            assert torch.equal(half[name], value)
        elif case.split()[0] not in ("mar", "xar"):  # whose draws of latents are seeded by process
            torch.testing.assert_close(half[name].float(), value[1:].float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("case", EVERY)
def test_an_evaluation_is_a_function_of_the_weights(case, folder):
    task = build_task(recipe(case, folder))
    task.model.eval()
    figures = []
    for seed in (1, 2):  # as after other steps
        torch.manual_seed(seed)
        with torch.no_grad():
            figures.append(task.evaluate())
    assert figures[0] == figures[1]


def test_a_killed_run_goes_on(folder, tmp_path):
    mine = recipe("vq", folder)
    Trainer(mine, build_task(mine), tmp_path / "whole").train()
    task = build_task(mine)
    task.after_step = lambda step: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        Trainer(mine, task, tmp_path / "broken").train()
    Trainer(mine, build_task(mine), tmp_path / "broken").train()
    whole, broken = (load_tokenizer(str(tmp_path / run / "export")).sha256 for run in ("whole", "broken"))
    assert whole == broken


def test_a_generator_finds_its_tokenizer_from_any_folder(folder, tmp_path, monkeypatch):
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"))  # no UTF-8; the card tells the name of the folder
    shutil.copytree(folder, strange)
    monkeypatch.chdir(tmp_path)
    run("vq", strange, Path("runs/vq"))
    mine = replace(recipe("llamagen of classes", folder), init={"vq": "runs/vq/export"})
    Trainer(mine, build_task(mine), Path("gpt")).train()
    monkeypatch.chdir("runs")
    assert vistok.pipeline(checkpoint=str(tmp_path / "gpt" / "export"))(0).images[0].size == (32, 32)
    Path("vq-mini").mkdir()
    assert [located(name) for name in ("vq-mini", "owner/name")] == ["vq-mini", "owner/name"]


def opened(folder: Path, **entries):
    return open_source(read_options(PictureData, {"source": "folder", "path": str(folder), **entries}, "data"), 32)


def test_each_pass_sees_every_training_picture_once_and_none_of_the_held_out(folder):
    source = opened(folder)
    assert len(source) + len(source.held_out()) == 6
    assert not set(source.paths) & set(source.held_out().paths)
    draws = [source.draw(start, len(source)) for start in (0, len(source), 2 * len(source))]
    assert all(sorted(draw.index.tolist()) == list(range(len(source))) for draw in draws)
    assert len({tuple(draw.index.tolist()) for draw in draws}) > 1
    assert not torch.equal(source.augmented(draws[0]._replace(index=draws[1].index)), source.augmented(draws[1]))


def test_a_picture_that_goes_moves_no_other_from_training_to_evaluation(tmp_path):
    for i in range(48):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    before, held_out = opened(tmp_path), {*opened(tmp_path).held_out().paths}
    assert len(held_out) == 3 and held_out != {*opened(tmp_path, seed=1).held_out().paths}
    for gone in before.paths[::9]:
        gone.unlink()
        assert {*opened(tmp_path).held_out().paths} <= held_out
    some = opened(tmp_path, pictures=9).paths
    assert some == opened(tmp_path).paths[:9]


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_any_mode_are_three_channels(mode, tmp_path):
    for i in range(2):
        Image.new(mode, (50, 40)).save(tmp_path / f"{i}.png")
    source = opened(tmp_path)
    assert source.pictures(torch.tensor([0])).shape == source.augmented(source.draw(0, 1)).shape == (1, 3, 32, 32)
    assert source.labels(torch.tensor([0])).tolist() == [0] and source.classes == ()


@pytest.mark.parametrize("keys", [("file", "caption"), ("file_name", "text"), ("image", "caption")])
def test_captions_are_read_from_lines_of_json(keys, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    lines = [
        json.dumps(dict(zip(keys, (f"{n}.png", f"it is \u2028 {n}"), strict=True)), ensure_ascii=False) for n in "ab"
    ]
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + "\n\n".join(lines) + "\n", encoding="utf-8")
    source = opened(tmp_path)
    assert source.captions(source.draw(0, 1)) == [f"it is {source.paths[0].stem}"]


def test_captions_that_are_not_read_are_told(tmp_path):
    lines = [{"file": f"{name}.png", "caption": said} for name, said in ("a1", "b2", "a3", "a3", "c4", "d5")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning) as told:
        captions = read_captions(tmp_path, [tmp_path / "a.png"])
    assert captions == ["3"]
    several, absent = sorted((str(each.message) for each in told), key=lambda text: "not there" in text)
    assert several.endswith("1 pictures, the last is read: a.png") and absent.endswith(
        "2 files that are not there: c.png, d.png"
    )


def broken(folder: Path, fault: str) -> None:
    if fault == "unreadable":
        for path in folder.rglob("*.png"):
            path.write_bytes(b"not a picture")
    elif fault == "no captions":
        for path in folder.rglob("*.txt"):
            path.unlink()
    elif fault == "null caption":
        (folder / "metadata.jsonl").write_text('{"file": "cats/1.png", "caption": null}\n')
    elif fault == "strange words":
        (folder / "cats" / "1.txt").write_text("an aardvark")
    elif fault == "no class":
        for path in (folder / "cats").iterdir():
            path.rename(folder / path.name)
    elif fault == "empty":
        for path in folder.rglob("*.png"):
            path.unlink()


@pytest.mark.parametrize(
    ("case", "fault", "data", "culprits"),
    [
        ("vq", "empty", {}, ["no image", "mine"]),
        ("vq", "", {"path": "nowhere"}, ["nowhere"]),
        ("vq", "", {"path": None}, ["data.path"]),
        ("vq", "", {"path": ""}, ["data.path", "empty"]),
        ("vq", "", {"held_out": ""}, ["data.held_out", "empty"]),
        ("eagle", "", {"size": 32}, ["block_size 256", "64"]),
        ("vq", "unreadable", {}, [".png", "replace or remove"]),
        ("vq", "", {"size": 30}, ["data.size", "30", "multiple of 4"]),
        ("vq", "", {"size": -4}, ["data.size", "-4"]),
        ("vq", "", {"pictures": 9}, ["data.pictures", "9"]),
        ("vq", "", {"eval_pictures": 0}, ["data.eval_pictures"]),
        ("vq", "", {"source": "web"}, ["data.source", "web", "folder"]),
        ("vq", "", {"source": "scenes"}, ["data.path", "source: folder"]),
        ("llamagen", "no captions", {}, ["caption", ".txt", "metadata.jsonl"]),
        ("llamagen", "null caption", {}, ["line 1", "metadata.jsonl", "None"]),
        ("llamagen", "strange words", {}, ["aardvark", "init.text_encoder"]),
        ("llamagen", "", {"supervision": {"now": 0.1}}, ["data.supervision", "leave it out"]),
        ("flextok", "", {"supervision": [0.1, 0.1, 0.1]}, ["data.supervision", "leave it out"]),
        ("mar", "", {"supervision": [0.1, 0.1]}, ["data.supervision", "leave it out"]),
        ("mar", "no class", {}, ["class folders", "dogs"]),
        ("llamagen of classes", "no class", {}, ["class folders", "dogs"]),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_in_a_sentence(case, fault, data, culprits, tmp_path):
    folder = draw_pictures(tmp_path / "mine")
    broken(folder, fault)
    mine = recipe(case, folder, **data)
    with pytest.raises(VistokError) as told:
        for step in range(3):
            build_task(mine).batch(step, slice(0, 2))
    assert all(culprit in str(told.value) for culprit in culprits), told.value
    assert str(told.value).count("\n") == 0


CAPTIONED = ("llamagen", "llamagen-sequence", *OF_CAPTIONS, "eagle", "seed")
OF_CLASSES = ("llamagen of classes", "mar", "xar", "enat", "maskgit")


def held_out_apart(tmp_path: Path) -> tuple[Path, Path]:
    return draw_pictures(tmp_path / "mine"), draw_pictures(tmp_path / "others", 4)


@pytest.mark.parametrize("case", CAPTIONED)
@pytest.mark.parametrize("fault", ["no captions", "strange words"])
def test_captions_are_checked_before_anything_is_trained(case, fault, tmp_path):
    folder, others = held_out_apart(tmp_path)
    for wrong in (folder, others) if case != "seed" else (folder,):  # which evaluates pictures alone
        broken(wrong, fault)
        with pytest.raises(VistokError, match=r"no caption in|aardvark"):
            build_task(recipe(case, folder, held_out=str(others)))
        draw_pictures(wrong, 4 if wrong is others else 6)


@pytest.mark.parametrize("case", OF_CLASSES)
def test_classes_are_checked_before_anything_is_trained(case, tmp_path):
    folder, others = held_out_apart(tmp_path)
    build_task(recipe(case, folder, held_out=str(others)))
    (others / "cats").rename(others / "birds")
    with pytest.raises(VistokError, match=r"birds.* is in none of the class folders cats, dogs"):
        build_task(recipe(case, folder, held_out=str(others)))
    broken(folder, "no class")
    with pytest.raises(VistokError, match=r"mine.* is in none of the class folders dogs"):
        build_task(recipe(case, folder))


def test_what_nothing_is_learnt_of_is_told(tmp_path):
    folder = draw_pictures(tmp_path / "mine")
    for name in ("birds", ".git", "cats/._1.png"):
        (folder / name).mkdir()
    (folder / "cats" / "7.heic").write_bytes(b"a kind that is not read")
    with pytest.warns(UserWarning) as told:
        build_task(recipe("mar", folder, pictures=1))
    told = " ".join(str(each.message) for each in told)
    assert "2 hidden folders" in told and ".heic" in told and ".txt" not in told
    assert "birds': it holds no picture, and is no class" in told
    assert re.search(r"(cats|dogs)': all of its pictures are kept for evaluation", told)
    (folder / "cats" / "1.txt").write_text("a red circle " * 40)
    with pytest.warns(UserWarning, match=r"1 of 6 captions .*cut off.*'a red circle"):
        build_task(recipe("llamagen", folder))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("inner", ["val", "deep/val"])
def test_held_out_pictures_within_the_folder_are_not_trained_on(inner, tmp_path):
    folder = draw_pictures(tmp_path / "mine")
    held_out = draw_pictures(folder / inner, 2)
    source = open_source(
        PictureData(source="folder", path=str(folder), held_out=str(held_out)), 32, by_class=inner == "val"
    )
    assert len(source) == 6 and source.classes == ("cats", "dogs") and len(source.held_out()) == 2
    assert not set(source.paths) & set(source.held_out().paths)
    around = opened(held_out, held_out=str(folder))
    assert (len(around), len(around.held_out())) == (2, 6)
    for path in (folder / "cats", folder / "dogs"):
        shutil.rmtree(path)
    with pytest.raises(VistokError, match="name folders of different pictures"):
        opened(folder, held_out=str(held_out))


def test_one_picture_is_too_few(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(VistokError, match=r"one picture.*data.held_out"):
        opened(tmp_path)
    assert len(opened(tmp_path, held_out=str(tmp_path))) == 1


def test_the_walk_through_of_the_documentation_runs(folder, tmp_path, monkeypatch):
    """The YAML block and the commands behind it in docs/training.md, at two steps."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    block = page.split("## Your own pictures", 1)[1].split("```yaml\n", 1)[1].split("```", 1)[0]
    entries = yaml.safe_load(block) | {"steps": 2, "batch_size": 2}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(folder)
    entries["data"] |= {"size": 32}
    Path("my-vq.yaml").write_text(yaml.safe_dump(entries))
    out = CliRunner().invoke(app, ["train", "my-vq.yaml", "--out", "runs/my-vq"])
    assert out.exit_code == 0, out.output
    picture = next(folder.rglob("*.png"))
    Image.open(picture).convert("RGB").resize((32, 32)).save("small.png")
    out = CliRunner().invoke(app, ["tokenize", "small.png", "--tokenizer", "runs/my-vq/export", "-o", "small.vtok"])
    assert out.exit_code == 0, out.output


def test_tasks_are_named_once():
    assert set(SUPERVISED) < set(TASKS)
    assert isinstance(build_task(recipe("vq", Path(__file__).parent, source="scenes", path=None)), TASKS["vq"])
    with pytest.raises(VistokError, match="did you mean llamagen"):
        TASKS["lamagen"]


def test_a_folder_source_holds_what_it_says(folder):
    assert isinstance(opened(folder), FolderSource)
    assert opened(folder).classes == ("cats", "dogs")
