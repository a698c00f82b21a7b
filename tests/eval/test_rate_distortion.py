"""Rate and distortion: bytes are those of real files, quality that of real pictures, and nothing is encoded twice."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vistok.cli.main import app
from vistok.data.images import load_image, save_image, to_pil, to_tensor
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.errors import VistokError
from vistok.eval.probe import linear_probe
from vistok.eval.protocol import compare
from vistok.eval.reconstruction.metrics import quantise
from vistok.eval.reconstruction.pictures import PictureSource, file_overhead
from vistok.eval.reconstruction.rate_distortion import (
    RatePoint,
    advantage,
    codec_quality,
    codec_within,
    powers_of_two,
    quality_by_tokens,
)
from vistok.eval.reconstruction.report import evaluate_tokenizer
from vistok.tokenizers.flow import noise_for
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.load import LoadedTokenizer, load_tokenizer


class Prefixes(torch.nn.Module):
    """A tokenizer whose first k tokens give back the first k rows of blocks of a picture, coarsely."""

    capabilities = Capabilities(256, "sequence", multiple=16, image_size=64, lengths=range(1, 5))

    def __init__(self):
        super().__init__()
        self.encoded = 0
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def encode(self, images):
        self.encoded += len(images)
        return quantise(images.mean((1, 3)).unflatten(1, (4, 16)).mean(2)).long()

    def decode(self, tokens, length=None):
        length = tokens.shape[1] if length is None else length
        rows = (tokens.float() / 127.5 - 1).masked_fill(torch.arange(4) >= length, 0)
        return rows.repeat_interleave(16, 1)[:, None, :, None].expand(-1, 3, -1, 64)


def _loaded() -> LoadedTokenizer:
    return LoadedTokenizer("prefixes", "ab" * 32, Prefixes())


def test_every_picture_is_encoded_once():
    tokenizer, images = Prefixes(), render(sample_scenes(6, 2), 64)
    points = quality_by_tokens(tokenizer, images.split(4), [1, 2, 4], header=10)
    assert tokenizer.encoded == 6
    assert [(point.setting, point.bytes, point.payload) for point in points] == [(1, 11, 1), (2, 12, 2), (4, 14, 4)]
    assert points[0].psnr < points[1].psnr < points[2].psnr
    split = quality_by_tokens(tokenizer, images.split(1), [4])
    assert split[0].psnr == pytest.approx(points[2].psnr)
    with pytest.raises(VistokError, match="no picture"):
        quality_by_tokens(tokenizer, [], [1])


class Sampled(Prefixes):
    """Decodes with noise."""

    capabilities = replace(Prefixes.capabilities, stochastic_decode=True)

    def decode(self, tokens, length=None, generator=None):
        exact = super().decode(tokens, length)
        return exact + 0.3 * noise_for(len(tokens), exact.shape[1:], generator, tokens.device)


def test_figures_of_what_decodes_by_sampling_do_not_depend_on_the_batch_size():
    images = render(sample_scenes(6, 2), 64)
    by_size = [quality_by_tokens(Sampled(), images.split(size), [1, 4], seed=3) for size in (1, 4, 6)]
    for points in by_size[1:]:
        assert [point.psnr for point in points] == pytest.approx([point.psnr for point in by_size[0]], rel=1e-6)
    assert quality_by_tokens(Sampled(), images.split(6), [1], seed=4)[0].psnr != pytest.approx(
        by_size[0][0].psnr, rel=1e-6
    )


def test_tokens_that_are_no_codes_are_refused_in_a_sentence():
    loaded = load_tokenizer("kl-mini")
    with pytest.raises(VistokError, match="continuous"):
        evaluate_tokenizer(loaded, PictureSource(loaded.tokenizer.capabilities, count=2))


def test_codec_sizes_are_those_of_files():
    images = render(sample_scenes(3, 2), 64)
    point = codec_quality("jpeg", images.split(2), [10])[0]
    sizes = []
    for array in quantise(images).movedim(1, -1).numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=10)
        sizes.append(len(file.getvalue()))
    assert point.bytes == pytest.approx(sum(sizes) / 3) and 15 < point.psnr < 40


def test_header_bytes_are_those_of_real_files(tmp_path):
    loaded = load_tokenizer("vq-mini")
    save_image(to_pil(render(sample_scenes(1, 2), 64))[0], tmp_path / "a.png")
    result = CliRunner().invoke(app, ["tokenize", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.vtok")])
    assert result.exit_code == 0
    packed = 256 * loaded.tokenizer.capabilities.bits_per_token // 8
    assert (tmp_path / "a.vtok").stat().st_size == file_overhead(loaded, (16, 16)) + packed


def test_advantage_takes_no_larger_file():
    points = [
        RatePoint(1, 20.0, 0.5, bytes=100),
        RatePoint(2, 25.0, 0.6, bytes=200),
        RatePoint(4, 40.0, 0.9, bytes=300),
    ]
    assert advantage(points, RatePoint(10, 22.0, 0.5, bytes=250)) == 3
    assert advantage(points, RatePoint(10, 22.0, 0.5, bytes=50)) == -float("inf")
    assert powers_of_two(6) == [1, 2, 4, 6] and powers_of_two(1) == [1]


def test_a_report_is_complete():
    source = PictureSource(Prefixes.capabilities, count=5)
    report = evaluate_tokenizer(_loaded(), source, batch_size=2)
    assert report.pictures == 5 and set(report.curves) == {"prefixes", "jpeg", "webp"}
    assert [point.setting for point in report.curves["prefixes"]] == [1, 2, 4]
    assert 0 < report.usage <= 1 and "jpeg of quality 10" in report.remarks()[1]
    results = report.results()
    assert len({result.name for result in results}) == len(results)
    with pytest.raises(VistokError, match="cannot decode 5 tokens"):
        evaluate_tokenizer(_loaded(), source, [5])


def test_results_say_which_network_of_lpips_they_were_measured_with():
    def distance(a, b):
        return (a - b).abs().mean((1, 2, 3))

    named = []
    for net in ("alex", "vgg"):
        distance.net = net
        source = PictureSource(Capabilities(16, "sequence", 1, image_size=64), count=2)
        found = evaluate_tokenizer(_loaded(), source, [4], 2, distance, compare_codecs=False).results()[0]
        assert found.details["lpips"] > 0
        named.append(found)
    with pytest.raises(VistokError, match=r"net=alex.*net=vgg"):
        compare(named)


def test_rfid_is_zero_for_perfect_reconstructions_only():
    class Perfect(Prefixes):
        def encode(self, images):
            self.images = images
            return super().encode(images)

        def decode(self, tokens, length=None):
            return self.images if length == 4 else super().decode(tokens, length)

    from vistok.eval.sets.extractors import load_extractor

    loaded = LoadedTokenizer("perfect", "ab" * 32, Perfect())
    source = PictureSource(Prefixes.capabilities, count=8)
    extractor = load_extractor("scenes-features")
    points = evaluate_tokenizer(loaded, source, [1, 4], 4, extractor=extractor, compare_codecs=False).curves["perfect"]
    assert points[0].rfid > 1e-2 and points[1].rfid == pytest.approx(0, abs=1e-6)


def test_pictures_of_several_sizes_need_one(tmp_path):
    for name, side in (("a", 64), ("b", 96)):
        save_image(Image.new("RGB", (side, side)), tmp_path / f"{name}.png")
    any_size = Capabilities(4, "grid", multiple=8)
    with pytest.raises(VistokError, match="give --size"):
        list(PictureSource(any_size, tmp_path).batches(2))
    (batch,) = PictureSource(any_size, tmp_path, size=32).batches(2)
    assert batch.shape == (2, 3, 32, 32)


def test_a_probe_reads_what_is_linear_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    linear, xor = (x[:, 0] > 0).long() + (x[:, 1] > 0).long() * 2, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    assert linear_probe(x[:300], linear[:300], x[300:], linear[300:]) > 0.9
    assert linear_probe(x[:300], xor[:300], x[300:], xor[300:]) < 0.7
    with pytest.raises(VistokError, match="two classes"):
        linear_probe(x, torch.zeros(400, dtype=torch.long), x, torch.zeros(400, dtype=torch.long))


def test_commands_write_plots_and_json(tmp_path):
    run = CliRunner().invoke
    common = ["--tokenizer", "vq-mini", "--count", "4", "--batch-size", "2"]
    plot, out = tmp_path / "rate.png", tmp_path / "rate.json"
    result = run(app, ["eval", "reconstruction", *common, "--plot", str(plot), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "vq-mini" in result.output and "webp" in result.output
    assert Image.open(plot).size[0] > 800
    assert {"bytes", "ssim", "payload"} <= json.loads(out.read_text())[0]["details"].keys()
    plot = tmp_path / "language.png"
    result = run(app, ["eval", "language", *common, "--plot", str(plot), "--held-out", "0.5", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert Image.open(plot).size[0] > 800
    assert [entry["protocol"]["metric"] for entry in json.loads(out.read_text())][1:] == [
        f"{n}-gram perplexity" for n in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "reconstruction"], "two folders"),
        (["eval", "reconstruction", "--tokenizer", "vq-mini", "--tokens", "a"], "numbers by commas"),
        (["eval", "reconstruction", "--tokenizer", "vq-mini", "--tokens", "7", "--count", "2"], "all 256 tokens"),
        (["eval", "language", "--tokenizer", "vq-minni"], "vq-mini"),
    ],
)
def test_bad_input_gets_a_sentence(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, VistokError) and message in str(result.exception)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_a_codec_takes_the_best_quality_within_a_number_of_bytes(codec):
    picture = to_pil(render(sample_scenes(1, 4), 64))[0]
    smallest, least = codec_within(codec, picture, 0)
    sizes = [codec_within(codec, picture, limit)[1] for limit in (least, 900, 1200, 10_000)]
    assert smallest.size == picture.size and sizes == sorted(sizes)
    assert all(size <= limit for size, limit in zip(sizes, (least, 900, 1200, 10_000), strict=True) if limit >= least)
    best, _ = codec_within(codec, picture, 10_000)
    error = [(to_tensor(each) - to_tensor(picture)).square().mean() for each in (smallest, best)]
    assert error[1] < error[0]


def test_pictures_show_what_first_tokens_are_worth(tmp_path):
    out = tmp_path / "grid.png"
    options = [
        "--tokenizer",
        "one-d-piece-mini",
        "--tokens",
        "4,64",
        "--count",
        "3",
        "--no-codecs",
        "--pictures",
        str(out),
    ]
    run = CliRunner().invoke(app, ["eval", "reconstruction", *options])
    assert run.exit_code == 0, run.output
    sheet = load_image(out)
    assert sheet.size == (3 * 64 + 2 * 2, 3 * 64 + 2 * 2), "two lengths and the originals"
    originals = torch.stack([to_tensor(sheet.crop((66 * i, 132, 66 * i + 64, 196))) for i in range(3)])
    assert (originals - render(sample_scenes(3, HELD_OUT), 64)).abs().max() < 0.02


def test_pictures_that_cannot_be_written_are_refused_first(tmp_path):
    run = CliRunner().invoke(
        app, ["eval", "reconstruction", "--tokenizer", "one-d-piece-mini", "--pictures", str(tmp_path / "grid.pdf")]
    )
    assert isinstance(run.exception, VistokError) and ".png" in str(run.exception)
