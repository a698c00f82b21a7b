"""What the studio's tabs compute and show; the page itself is tested in a browser, see ``test_browser.py``."""

from __future__ import annotations

import itertools
import re
import threading

import pytest
from PIL import Image

import vistok
from vistok.data.images import save_image
from vistok.errors import VistokError
from vistok.eval.geneval.folder import write_prompt_folder
from vistok.eval.geneval.metadata import single_object
from vistok.pipelines import expand
from vistok.projectors import COMPRESSORS
from vistok.samplers import TEXT_DRAFTERS
from vistok.samplers.text_drafters import TRAINED
from vistok.studio import compare, html, paint, see, tokens, write
from vistok.studio.streaming import streamed
from vistok.tokenizers.load import load_tokenizer
from vistok.zoo.transformers import load_causal_lm

OUTSIDE = re.compile(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""")


@pytest.fixture(scope="module")
def pipe():
    return vistok.pipeline("llamagen", device="cpu")


@pytest.fixture(scope="module")
def scene():
    return see.example(3)


def test_a_picture_is_shown_while_it_is_drawn_and_is_the_one_of_the_pipeline(pipe):
    states = list(paint.paint(pipe, "a red circle", "sjd:window=16", 3))
    assert states[-1].stats is not None and all(state.stats is None for state in states[:-1])
    assert [state.step for state in states] == sorted(state.step for state in states)
    expected = pipe("a red circle", sampler="sjd:window=16", seed=3).images[0]
    assert states[-1].picture.tobytes() == expected.tobytes()
    plain = list(paint.paint(pipe, "a red circle", None, 3))[-1]
    page = paint.painting_html(pipe, "a red circle", states[-1], plain)
    assert "Tokens a step" in page and "fewer steps than plain decoding" in page
    assert not OUTSIDE.search(page)


@pytest.mark.parametrize(
    ("prompt", "sampler", "culprit"),
    [("", None, "empty"), ("a zebra", None, "zebra"), ("a red circle", "sjdd", "sjdd"), ("a " * 400, None, "shorten")],
)
def test_what_cannot_be_painted_is_one_sentence(pipe, prompt, sampler, culprit):
    with pytest.raises(VistokError, match=culprit):
        list(paint.paint(pipe, prompt, sampler))


def test_samplers_to_choose_from_fit_the_generator(pipe):
    assert paint.samplers_of(pipe)[0] == "ar"
    for name in paint.samplers_of(pipe):
        pipe.sampler(name)


def test_a_method_is_compared_with_all_tokens(scene):
    from vistok.eval.answers.ask import load

    model, processor = load("llava-mini", "cpu")
    picture, question = scene
    found = see.see(model, processor, picture, question, "vtc-cls", 25)
    assert found.fewer.visual_tokens < found.all.visual_tokens
    assert found.fewer.prefill_flops < found.all.prefill_flops
    assert found.overlay is not None
    page = see.seen_html(found)
    assert "vtc-cls" in page and "MFLOPs" in page and not OUTSIDE.search(page)
    inside = see.see(model, processor, picture, question, "fastv", 25)
    assert inside.overlay is None and "fastv" in see.seen_html(inside)
    for mistake in ((None, question, "vtc-cls"), (picture, " ", "vtc-cls"), (picture, question, "vtc-clss")):
        with pytest.raises(VistokError):
            see.see(model, processor, *mistake, 25)


@pytest.mark.parametrize("name", tokens.tokenizer_names())
@pytest.mark.parametrize("wanted", [1, 64, 256])
def test_every_tokenizer_tells_a_picture_by_its_first_tokens(name, wanted, scene):
    loaded, picture = load_tokenizer(name), scene[0].resize((150, 100))
    found = tokens.rendition(loaded, picture, wanted, tokens.Encoded())
    can = loaded.tokenizer.capabilities
    assert found.tokens == found.total or can.variable_length
    assert found.tokens <= max(wanted, 1) or not can.variable_length
    assert (found.bytes is None) == (can.codebook_size is None)
    for _, spent, _ in found.codecs.values():
        assert spent > 0
    page = tokens.tokens_html([found])
    assert name in page and not OUTSIDE.search(page)


def test_encoding_is_done_once_for_a_picture(scene, monkeypatch):
    loaded, encoded = load_tokenizer("one-d-piece-mini"), tokens.Encoded()
    first = tokens.rendition(loaded, scene[0], 256, encoded)
    monkeypatch.setattr(loaded.tokenizer, "encode", None)
    assert tokens.rendition(loaded, scene[0], 16, encoded).psnr < first.psnr


def test_pictures_of_the_same_bytes_and_another_shape_are_two(scene):
    loaded, encoded = load_tokenizer("vq-mini"), tokens.Encoded()
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste(0, (48, 0, 96, 32))
    tall = Image.frombytes("RGB", (32, 96), wide.tobytes())
    shown = [tokens.rendition(loaded, picture, 256, encoded).original for picture in (wide, tall)]
    assert shown[1].tobytes() == tokens.rendition(loaded, tall, 256, tokens.Encoded()).original.tobytes()
    assert shown[0].tobytes() != shown[1].tobytes()


def test_methods_to_choose_from_say_something_about_a_picture():
    assert not [name for name in see.methods() if COMPRESSORS[name].temporal or COMPRESSORS[name].trained]
    assert {"vtc-cls", "fastv"} <= set(see.methods())


def test_a_text_longer_than_the_model_reads_is_refused_as_by_the_command():
    model, words = load_causal_lm("text-mini")
    with pytest.raises(VistokError, match="'text-mini' reads 256 tokens"):
        list(write.write(model, words, None, "def read(self):", "none", write.MOST_TOKENS, 0.0, 0))
    with pytest.raises(VistokError, match="64 bits"):
        list(write.write(model, words, None, "def read(self):", "none", 8, 1.0, 1 << 70))


def test_which_drafters_there_are_is_told_without_loading_their_weights(monkeypatch):
    model, words = load_causal_lm("text-mini")
    built = {name for name in TEXT_DRAFTERS if TEXT_DRAFTERS[name](model, words, None) is not None}
    for name, trained in TRAINED.items():
        monkeypatch.setitem(TRAINED, name, trained._replace(load=None))
    assert set(write.drafters_of(model, words, None)) == built | {"none"}
    assert "eagle" in built


def test_a_text_is_written_with_its_drafts_marked():
    model, words = load_causal_lm("text-mini")
    draft, _ = load_causal_lm("text-mini-draft")
    names = write.drafters_of(model, words, draft)
    assert names[-1] == "none" and {"lookup", "recycling", "draft"} <= set(names)
    assert "draft" not in write.drafters_of(model, words, None)
    prompt = "def read(self, path):\n"
    *_, drafted = write.write(model, words, draft, prompt, "recycling", 24, 0.0, 0)
    *_, plain = write.write(model, words, draft, prompt, "none", 24, 0.0, 0)
    assert "".join(text for text, _ in drafted.pieces) == "".join(text for text, _ in plain.pieces)
    assert any(draft for _, draft in drafted.pieces) and not any(draft for _, draft in plain.pieces)
    assert drafted.figures["target_forwards"] < plain.figures["target_forwards"]
    assert drafted.tree[0].depth == 0 and not plain.tree
    page = write.written_html(drafted)
    assert "<mark" in page and "Draft tree" in page and not OUTSIDE.search(page)
    for mistake in (("", "none", 8), (prompt, "recyclin", 8), (prompt, "none", 0), ("x" * 5000, "none", 8)):
        with pytest.raises(VistokError):
            list(write.write(model, words, draft, *mistake, 0.0, 0))


def test_what_is_written_is_escaped():
    shown = write.written_html(write.Written("<b>", [("<script>alert(1)</script>", True)]))
    assert "<script>" not in shown and "<b>" not in shown
    assert "<i>" not in html.chips([("<i>", "<i>")]) + html.note("<i>") + html.table(["<i>"], [["<i>"]], "<i>")


def test_two_folders_are_compared(tmp_path):
    for i, number in itertools.product(range(2), range(6)):
        save_image(see.example(number + 10 * i)[0], tmp_path / f"set{i}" / f"{number}.png")
    found = compare.compare(str(tmp_path / "set0"), str(tmp_path / "set1"))
    assert found.counts == (6, 6) and {result.protocol.metric for result in found.results} == {"fd-scenes-features"}
    assert found.geneval == (None, None) and "GenEval" in compare.compared_html(found)
    metadata = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"}
    for number in range(3):
        write_prompt_folder(tmp_path / "asked", number, metadata, [see.example(number)[0]])
    write_prompt_folder(tmp_path / "photos", 0, single_object("bench"), [see.example(n)[0] for n in range(2)])
    photos = compare.compare(str(tmp_path / "set0"), str(tmp_path / "photos"))  # of no class that scenes have
    assert photos.results and photos.geneval == (None, None)
    asked = compare.compare(str(tmp_path / "set0"), str(tmp_path / "asked"))
    assert asked.geneval[1].images == 3 and "single_object" in compare.compared_html(asked)


@pytest.mark.parametrize(("first", "culprit"), [("", "empty"), ("nowhere", "nowhere"), (".", "image|picture")])
def test_folders_that_cannot_be_compared_are_one_sentence(first, culprit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VistokError, match=culprit):
        compare.compare(first, first)


def test_work_stops_when_nobody_looks(monkeypatch):
    monkeypatch.setattr("vistok.studio.streaming.BETWEEN", 0)
    ended = threading.Event()

    def work(show):
        try:
            for i in itertools.count():
                show(lambda i=i: i)
        finally:
            ended.set()

    states = streamed(work)
    assert next(states) >= 0
    states.close()
    assert ended.wait(10)


def test_what_work_raises_is_raised():
    def work(show):
        raise VistokError("no")

    with pytest.raises(VistokError, match="no"):
        list(streamed(work))


def test_a_preview_is_grey_where_nothing_is_decided(pipe):
    seen = {}

    def watch(partial):
        if partial.step in (0, 255):
            seen[partial.step] = pipe.preview(partial)[0]

    list(pipe.iterate(expand(["a red circle"], 1), watch=watch))
    first, last = seen[0], seen[255]
    assert first.getpixel((63, 63)) == first.getpixel((40, 40)) != last.getpixel((40, 40))
    assert last.tobytes() == pipe("a red circle").images[0].tobytes()
