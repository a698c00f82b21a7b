"""Pictures that a model paints for GenEval, the ceiling of its tokenizer, and captions that come with pictures."""

from __future__ import annotations

import functools
import itertools
import json
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from vistok import zoo
from vistok.cli.eval import app
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError
from vistok.eval.captions import read_captions, without_caption
from vistok.eval.geneval import paint, read_folders, write_prompt_folder
from vistok.eval.geneval.metadata import colors
from vistok.pipelines import pipeline
from vistok.samplers import SamplingParams
from vistok.tokenizers.interface import Capabilities


class StubPipe:
    """Paints the index of each sample."""

    model = SimpleNamespace(tokens=SimpleNamespace(length=4))

    def __init__(self, name: str = "stub"):
        self.identity = {"model": name}
        self.painted = []

    def check(self, prompts):
        assert all(isinstance(prompt, str) for prompt in prompts)

    def iterate(self, samples, sampler, law, seed, batch_size, advance):
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            self.painted += [sample.index for sample in batch]
            yield batch, SimpleNamespace(images=[Image.new("RGB", (4, 4), (s.index, 0, 0)) for s in batch])


RECORDS = [colors(shape, "red") for shape in ("circle", "ring", "square")]


def test_a_set_is_painted_once_and_never_mixed(tmp_path):
    pipe = StubPipe()
    paint.paint_set(tmp_path, RECORDS, pipe, per_prompt=2, batch_size=5, rank=1, world=2)
    assert pipe.painted == [2, 3]
    paint.paint_set(tmp_path, RECORDS, pipe, per_prompt=2, batch_size=5)
    assert pipe.painted == [2, 3, 0, 1, 4, 5]
    prompts = read_folders(tmp_path)
    assert [prompt.metadata for prompt in prompts] == RECORDS
    colours = [Image.open(path).getpixel((0, 0))[0] for prompt in prompts for path in prompt.images]
    assert colours == list(range(6))
    for other in ({"pipe": StubPipe("another")}, {"seed": 1}, {"records": RECORDS[:2]}):
        with pytest.raises(VistokError, match="another job"):
            paint.paint_set(**{"root": tmp_path, "records": RECORDS, "pipe": pipe, "per_prompt": 2} | other)
    (tmp_path / "manifest.json").unlink()  # as if another tool had painted the set
    with pytest.raises(VistokError, match="00000"):
        paint.paint_set(tmp_path, RECORDS, pipe, per_prompt=2)


def test_a_set_that_could_not_be_painted_leaves_its_folder_to_another(tmp_path):
    class Refusing(StubPipe):
        def iterate(self, *_):
            raise VistokError("no such temperature")

    with pytest.raises(VistokError, match="temperature"):
        paint.paint_set(tmp_path, RECORDS, Refusing(), per_prompt=2)
    assert not list(tmp_path.iterdir())


