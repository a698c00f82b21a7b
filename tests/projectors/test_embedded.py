"""The embedded multimodal model answers, and ``--model llava`` finds it."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from vistok.data.images import save_image
from vistok.eval.answers.ask import load
from vistok.eval.answers.keep_curves import keep_curves, scene_questions
from vistok.eval.answers.scorers import exact_match
from vistok.zoo.registry import card, verify


def test_card_and_weights_agree():
    verify("llava-mini")
    assert card("llava").name == "llava-mini"
    assert card("llava-mini").metrics["exact_match"] >= 0.9


def test_answers_about_held_out_scenes():
    model, processor = load("llava-mini", "cpu")
    (point,) = keep_curves(model, processor, scene_questions(64, 24, 2), [], [1.0], exact_match, 48, 2)
    assert point.accuracy >= 0.8  # 48 questions; 0.93 of 1536


def test_command_finds_it_by_its_short_name(tmp_path):
    from vistok.cli.main import app

    asked = next(a for a in scene_questions(64, 8, 4) if a.kind == "colour")
    save_image(asked.picture, tmp_path / "scene.png")
    options = [
        "compress",
        "--model",
        "llava",
        "--image",
        str(tmp_path / "scene.png"),
        "--question",
        asked.question,
        "--keep",
        "25%",
    ]
    run = CliRunner().invoke(app, [*options, "--compare", "--json", "--overlay", str(tmp_path / "kept.png")])
    assert run.exit_code == 0, run.exception
    answers = json.loads(run.stdout.splitlines()[-1])
    assert answers["all"]["text"] == asked.answers[0]
    assert (answers["all"]["visual_tokens"], answers["vtc-cls"]["visual_tokens"]) == (64, 16)
    assert (tmp_path / "kept.png").exists()
