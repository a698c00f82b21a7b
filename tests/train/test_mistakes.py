"""Mistakes in recipes: each gets one sentence that names the entry, before anything is trained or written."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
import yaml
from typer.testing import CliRunner

from tests.train.test_own_pictures import EVERY, TOKENIZERS, draw_pictures, recipe
from tests.train.tiny import RECIPES, texts, tiny
from vistok.cli.main import app
from vistok.errors import VistokError
from vistok.train.options import Fraction, check_agreement, read_options
from vistok.train.recipe import Optimization, Recipe
from vistok.train.tasks import TASKS, build_task, text
from vistok.train.trainer import Trainer

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# Two tasks read their corpus or a large network first; their kinds are tried by the others.
QUICK = [name for name in NAMES if name not in ("text-mini", "text-mini-draft", "pvc-mini", "llava-next-mini")]


@pytest.fixture(autouse=True)
def short_corpus(monkeypatch):
    monkeypatch.setattr(text, "documents", texts)


@pytest.mark.parametrize("section", ["data", "init", "model"])
@pytest.mark.parametrize("name", QUICK)
def test_an_unknown_entry_is_refused_by_its_name(name, section):
    recipe = tiny(name)
    with pytest.raises(VistokError, match="colour_of_money") as told:
        build_task(replace(recipe, **{section: getattr(recipe, section) | {"colour_of_money": 1}}))
    assert section in str(told.value)


@pytest.mark.parametrize("name", [name for name in QUICK if "size" in Recipe.load(RECIPES / f"{name}.yaml").data])
def test_a_wrong_type_is_refused(name):
    recipe = tiny(name)
    with pytest.raises(VistokError, match=r"'data.size' must be a whole number, got 'large'"):
        build_task(replace(recipe, data=recipe.data | {"size": "large"}))


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"one-d-piece"}))  # which has the published shape
def test_what_a_task_needs_is_told(task):
    with pytest.raises(VistokError, match=r"lacks the entries|init\.(kl|tower)"):
        build_task(Recipe(name="x", task=task, steps=1, batch_size=2))


@pytest.mark.parametrize("case", EVERY)
def test_a_shape_of_nothing_is_a_network_or_a_sentence(case, tmp_path):
    mine = recipe(case, draw_pictures(tmp_path))
    for name, value in mine.model.items():
        if isinstance(value, int) and not isinstance(value, bool):
            with contextlib.suppress(VistokError):
                build_task(replace(mine, model=mine.model | {name: 0}))


def test_a_shape_that_no_network_has_is_told(tmp_path):
    mine = recipe("enat", draw_pictures(tmp_path))
    with pytest.raises(VistokError, match=r"no ENAT has this shape .*zero.*: mend"):
        build_task(replace(mine, model=mine.model | {"num_heads": 0}))


@pytest.mark.parametrize("name", ["mar-mini", "flextok-mini", "llamagen-mini"])
def test_supervision_of_another_shape_is_refused(name):
    recipe = tiny(name)
    for wrong in ("much", {"hue": 1.0}, [1.0]):
        with pytest.raises(VistokError, match=r"data\.supervision"):
            build_task(replace(recipe, data=recipe.data | {"supervision": wrong}))


@pytest.mark.parametrize("name", ["vq-mini", "flextok-mini", "mar-mini", "llamagen-flextok-mini"])
def test_a_recipe_with_the_older_names_of_entries_trains_the_same(name):
    recipe = tiny(name)
    was = {"pictures": "scenes", "eval_pictures": "eval_scenes", "anchor_pictures": "anchor_scenes"}
    older = replace(recipe, data={was.get(key, key): value for key, value in recipe.data.items()})
    with pytest.warns(FutureWarning, match=r"eval_scenes.*is.*eval_pictures"):
        task = build_task(older)
    assert task.data == build_task(recipe).data


def test_weights_that_a_run_goes_on_from_must_have_the_shape_of_the_recipe():
    recipe = tiny("llamagen-mini")
    with pytest.raises(VistokError, match=r"'model.dim' is 64.*have 192"):
        build_task(replace(recipe, model=recipe.model | {"dim": 64}))


@pytest.mark.parametrize("size", [48, 128])
def test_pictures_of_another_size_than_the_weights_are_refused(size):
    for name in ("llamagen-mini", "mar-mini"):
        recipe = tiny(name)
        with pytest.raises(VistokError, match=r"block_size|img_size"):
            build_task(replace(recipe, model={}, data=recipe.data | {"size": size}))


def test_measured_worlds_are_not_trained_on():
    for name in ("vq-mini", "llava-mini", "captions-mini", "mar-mini"):
        recipe = tiny(name)
        with pytest.raises(VistokError, match=r"data\.seed is 1000003"):
            build_task(replace(recipe, data=recipe.data | {"seed": 1_000_003}))


@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        ({"steps": "many"}, ["'steps'", "whole number"]),
        ({"steps": 0}, ["'steps'", "at least 1"]),
        ({"batch_size": -1}, ["'batch_size'"]),
        ({"precision": "fp8"}, ["'precision'", "bf16"]),
        ({"compile": 1}, ["'compile'", "true or false"]),
        ({"optimization": {"lr": "1e-3"}}, ["'optimization.lr'", "1.0e-3"]),
        ({"optimization": {"betas": [0.9]}}, ["'optimization.betas'", "list of 2"]),
        ({"optimization": {"momentum": 0.9}}, ["'optimization'", "momentum"]),
        ({"optimization": {"lr": float("nan")}}, ["'optimization.lr'", "0 or more"]),
        ({"optimization": {"muon_lr": -1.0}}, ["'optimization.muon_lr'", "0 or more"]),
        ({"optimization": {"warmup": -1}}, ["'optimization.warmup'", "0 or more"]),
        ({"optimization": {"betas": [0.9, 1.0]}}, ["'optimization.betas'", "[0, 1)"]),
        ({"optimization": {"ema": 1.5}}, ["'optimization.ema'", "[0, 1)"]),
        ({"seed": 1 << 64}, ["seed", "64 bits"]),
        ({"name": ""}, ["'name'"]),
        ({"name": "../mine"}, ["'name'", "../mine"]),
        ({"optimization": 3}, ["'optimization'"]),
        ({"data": [1]}, ["'data'"]),
        ({"aliases": "vq"}, ["'aliases'", "list"]),
        ({"task": "vqgan"}, ["vqgan", "vq"]),
        ({"data": {"size": 32, "sead": 1}}, ["'data'", "sead", "seed"]),
        ({"model": {"channel_mult": 3}}, ["'model.channel_mult'", "list"]),
        ({"init": {"vq": "no-such-model"}}, ["no-such-model"]),
    ],
)
def test_the_command_ends_with_the_sentence_and_code_2(change, culprits, tmp_path, monkeypatch, capsys):
    from vistok.cli import main

    entries = {"name": "mine", "task": "vq", "steps": 1, "batch_size": 2, "model": TOKENIZERS["vq"][0]}
    entries |= {"data": {"size": 32}} | change
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(entries))
    monkeypatch.setattr("sys.argv", ["vistok", "train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in told
    flat = " ".join(told.replace("│", " ").split())
    assert all(culprit in flat for culprit in culprits), told
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_recipe_is_told(tmp_path):
    model, _, data = TOKENIZERS["vq"]
    recipe = Recipe("mine", "vq", steps=1, batch_size=2, model=model, data=data | {"eval_pictures": 2})
    Trainer(recipe, build_task(recipe), tmp_path).train()
    wider = replace(recipe, model=model | {"codebook_size": 64})
    with pytest.raises(VistokError, match=r"checkpoint\.pt' is not of this recipe \(its model\.codebook_size differ\)"):
        Trainer(wider, build_task(wider), tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(VistokError, match=r"checkpoint\.pt' is not of this recipe"):
        Trainer(recipe, build_task(recipe), tmp_path)


def test_a_run_that_goes_on_by_another_recipe_says_so(tmp_path, capsys):
    model, _, data = TOKENIZERS["vq"]
    recipe = Recipe("mine", "vq", steps=1, batch_size=2, model=model, data=data | {"eval_pictures": 2})
    Trainer(recipe, build_task(recipe), tmp_path).train()
    again = replace(recipe, save_every=1)  # which changes nothing of what was learnt
    Trainer(again, build_task(again), tmp_path).train()
    assert "changed" not in capsys.readouterr().err
    others = {
        "optimization.lr": {"optimization": replace(recipe.optimization, lr=2e-4)},
        "data.seed": {"data": recipe.data | {"seed": 99}},
        "seed": {"seed": 5},
        "batch_size": {"batch_size": 4},
    }
    for name, change in others.items():
        other = replace(recipe, **change)
        with pytest.raises(VistokError, match=rf"trained to step 1.*\(its {name}\).*--out"):
            Trainer(other, build_task(other), tmp_path)
    more = replace(recipe, steps=2, **others["optimization.lr"])
    Trainer(more, build_task(more), tmp_path).train()
    assert "its optimization.lr" in capsys.readouterr().err
    with pytest.raises(VistokError, match="trained to step 2, and the recipe asks for 1"):
        Trainer(replace(more, steps=1), build_task(more), tmp_path)


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    count: int
    pair: tuple[int, float] = (1, 1.0)
    weights: dict[str, float] = field(default_factory=dict)
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None
    new: int = field(default=0, metadata={"was": "old"})
    part: Fraction | None = None


def test_entries_become_values_of_their_types():
    read = read_options(Outer, {"count": 2, "pair": [3, 4], "weights": {"x": 1}, "inner": {"rate": 1}}, "section")
    assert read == Outer(2, (3, 4.0), {"x": 1.0}, "a", Inner(1.0))
    assert isinstance(read.inner.rate, float)
    assert read_options(Optimization, None, "section") == Optimization()
    with pytest.warns(FutureWarning, match=r"section\.old.*section\.new"):
        assert read_options(Outer, {"count": 1, "old": 7}, "section").new == 7


@pytest.mark.parametrize(
    ("entries", "culprit"),
    [
        ({}, "count"),
        ({"count": True}, "section.count"),
        ({"count": 1.5}, "section.count"),
        ({"count": None}, "section.count"),
        ({"count": 1, "pair": [1]}, "section.pair"),
        ({"count": 1, "weights": {"x": "y"}}, "section.weights.x"),
        ({"count": 1, "kind": "c"}, "section.kind"),
        ({"count": 1, "inner": {"rat": 1}}, "section.inner"),
        ({"count": 1, "conut": 2}, "did you mean 'count'"),
        ({"count": 1, "old": 1, "new": 2}, "old"),
        ({"count": -1}, "section.count"),
        ({"count": 1, "pair": [1, -1]}, "section.pair"),
        ({"count": 1, "weights": {"x": float("nan")}}, "section.weights.x"),
        ({"count": 1, "inner": {"rate": float("inf")}}, "section.inner.rate"),
        ({"count": 1, "part": 25}, "section.part' is a share"),
        ([], "section"),
    ],
)
def test_other_entries_are_told(entries, culprit):
    with pytest.raises(VistokError, match=culprit):
        read_options(Outer, entries, "section")


def test_what_is_decided_elsewhere_must_not_be_set():
    assert read_options(Outer, {"count": 3}, "section", {"count": 3}).count == 3
    with pytest.raises(VistokError, match=r"'section.count' is decided"):
        read_options(Outer, {"count": 2}, "section", {"count": 3})
    with pytest.raises(VistokError, match=r"'section.count' is 2.*have 3"):
        check_agreement(Outer(3), {"count": 2}, "section")
    check_agreement(Outer(3), {"count": 2}, "section", free=("count",))


def test_help_names_what_a_recipe_is():
    shown = CliRunner().invoke(app, ["train", "--help"]).output
    assert "recipes/" in shown and "docs/training.md" in shown
