"""Protocols, reconstruction metrics, answers, decoding statistics, and the commands over them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.eval.noise import write_noise
from vistok.cli.eval import app
from vistok.errors import VistokError
from vistok.eval.answers import scorers
from vistok.eval.answers.benchmarks import score_answers
from vistok.eval.protocol import Protocol, Result, compare
from vistok.eval.reconstruction.metrics import psnr, quantise, reconstruction_quality, ssim
from vistok.models.vision.inception import fold_batch_norms
from vistok.models.vision.lpips import BACKBONES, Lpips
from vistok.models.vision.scenes import SceneFeatures


def result(name: str, value: float, **changes) -> Result:
    fields = {"metric": "fid", "extractor": "inception", "resize": "clean", "samples": 50000} | changes
    return Result(name, value, Protocol(**fields))


def test_results_of_one_protocol_are_sorted():
    assert [r.name for r in compare([result("b", 3.0), result("a", 2.0)])] == ["a", "b"]
    assert result("a", 2.0) < result("b", 3.0)


@pytest.mark.parametrize(
    "change", [{"resize": "tf1"}, {"samples": 5000}, {"extractor": "dinov2"}, {"weights": "x"}, {"reference": "val"}]
)
def test_results_of_different_protocols_are_refused(change):
    (field,) = change
    with pytest.raises(VistokError, match=rf"different protocols.*{field}"):
        compare([result("a", 2.0), result("b", 3.0, **change)])
    with pytest.raises(VistokError):
        assert result("a", 2.0) < result("b", 3.0, **change)


def test_results_survive_json():
    original = Result("a", 1.5, Protocol("precision", options=("neighbours=3",)), 0.1, {"x": 2.0})
    assert Result.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_results_of_the_first_version_stand_beside_those_of_today():
    now = Protocol("kid", options=("subsets=100", "subset_size=1000", "order=reference-first"))
    old = {"metric": "kid", "options": ["kid_subsets=100", "kid_subset_size=1000"]}
    assert Result.from_json({"name": "a", "value": 1.0, "protocol": old}).protocol == now


def test_a_known_psnr_and_the_quality_of_a_perfect_reconstruction():
    a = torch.zeros(2, 3, 16, 16)
    assert psnr(a, a + 0.1).tolist() == pytest.approx([20, 20])
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    perfect = reconstruction_quality(x, x)
    assert perfect["psnr"].isinf().all() and perfect["ssim"].tolist() == pytest.approx([1, 1])


def test_rounding_conventions_differ_where_they_should():
    x = torch.tensor([-1.0, 1.0, 2.0, 254.6 / 127.5 - 1])
    assert quantise(x).tolist() == quantise(x, "llamagen").tolist() == [0, 255, 255, 255]
    assert quantise(x, "truncate").tolist() == [0, 255, 255, 254]
    with pytest.raises(VistokError, match="unknown rounding"):
        quantise(x, "floor")


def test_pictures_that_do_not_pair_are_refused():
    a = torch.zeros(1, 3, 16, 16)
    with pytest.raises(VistokError, match="sizes must be equal"):
        psnr(a, a[..., 1:])
    with pytest.raises(VistokError, match="at least 11"):
        ssim(a[..., :8, :8], a[..., :8, :8])


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_loads_published_layouts_and_is_a_distance(tmp_path, net):
    import torchvision.models

    torch.manual_seed(0)
    builder, _, channels = BACKBONES[net]
    with torch.device("meta"):
        shapes = getattr(torchvision.models, builder)(weights=None).state_dict()
    backbone = {key: 0.05 * torch.randn(value.shape) for key, value in shapes.items() if key.startswith("features.")}
    torch.save(backbone | {"classifier.1.bias": torch.zeros(9)}, tmp_path / "backbone.pth")
    head = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}
    torch.save(head, tmp_path / "head.pth")
    metric = Lpips.from_files(net, tmp_path / "head.pth", tmp_path / "backbone.pth")
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert metric(a, a).tolist() == [0, 0]
    assert (metric(a, b) > 0).all()
    torch.testing.assert_close(metric(a, b), metric(b, a))
    with pytest.raises(VistokError, match=r"LPIPS v0\.1 head"):
        Lpips.from_files(net, tmp_path / "backbone.pth", tmp_path / "backbone.pth")


def test_answers_beyond_the_goldens():
    assert scorers.edit_distance("kitten", "sitting") == 3
    assert scorers.parse_choice("(B) a cat") == "B" and scorers.parse_choice("Because") is None
    assert scorers.exact_match("The dogs.", ["dogs"]) == 1.0


def write_answers(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_answer_files(tmp_path):
    file = write_answers(
        tmp_path / "a.jsonl",
        {"prediction": "Yes, a dog.", "answer": "yes"},
        {"prediction": "No", "answer": "yes"},
        {"prediction": "no", "answer": "no"},
    )
    assert score_answers(file, "pope")["recall"] == 0.5
    assert score_answers(file, "exact") == {"accuracy": 1 / 3}
    with pytest.raises(VistokError, match=r"line 1 .*category"):
        score_answers(file, "mme")
    with pytest.raises(VistokError, match="did you mean pope"):
        score_answers(file, "pop")
    with pytest.raises(VistokError, match=r"line 1 .*needs a prediction"):
        score_answers(write_answers(tmp_path / "b.jsonl", {"answer": "a"}), "exact")


@pytest.fixture
def runner(tmp_path):
    write_noise(tmp_path / "real", tmp_path / "fake")
    torch.manual_seed(0)
    save_file(fold_batch_norms(SceneFeatures().eval()).state_dict(), tmp_path / "weights.safetensors")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_fid_and_stats_commands_agree(runner, tmp_path):
    network = ("--extractor", "scenes-features", "--weights", tmp_path / "weights.safetensors", "--workers", 0)
    for arguments in (
        ("fid", tmp_path / "real", tmp_path / "fake", "--json", tmp_path / "a.json", *network),
        ("stats", tmp_path / "real", "-o", tmp_path / "ref.npz", *network),
        ("fid", tmp_path / "ref.npz", tmp_path / "fake", "--json", tmp_path / "b.json", *network),
    ):
        outcome = runner(*arguments)
        assert outcome.exit_code == 0, outcome.output
    assert "fd-scenes-features" in runner("compare", tmp_path / "a.json").output
    (a,), (b,) = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert a["value"] == pytest.approx(b["value"], rel=1e-9)
    refused = runner("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert isinstance(refused.exception, VistokError) and "reference" in str(refused.exception)


def test_reconstruction_and_answers_commands(runner, tmp_path):
    outcome = runner("reconstruction", tmp_path / "real", tmp_path / "real", "--json", "-")
    assert [record["protocol"]["metric"] for record in json.loads(outcome.output)] == ["psnr", "ssim"]
    assert json.loads(outcome.output)[1]["value"] == pytest.approx(1)
    file = write_answers(tmp_path / "a.jsonl", {"prediction": "a cat", "answers": ["cat"]})
    outcome = runner("answers", file, "--benchmark", "exact", "--json", "-")
    assert json.loads(outcome.output)[0]["value"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fid", "nowhere", "nowhere"), "no folder"),
        (("fid", "a", "b", "--extractor", "incepton"), "did you mean inception"),
        (("stats", "a", "-o", "b.json"), "written as .npz"),
        (("reconstruction", "nowhere", "nowhere"), "no folder"),
        (("answers", "nowhere.jsonl", "--benchmark", "pope"), "cannot read the answer"),
        (("geneval", "--images", "nowhere"), "no folder"),
        (("compare", "nowhere.json"), "no"),
    ],
)
def test_bad_input_is_a_user_error(runner, arguments, message):
    outcome = runner(*arguments)
    assert isinstance(outcome.exception, VistokError) and message in str(outcome.exception), outcome.output


def test_inception_needs_its_weights(runner, tmp_path):
    outcome = runner("fid", tmp_path / "real", tmp_path / "fake")
    assert "inception extractor needs its weights" in str(outcome.exception)


def test_every_command_has_json_and_an_example(runner):
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        help_text = runner(name, "--help").output
        assert "--json" in help_text and "Example: vistok eval" in help_text, name
