"""A metric of another package: one file and an entry point, and the command runs it beside the package's own."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

BRIGHTNESS = '''
from dataclasses import dataclass

from vistok.eval.sets.interface import Measurement, Metric


@dataclass(frozen=True)
class Brightness(Metric):
    """Mean level of the samples."""

    outputs = ()
    reads_reference = False

    white: float = 255.0

    def compute(self, reference, samples):
        pictures = samples.need_pictures().batch(0, samples.count)
        levels = [picture.float().mean().item() / self.white for picture in pictures]
        return Measurement(sum(levels) / len(levels), details={"darkest": min(levels)})
'''
FEATURE_NORM = '''
from dataclasses import dataclass

from vistok.eval.sets.interface import Measurement, Metric


@dataclass(frozen=True)
class FeatureNorm(Metric):
    """Ratio of the mean feature norms."""

    def compute(self, reference, samples):
        fake, real = (side.need_shards().load().norm(dim=1).mean() for side in (samples, reference))
        return Measurement((fake / real).item())
'''


def paint(folder: Path, *levels: int) -> Path:
    folder.mkdir()
    for i, level in enumerate(levels):
        Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{i}.png")
    return folder


def test_a_metric_of_pixels(install, tmp_path):
    vistok = install(BRIGHTNESS, "vistok.metrics", "brightness = toy:Brightness")
    real, fake = paint(tmp_path / "real", 0, 0), paint(tmp_path / "fake", 51, 102)
    done = vistok("eval", "measure", real, fake, "--metrics", "brightness:white=510,psnr", "--json", "-")
    assert done.returncode == 0, done.stderr
    own, psnr = json.loads(done.stdout)
    assert abs(own["value"] - 0.15) < 1e-6 and abs(own["details"]["darkest"] - 0.1) < 1e-6
    assert own["protocol"]["metric"] == "brightness" and own["protocol"]["options"] == ["white=510.0"]
    assert psnr["protocol"]["metric"] == "psnr" and psnr["value"] > 0


def test_a_metric_of_features(install, tmp_path):
    vistok = install(FEATURE_NORM, "vistok.metrics", "norm = toy:FeatureNorm")
    real = paint(tmp_path / "real", 10, 200)
    command = ("eval", "measure", real, real, "--metrics", "norm,fid", "--extractor", "scenes-features")
    done = vistok(*command, "--workers", 0, "--json", "-")
    assert done.returncode == 0, done.stderr
    own, fid = json.loads(done.stdout)
    assert abs(own["value"] - 1) < 1e-6 and abs(fid["value"]) < 1e-4
    assert own["protocol"]["extractor"] == "scenes-features"
