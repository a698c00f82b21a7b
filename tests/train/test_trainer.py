"""Training: recipes are checked, runs learn, and a killed run ends with the very weights of an undisturbed one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from tests.train.tiny import tiny
from vistok import zoo
from vistok.errors import VistokError
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.recipe import Optimization, Recipe
from vistok.train.tasks import build_task
from vistok.train.trainer import Trainer, learning_rate_scale

VQ = Recipe(
    name="vq-test",
    task="vq",
    steps=6,
    batch_size=4,
    log_every=2,
    eval_every=3,
    save_every=2,
    optimization=Optimization(lr=1e-3, warmup=2, ema=0.9),
    model={"codebook_size": 32, "channels": 32, "channel_mult": [1, 1, 2], "res_blocks": 1, "z_channels": 32},
    data={"size": 32, "seed": 3, "eval_pictures": 64, "revive_every": 2, "revive_until": 4},
)


def test_every_recipe_of_the_repository_loads():
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert Recipe.load(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntask: vq\nsteps: 1\n", "lacks the entries"),
        ("name: x\ntask: vq\nsteps: 1\nbatch_size: 1\nspeed: 9\n", "unknown entry 'speed'"),
        ("- a\n- b\n", "not a recipe"),
        ("a: [", "not a YAML recipe"),
    ],
)
def test_bad_recipes_get_a_sentence(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(VistokError, match=message):
        Recipe.load(tmp_path / "r.yaml")


def test_absent_recipes_and_unknown_tasks(tmp_path):
    with pytest.raises(VistokError, match="no recipe at"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(VistokError, match="did you mean vq"):
        build_task(replace(VQ, task="vqq"))


def test_the_schedule_warms_up_and_falls():
    config = Optimization(warmup=10, final_lr=0.1)
    scales = [learning_rate_scale(step, 100, config) for step in range(101)]
    assert scales[0] == pytest.approx(0.1)
    assert max(scales) == pytest.approx(1.0)
    assert scales[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(scales[10:]))


class Killed(Exception):
    """Stands for a kill between two steps."""


def told(directory: Path) -> list[list]:
    """Returns the step and the names of figures of each line of a run's log."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], *sorted(line)] for line in lines]


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    Trainer(VQ, build_task(VQ), tmp_path / "whole").train()
    task = build_task(VQ)
    after = task.after_step

    def dies(step):
        after(step)
        if step == 5:
            raise Killed

    monkeypatch.setattr(task, "after_step", dies)
    with pytest.raises(Killed):
        Trainer(VQ, task, tmp_path / "broken").train()
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "loss": 0.1}\n{"step": 5, "lo')
    Trainer(VQ, build_task(VQ), tmp_path / "broken").train()
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    Trainer(VQ, build_task(VQ), tmp_path / "broken").train()  # which evaluates and exports once more
    assert told(tmp_path / "broken") == told(tmp_path / "whole")
    whole, broken = (VQTokenizer.from_pretrained(tmp_path / run / "export").state_dict() for run in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    for key in whole:
        torch.testing.assert_close(whole[key], broken[key], atol=1e-3, rtol=1e-3)


def run_in_processes(count: int, recipe: Recipe, out: Path) -> str:
    """What a command of so many processes prints that trains a recipe."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe.to_dict() | {"aliases": []}))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "vistok", "--"]
    command = [sys.executable, *launch, "train", str(path), "--out", str(out)]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def losses(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow(reason="starts Python three times")
def test_two_processes_train_what_one_trains_and_go_on(tmp_path):
    steady = replace(VQ.optimization, warmup=0, final_lr=1.0)  # whatever the number of steps
    recipe = replace(VQ, steps=3, log_every=1, save_every=1, optimization=steady)
    run_in_processes(1, recipe, tmp_path / "one")
    for steps in (2, 3):
        assert run_in_processes(2, replace(recipe, steps=steps), tmp_path / "two").count("psnr") == 1
    one, two = ([line for line in losses(tmp_path / out) if line["step"] == 3] for out in ("one", "two"))
    assert len(one) == len(two) == 2
    for alone, shared in zip(one, two, strict=True):
        for name in set(alone) - {"seconds"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-3), name


@pytest.mark.slow(reason="starts Python twice")
def test_two_processes_train_networks_of_which_steps_leave_weights_out(tmp_path):
    """Of ENAT one network is never used and one only in some steps, which each process draws."""
    run_in_processes(2, replace(tiny("enat-mini"), steps=8, log_every=1), tmp_path / "run")
    assert [line["step"] for line in losses(tmp_path / "run") if "loss" in line] == [*range(1, 9)]


def test_a_run_writes_metrics_and_a_card(tmp_path):
    Trainer(VQ, build_task(VQ), tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    card = zoo.read_card(tmp_path / "export")
    assert card.steps == 6
    assert card.metrics["psnr"] > 0
    assert next(iter(card.files.values())) == zoo.sha256(tmp_path / "export" / "model.safetensors")


def test_a_run_learns(tmp_path):
    recipe = replace(VQ, steps=40, eval_every=1000, save_every=1000, log_every=10)
    before = build_task(recipe).evaluate()["psnr"]
    after = Trainer(recipe, build_task(recipe), tmp_path).train()["psnr"]
    assert after > before + 3