def test_every_report_on_scenes_has_the_ceiling(tmp_path, monkeypatch):
    monkeypatch.setattr(paint, "reconstruction_ceiling", functools.partial(paint.reconstruction_ceiling, count=24))
    scenes = sample_scenes(40, seed=2)
    single = scenes[(scenes.present.sum(1) == 1).nonzero().flatten()[:2]]
    for i, image in enumerate(to_pil(render(single))):
        found = paint.prompts_of.colors(*("circle", "red"))
        write_prompt_folder(tmp_path / "images", i, found, [image])
    outcome = CliRunner().invoke(app, ["geneval", "--images", str(tmp_path / "images"), "--out", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    assert "ceiling" in outcome.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0.8 <= summary["ceiling"]["overall"] <= 1
    failures = (tmp_path / "failures.txt").read_text().splitlines()
    assert all("expected" in line for line in failures) and (tmp_path / "failures.png").exists() == bool(failures)


@pytest.mark.parametrize(("model", "drawn"), [("llamagen", 256), ("llamagen-one-d-piece-mini", 64)])
def test_the_ceiling_is_that_of_the_tokens_that_are_drawn(model, drawn, tmp_path, monkeypatch):
    pipe, decoded = pipeline(model), []
    decode = pipe.tokenizer.decode
    monkeypatch.setattr(pipe.tokenizer, "decode", lambda tokens: decoded.append(tokens) or decode(tokens))
    monkeypatch.setattr(paint, "paint_set", lambda *_: None)
    monkeypatch.setattr(paint, "reconstruction_ceiling", functools.partial(paint.reconstruction_ceiling, count=24))
    assert paint.paint_for_eval(tmp_path, pipe, None, 1, 1, {}, "ar", 0, 1, ceiling=True) is not None
    assert {tokens[0].numel() for tokens in decoded} == {drawn}


def test_a_tokenizer_without_weights_sets_a_ceiling_too():
    class Blocks:
        """Keeps the pictures as they are; as one that another package adds, it is no network."""

        capabilities = Capabilities(codebook_size=2, layout="grid", multiple=1)

        def encode(self, images):
            return images

        def decode(self, tokens):
            return tokens

    perfect = paint.reconstruction_ceiling(Blocks(), 64, count=24)
    assert perfect.overall == 1


def test_a_model_paints_by_the_parameters_that_are_asked_for(tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    def paint_set(root, records, pipe, per_prompt, sampler, params, *rest):
        seen.update(law=params, tokens=pipe.model.tokens.length)
        raise Stop

    monkeypatch.setattr(paint, "paint_set", paint_set)
    command = ["geneval", "--model", "llamagen", "--per-task", "1", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, [*command, "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9"])
    assert isinstance(outcome.exception, Stop)
    own = zoo.card("llamagen")
    assert seen["law"] == SamplingParams(
        own.guidance, temperature=0.5, top_k=7, top_p=0.9
    )  # with the model's own guidance
    assert isinstance(CliRunner().invoke(app, [*command, "--cfg", "3"]).exception, Stop)
    assert seen["law"] == SamplingParams(3.0, temperature=own.temperature)
    assert CliRunner().invoke(app, [*command, "--top-k", "0"]).exit_code == 2
    assert seen["tokens"] == 256
    few = [*command, "--tokens", "4"]
    assert isinstance(CliRunner().invoke(app, [*few, "--model", "llamagen-flextok"]).exception, Stop)
    assert seen["tokens"] == 4
    assert "grid" in str(CliRunner().invoke(app, few).exception)  # of llamagen, whose tokens run row by row


def test_captions_come_with_the_pictures_of_sample(tmp_path):
    lines = [{"file": f"{i:06d}.png", "text": f"prompt {i}", "seed": 0, "index": i} for i in range(2)]
    for line in lines:
        Image.new("RGB", (4, 4)).save(tmp_path / line["file"])
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_captions(tmp_path)
    assert [(picture.path.name, picture.caption) for picture in found] == [(x["file"], x["text"]) for x in lines]
    with pytest.raises(VistokError, match="line 1"):
        (tmp_path / "metadata.jsonl").write_text('{"file": "000000.png", "class": 3}\n')
        read_captions(tmp_path)


def test_captions_of_a_folder_of_ones_own(tmp_path):
    folder = tmp_path / "own"
    with pytest.raises(VistokError, match="no folder"):
        read_captions(folder, tmp_path / "a.jsonl")
    folder.mkdir()
    with pytest.raises(VistokError, match=r"no captions with the pictures.*--captions"):
        read_captions(folder)
    (folder / "sub").mkdir()
    for name in ("sub/ü.png", "a.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    for keys in itertools.product(("image", "file", "file_name"), ("caption", "text")):
        (folder / "metadata.jsonl").write_text(json.dumps(dict(zip(keys, ("sub/ü.png", "a dog"), strict=True))))
        found = read_captions(folder)
        assert found == [(folder / "sub/ü.png", "a dog")] and without_caption(folder, found) == ["a.png"]
    for empty in ("", "  "):
        (folder / "metadata.jsonl").write_text(json.dumps({"image": "a.png", "caption": empty}))
        with pytest.raises(VistokError, match=r"caption of .a\.png. is empty"):
            read_captions(folder)
