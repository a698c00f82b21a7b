"""Comparisons of samplers: the same samples for all, figures that derive from the runs, and honest scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.cli.test_cli import vistok
from vistok.errors import VistokError
from vistok.eval.decoding.comparison import Entry, Trial, table
from vistok.eval.decoding.estimate import Estimate
from vistok.eval.decoding.images import draw_in_turn, images_of
from vistok.eval.decoding.samplers import COLUMNS, choose_samplers, standard_entries, summarise
from vistok.eval.decoding.scores import DETECTOR, GAIN, score_trials
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.pipelines import Pipeline, expand, pipeline
from vistok.samplers import Autoregressive, Lantern, SamplingParams, SpeculativeJacobi, Stats
from vistok.samplers.cost import forward_cost
from vistok.tokenizers.vq import VQConfig, VQTokenizer


def trial(name, step_of, seconds, lossless=True):
    found = Trial(Entry(name, Autoregressive(), lossless))
    proposed = torch.tensor([0 if name == "ar" else 4])
    found.results = [SimpleNamespace(stats=Stats(torch.tensor([steps]), proposed)) for steps in step_of]
    found.seconds = found.cpu_seconds = seconds
    return found


@pytest.fixture
def trials():
    plain = trial("ar", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]], [2.0, 4.0])
    fast = trial("sjd", [[0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 2, 2, 3, 4]], [1.0, 2.0])
    return [plain, fast, trial("lantern", [[0, 1, 1, 1, 1, 1, 1]] * 2, [1.0, 1.0], lossless=False)]


def test_figures_derive_from_the_runs(trials):
    plain, fast, lossy = (row.figures for row in summarise(trials))
    assert plain["forwards"] == 6 and plain["accepted_length"].value == 1 and plain["acceptance_rate"] is None
    assert fast["forwards"] == 3 and fast["accepted_length"].value == pytest.approx(2)
    assert fast["accepted_length"].low <= 2 <= fast["accepted_length"].high
    assert fast["acceptance_rate"] == pytest.approx(6 / 8)
    assert fast["speed_up"] == Estimate(2, 2, 2)  # the ratio of every batch
    assert lossy["speed_up"].value == 3
    assert [row.lossless for row in summarise(trials)] == [True, True, False]


def test_the_table_and_the_plot_hold_every_sampler(trials, tmp_path):
    from vistok.eval.decoding.plot import plot

    rows = summarise(trials, [{DETECTOR: Estimate(0.5, 0.4, 0.6), "FD": 12.0}] * 3)
    head, _, *lines = table(rows, COLUMNS, "sampler").splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][-3:] == ["CPU speed-up", "detector", "FD"]
    assert len(lines) == 3 and "2.00 [1.50, 3.00]" in lines[1] and "6.00" in lines[2]
    plot(rows, {1: 0.001, 2: 0.0012, 64: 0.005}, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 1000


def test_the_standard_comparison_says_what_is_lossless():
    every = standard_entries("some-drafter")
    assert {one.name.split()[0] for one in every} == {"ar", "sjd", "recycling", "eagle", "lantern", "lantern++"}
    assert [one.lossless for one in every] == [not one.name.startswith("lantern") for one in every]
    assert not any(one.name.startswith(("eagle", "lantern")) for one in standard_entries(None))


@pytest.fixture(scope="module")
def pipe():
    """A small model with random weights whose greedy tokens vary."""
    torch.manual_seed(0)
    model = LlamaGen(LlamaGenConfig(dim=32, n_layer=2, n_head=2, multiple_of=16, vocab_size=40, block_size=16)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.5)
    vq = VQTokenizer(VQConfig(codebook_size=40, channels=32, channel_mult=(1, 1), res_blocks=1, z_channels=32)).eval()
    return Pipeline(model, vq, None)


def names(pipe, text, drafter="some-drafter"):
    return [one.name for one in choose_samplers(pipe, standard_entries(drafter), text)]


def test_words_select_from_the_standard_comparison(pipe):
    assert names(pipe, "coupled 1, static") == ["ar", "sjd coupled 16", "eagle static"]
    assert names(pipe, "eagle,ar") == ["ar", "eagle dynamic", "eagle static"]
    assert names(pipe, "recycling") == ["ar", "recycling"]


def test_samplers_are_listed_with_their_options(pipe):
    text = "ar,sjd:window=16:init=repeat-up, lantern:delta=0.2,coupled 8"
    found = choose_samplers(pipe, standard_entries("some-drafter"), text)
    assert [one.name for one in found] == [
        "ar",
        "sjd:window=16:init=repeat-up",
        "lantern:delta=0.2",
        "sjd coupled 8",
    ]
    assert found[1].method == SpeculativeJacobi(16, "repeat-up") and found[1].lossless
    assert found[2].method == Lantern(delta=0.2) and not found[2].lossless


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("copled", "copled"),
        ("ar,,sjd", "empty"),
        ("sjd:windw=8", "windw"),
        ("ar,sjd:window=eight", "eight"),
        ("mar", "MaskedAutoregressive"),
    ],
)
def test_what_is_no_sampler_of_the_model_is_named(pipe, text, culprit):
    with pytest.raises(VistokError, match=culprit):
        names(pipe, text)


def test_every_sampler_draws_the_same_samples(pipe):
    """Greedy decoding is one and the same with every exact sampler, so equal images show equal samples."""
    entries = [Entry("ar", Autoregressive()), Entry("sjd", SpeculativeJacobi(4))]
    done = []
    greedy = SamplingParams(2.0, greedy=True)
    trials = draw_in_turn(pipe, entries, expand([3, 5, 7], 1), greedy, batch_size=2, advance=lambda: done.append(1))
    drawn = [images_of(one) for one in trials]
    assert len(done) == 4 and [len(images) for images in drawn] == [3, 3]
    for mine, theirs in zip(*drawn, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert [len(one.seconds) for one in trials] == [2, 2] and min(trials[1].seconds) > 0
    assert [row.figures["accepted_length"].value >= 1 for row in summarise(trials)] == [True, True]


def test_samplers_are_prepared_as_the_pipeline_prepares_them(pipe, monkeypatch):
    """LANTERN in a comparison has the neighbours that it has when it paints; it finds them once."""
    prepared = []
    original = Lantern.prepare

    def prepare(self, *args):
        prepared.append(original(self, *args))
        return prepared[-1]

    monkeypatch.setattr(Lantern, "prepare", prepare)
    network = EagleNetwork(EagleConfig(40, 32, 48, 2, grid=4, cls_token_num=1)).eval()
    lantern = Lantern(network, k=3, delta=0.3, drafts=4, depth=2, top_k=2)
    entries = [Entry("ar", Autoregressive()), Entry("lantern", lantern, False)]
    samples = expand([3, 5], 1)
    _, drawn = draw_in_turn(pipe, entries, samples, SamplingParams(), batch_size=1)
    painted = [
        image for _, output in pipe.iterate(samples, lantern, SamplingParams(), batch_size=1) for image in output.images
    ]
    assert [image.tobytes() for image in images_of(drawn)] == [image.tobytes() for image in painted]
    assert torch.equal(drawn.entry.method.codebook, pipe.tokenizer.quantize.embedding.weight)
    assert all(one is prepared[0] for one in prepared[:2])


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
    done = vistok("bench", "samplers", "--samplers", "copled", "--prompts-per-task", "1")
    assert done.returncode == 2 and "copled" in done.stderr and "coupled" in done.stderr


@pytest.mark.parametrize("tokenizer", ["flextok", "one-d-piece"])
def test_generators_of_ordered_tokens_are_measured_too(tokenizer):
    """Nothing of the comparison asks for a grid of tokens, or for a tokenizer's codebook of weights."""
    pipe = pipeline(tokenizer=tokenizer, tokens=4, device="cpu")
    entries = choose_samplers(pipe, standard_entries(None), "recycling,sjd:window=2")
    params, samples = pipe.sampling_params(), expand(["a red circle"], 1)
    assert min(forward_cost(pipe.model, params, widths=(1, 2), repeats=1).values()) > 0
    rows = summarise(draw_in_turn(pipe, entries, samples, params))
    assert [row.name for row in rows] == ["ar", "recycling", "sjd:window=2"]
    assert rows[1].figures["forwards"] <= rows[0].figures["forwards"] == 3
