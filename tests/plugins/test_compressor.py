"""A compressor of another package: one module and an entry point, at work in the commands."""

from __future__ import annotations

import json

from PIL import Image

SOURCE = '''
from vistok.projectors import Compressor, Kept


class First(Compressor):
    """The first tokens of each view."""

    name = "first"

    def __init__(self, keep: int | float = 0.5):
        self.keep = keep

    def select(self, image):
        count = self.keep if isinstance(self.keep, int) else round(self.keep * image.valid.shape[1])
        return [Kept(valid.nonzero().squeeze(1)[:count]) for valid in image.valid]
'''


def test_a_compressor_from_outside_works_in_the_commands(install, tmp_path):
    vistok = install(SOURCE, "vistok.compressors", "first = toy:First")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    options = ["--model", "llava", "--image", "a.png", "-q", "what colour is it?", "--device", "cpu", "--json", "-"]
    done = vistok("compress", *options, "--method", "first", "--keep", "10", "--overlay", "o.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["first"]["visual_tokens"] == 10
    assert (tmp_path / "o.png").exists()
    scenes = ["--scenes", "2", "--per-scene", "1", "--max-new-tokens", "1", "--device", "cpu"]
    done = vistok("eval", "vqa", "--model", "llava", "--methods", "first", "--keep", "25", *scenes, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert [(p["method"], p["visual_tokens"]) for p in json.loads(done.stdout)] == [("all", 64), ("first", 16)]
