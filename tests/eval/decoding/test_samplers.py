"""Comparisons of samplers: the same samples for all, figures that derive from the runs, and honest scores."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from vistok.errors import VistokError
from vistok.eval.decoding.estimate import Estimate
from vistok.eval.decoding.samplers import Contestant, Trial, choose, run_trials, standard_samplers, summarise, table
from vistok.eval.decoding.scores import DETECTOR, GAIN, score_trials
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.pipelines import Pipeline, expand
from vistok.samplers import Autoregressive, SamplingParams, SpeculativeJacobi, Stats
from vistok.tokenizers.vq import VQConfig, VQTokenizer


def trial(name, step_of, seconds, lossless=True):
    found = Trial(Contestant(name, Autoregressive(), lossless))
    found.stats = [Stats(torch.tensor([steps]), torch.tensor([0 if name == "ar" else 4])) for steps in step_of]
    found.seconds = found.cpu_seconds = seconds
    return found


@pytest.fixture
def trials():
    plain = trial("ar", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]], [2.0, 4.0])
    fast = trial("sjd", [[0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 2, 2, 3, 4]], [1.0, 2.0])
    return [plain, fast, trial("lantern", [[0, 1, 1, 1, 1, 1, 1]] * 2, [1.0, 1.0], lossless=False)]


def test_figures_derive_from_the_runs(trials):
    plain, fast, lossy = summarise(trials)
    assert plain.forwards == 6 and plain.accepted_length.value == 1 and plain.acceptance_rate is None
    assert fast.forwards == 3 and fast.accepted_length.value == pytest.approx(2)
    assert fast.accepted_length.low <= 2 <= fast.accepted_length.high
    assert fast.acceptance_rate == pytest.approx(6 / 8)
    assert fast.speed_up.value == fast.speed_up.low == fast.speed_up.high == 2  # the ratio of every batch
    assert lossy.speed_up.value == 3 and not lossy.lossless


def test_the_table_and_the_plot_hold_every_sampler(trials, tmp_path):
    from vistok.eval.decoding.plot import plot

    scores = [{DETECTOR: Estimate(0.5, 0.4, 0.6), "FD": 12.0}] * 3
    rows = summarise(trials, scores)
    lines = table(rows).splitlines()
    assert len(lines) == 5 and lines[0].endswith("| detector | FD |")
    assert "| sjd | yes | 3.0 | 2.00 [1.50, 3.00] |" in lines[3] and lines[4].startswith("| lantern | no | 1.0 | 6.00")
    assert json.loads(json.dumps(rows[1].to_dict()))["scores"][DETECTOR]["low"] == 0.4
    plot(rows, {1: 0.001, 2: 0.0012, 64: 0.005}, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 1000


def test_samplers_are_chosen_by_words():
    every = standard_samplers("some-drafter")
    assert [one.name for one in choose(every, ["coupled 1", "static"])] == ["ar", "sjd coupled 16", "eagle static"]
    assert {one.name.split()[0] for one in every} == {"ar", "sjd", "recycling", "eagle", "lantern", "lantern++"}
    assert [one.lossless for one in every] == [not one.name.startswith("lantern") for one in every]
    assert not any(one.name.startswith(("eagle", "lantern")) for one in standard_samplers(None))
    with pytest.raises(VistokError, match=r"unknown sampler 'copled'.*did you mean"):
        choose(every, ["copled"])


def test_every_sampler_draws_the_same_samples():
    """Greedy decoding is one and the same with every exact sampler, so equal pictures show equal samples."""
    torch.manual_seed(0)
    model = LlamaGen(LlamaGenConfig(dim=32, n_layer=2, n_head=2, multiple_of=16, vocab_size=40, block_size=16)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    vq = VQTokenizer(VQConfig(codebook_size=40, channels=32, channel_mult=(1, 1), res_blocks=1, z_channels=32)).eval()
    contestants = [Contestant("ar", Autoregressive()), Contestant("sjd", SpeculativeJacobi(4))]
    done = []
    trials = run_trials(
        Pipeline(model, vq, None),
        contestants,
        expand([3, 5, 7], 1),
        SamplingParams(2.0, greedy=True),
        batch_size=2,
        advance=lambda: done.append(1),
    )
    assert len(done) == 4 and [len(one.images) for one in trials] == [3, 3]
    for mine, theirs in zip(*(one.images for one in trials), strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert [len(one.seconds) for one in trials] == [2, 2] and min(trials[1].seconds) > 0
    assert [row.accepted_length.value >= 1 for row in summarise(trials)] == [True, True]


def test_scores_compare_the_pictures_of_the_same_prompts():
    from vistok.data.images import to_pil
    from vistok.data.scenes import groups, render, sample_scenes
    from vistok.eval.geneval.metadata import colors

    scenes = sample_scenes(60, 7)
    lone = [i for i, scene in enumerate(groups(scenes)) if len(scene) == 1 and scene[0].count == 1][:6]
    pictures = [to_pil(render(scenes[i : i + 1], 64))[0] for i in lone]
    records = [colors(groups(scenes)[i][0].shape, groups(scenes)[i][0].colour) for i in lone]
    blank = [Image.new("RGB", (64, 64))] * len(lone)
    right, wrong = score_trials(records, 1, [pictures, blank])
    assert right[DETECTOR].value == 1.0 and right[GAIN].value == 0.0
    assert wrong[DETECTOR].value == 0.0 and wrong[GAIN].value == -1.0


def test_the_command_names_what_it_cannot_do():
    from typer.testing import CliRunner

    from vistok.cli.main import app

    runner = CliRunner()
    assert "samplers" in runner.invoke(app, ["bench", "--help"]).output
    failed = runner.invoke(app, ["bench", "samplers", "--samplers", "copled", "--prompts-per-task", "1"])
    assert isinstance(failed.exception, VistokError) and "copled" in str(failed.exception)
