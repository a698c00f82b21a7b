"""Prompt in, pictures out: the embedded model, and published shapes from files that the test makes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vistok
import vistok.zoo
from vistok.errors import VistokError
from vistok.models.interface import Control, Known
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.pipelines import GUIDANCE, Sample, expand
from vistok.pipelines.decoding import decode_images, preview_images
from vistok.samplers import SamplingParams
from vistok.samplers.interface import Partial
from vistok.samplers.stats import Stats
from vistok.sampling_job import Summary, paint_to
from vistok.tokenizers.flow import noise_for
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.vq import VQConfig, VQTokenizer


@pytest.fixture(scope="module")
def pipe():
    return vistok.pipeline("llamagen", device="cpu")


def test_a_prompt_becomes_a_picture(pipe):
    out = pipe("a red circle left of a blue square", n=2, seed=3)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    assert out.tokens.shape == (2, 256)
    assert out.stats.summary()["target_forwards"] == 255
    assert out.stats.mean_accepted_length == 1


def test_the_same_seed_gives_the_same_picture_whatever_the_batch(pipe):
    prompts = ["two green squares", "a yellow ring", "a pink cross above a cyan diamond"]
    alone = [pipe([p], seed=5).tokens for p in prompts[:1]]
    together = pipe(prompts, seed=5, batch_size=3).tokens
    split = pipe(prompts, seed=5, batch_size=2).tokens
    assert torch.equal(together, split)
    assert torch.equal(alone[0][0], together[0])
    assert not torch.equal(together[0], pipe(prompts[:1], seed=6).tokens[0])


def test_guidance_and_temperature_are_the_model_s_own_where_no_law_is_given(pipe, published, monkeypatch):
    card = vistok.zoo.card("llamagen")
    params = SamplingParams(card.guidance, temperature=card.temperature)
    assert pipe.sampling_params() == params != pipe.sampling_params(temperature=1.0) == SamplingParams(card.guidance)
    told, default = (pipe("a red circle", params=params, seed=2).tokens for params in (params, None))
    assert torch.equal(told, default)
    folder, config = published
    monkeypatch.setitem(LlamaGen.presets, "tiny", config)
    foreign = vistok.pipeline(checkpoint=folder / "gpt.pt", preset="tiny", tokenizer=folder / "vq", device="cpu")
    assert (
        foreign.sampling_params() == SamplingParams(GUIDANCE) != params
    )  # a file of other weights does not take the embedded model's


def test_samples_are_numbered_by_prompt_and_repetition():
    assert expand(["a", "b"], 2) == [Sample(0, "a"), Sample(1, "a"), Sample(2, "b"), Sample(3, "b")]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a red dragon"], "never saw 'dragon'; it knows: "),
        (["  "], "the prompt is empty"),
        ([7], "paints prompts, not classes"),
        ([], "nothing to draw"),
        (None, "prompts or of numbers of classes"),
        (2.5, "prompts or of numbers of classes"),
    ],
)
def test_conditions_that_cannot_be_followed_are_refused(pipe, prompts, message):
    with pytest.raises(VistokError, match=message):
        pipe(prompts)


@pytest.mark.parametrize(
    "classes", [np.int64(3), np.array([3]), [np.int32(3)], torch.tensor(3), torch.tensor([3]), (3,)]
)
def test_classes_are_numbers_of_any_kind(classes):
    pipe = vistok.pipeline("xar")
    wanted = pipe(3, output_type="latent").tokens
    assert torch.equal(pipe(classes, output_type="latent").tokens, wanted)


@pytest.mark.parametrize("picture", [np.zeros((64, 64, 3), np.uint8), torch.zeros(3, 64, 64), None])
def test_pictures_are_paths_or_of_pillow(picture):
    with pytest.raises(VistokError, match="path or as an image of Pillow"):
        vistok.pipeline("xar").with_image(picture, picture)
    with pytest.raises(VistokError, match="path or as an image of Pillow"):
        vistok.pipeline("llamagen-mini-control").with_control(picture, "canny")


def test_force_goes_on(pipe):
    assert len(pipe(["a red dragon"], force=True).images) == 1


TINY = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 16, "vocab_size": 40, "block_size": 16}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A class-conditional generator and a tokenizer of tiny shapes, in files as published ones are."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    model = LlamaGen(LlamaGenConfig(**TINY))
    torch.nn.init.normal_(model.output.weight, std=0.1)
    torch.save({"model": model.state_dict(), "args": None}, folder / "gpt.pt")
    tokenizer = VQTokenizer(VQConfig(codebook_size=40, channels=32, channel_mult=(1, 1), res_blocks=1, z_channels=32))
    tokenizer.save_pretrained(folder / "vq")
    return folder, model.config


def test_class_models_load_from_files(published, monkeypatch):
    folder, config = published
    monkeypatch.setitem(LlamaGen.presets, "tiny", config)
    pipe = vistok.pipeline(checkpoint=folder / "gpt.pt", preset="tiny", tokenizer=folder / "vq", device="cpu")
    out = pipe([3, 207], params=SamplingParams(guidance=4.0, top_k=20), seed=1)
    assert [image.size for image in out.images] == [(8, 8)] * 2
    larger = vistok.pipeline(
        checkpoint=folder / "gpt.pt", preset="tiny", tokenizer=folder / "vq", size=16, device="cpu"
    )
    assert larger(5).images[0].size == (16, 16)
    with pytest.raises(VistokError, match="knows classes 0 to 999"):
        pipe(1000)
    with pytest.raises(VistokError, match="paints classes, not prompts"):
        pipe("a dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "unknown dtype"),
        ({"device": "warp"}, "unknown device"),
        ({"name": "lamagn"}, "did you mean"),
        ({"name": "vq-mini"}, "does not paint"),
        ({"size": 63}, "not a multiple of 4"),
        ({"size": 128}, "draws 64x64 images"),
        ({"tokenizer": "nowhere/at/all", "checkpoint": "llamagen-mini"}, "no file or folder"),
    ],
)
def test_bad_options_get_a_sentence(options, message):
    with pytest.raises(VistokError, match=message):
        vistok.pipeline(**{"name": "llamagen", "device": "cpu", **options})


def test_the_other_spelling_is_known():
    assert vistok.pipeline("lamagen", device="cpu").name == "llamagen-mini"


PAINT = """
import sys
from vistok.cli.main import main
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
LlamaGen.presets["tiny"] = LlamaGenConfig(**{shape})
main()
"""


def start(published, out, world, port):
    """The processes of one `vistok sample`, with what ``accelerate launch`` tells each of them."""
    folder, _ = published
    options = ["--checkpoint", folder / "gpt.pt", "--preset", "tiny", "--vq", folder / "vq", "--class", "3"]
    command = [sys.executable, "-c", PAINT.format(shape=TINY), "sample", *options, "--num", "60", "--batch-size", "3"]
    job = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*map(str, command), "--out", str(out)],
            env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]


@pytest.mark.slow  # starts seven interpreters
def test_two_processes_killed_at_random_moments_paint_what_one_paints(published, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert [process.wait() for process in start(published, whole, 1, 0)] == [0]
    moments = random.Random(0)
    for attempt in range(2):
        processes = start(published, shared, 2, 29630 + attempt)
        wanted = len(list(shared.glob("[0-9]*.png"))) + moments.randint(1, 20)
        while len(list(shared.glob("[0-9]*.png"))) < wanted and any(process.poll() is None for process in processes):
            time.sleep(0.001)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for path in shared.glob("[0-9]*.png"):  # every picture that is there is whole
            assert path.read_bytes() == (whole / path.name).read_bytes()
    assert len(list(shared.glob("[0-9]*.png"))) < 60
    assert [process.wait() for process in start(published, shared, 2, 29640)] == [0, 0]
    files = sorted(path.name for path in whole.iterdir())
    # A killed process may leave the hidden file that it was writing; it never counts as a picture.
    assert sorted(path.name for path in shared.iterdir() if not path.name.startswith(".")) == files
    assert len([name for name in files if name.endswith(".png")]) == 60
    for name in files:
        assert (shared / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("name", ["llamagen", "mar"])
def test_a_saved_generator_keeps_what_its_card_tells(name, tmp_path):
    """Guidance, temperature, the sampler's settings and the tokenizer: the same seed draws the same tokens."""
    own = vistok.pipeline(name, device="cpu")
    own.model.save_pretrained(tmp_path)
    if own.text_encoder is not None:
        own.text_encoder.save_pretrained(tmp_path / "text_encoder")
    loaded = vistok.pipeline(checkpoint=tmp_path, device="cpu")
    assert loaded.sampling_params() == own.sampling_params()
    assert loaded.sampler() == own.sampler() and loaded.digest == own.digest


def test_former_names_of_arguments_work_and_say_what_they_are_now(published, monkeypatch):
    folder, config = published
    monkeypatch.setitem(LlamaGen.presets, "tiny", config)
    with pytest.warns(FutureWarning, match="tokenizer="):
        pipe = vistok.pipeline(checkpoint=folder / "gpt.pt", preset="tiny", vq=folder / "vq", device="cpu")
    params = SamplingParams(top_k=3)
    with pytest.warns(FutureWarning, match="params="):
        former = pipe(3, law=params).tokens
    assert torch.equal(former, pipe(3, params=params).tokens)
    with pytest.warns(FutureWarning, match="tokenizer"):
        assert pipe.vq is pipe.tokenizer
    with pytest.warns(FutureWarning, match="SamplingParams"):
        from vistok.samplers import Law
    assert Law is SamplingParams


def test_int8_pictures_do_not_depend_on_the_batch_and_a_job_tells_them_apart(tmp_path):
    fast = vistok.pipeline("llamagen", device="cpu", dtype="int8")
    prompts = ["two green squares", "a yellow ring"]
    together = fast(prompts, seed=5, batch_size=2).tokens
    assert torch.equal(fast(prompts[:1], seed=5).tokens[0], together[0])
    params, samples = SamplingParams(1.0), expand(["a yellow ring"], 1)
    paint_to(tmp_path, fast, samples, fast.sampler(None), params)
    plain = vistok.pipeline("llamagen", device="cpu")
    with pytest.raises(VistokError, match="another job"):
        paint_to(tmp_path, plain, samples, plain.sampler(None), params)


def test_pipelines_that_paint_other_pictures_have_other_identities():
    plain = vistok.pipeline("llamagen-flextok", device="cpu")
    others = [
        vistok.pipeline("llamagen", device="cpu"),
        vistok.pipeline("llamagen-flextok", device="cpu", tokens=8),
        vistok.pipeline("llamagen-flextok", device="cpu", dtype="int8"),
        plain.with_negative("a red circle"),
        replace(plain, known=Known(torch.zeros(32, dtype=torch.int64), torch.zeros(32, dtype=torch.bool))),
        replace(plain, control=(Control(torch.zeros(1, 3, 64, 64), "seg", 1.0),)),
    ]
    found = [json.dumps(pipe.identity, sort_keys=True) for pipe in (plain, *others)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("name", "device", "mend"), [("mar", "cpu", "token behind the other"), ("llamagen", "cuda", "cuda|CPU")]
)
def test_int8_is_refused_where_it_does_not_serve(name, device, mend):
    with pytest.raises(VistokError, match=mend):
        vistok.pipeline(name, device=device, dtype="int8")


def test_a_measured_window_is_that_of_the_whole_job(pipe, tmp_path, monkeypatch):
    from vistok.samplers.drafters import jacobi

    params, samples, sampler = SamplingParams(1.0), expand(["a yellow ring"], 2), pipe.sampler("sjd:window=auto")
    monkeypatch.setattr(jacobi, "_TUNED", {})
    monkeypatch.setattr(jacobi, "forward_cost", lambda *_: {1: 1.0, 8: 1.0})
    paint_to(tmp_path / "job", pipe, samples, sampler, params)
    first = [(tmp_path / "job" / f"{i:06d}.png").read_bytes() for i in range(2)]
    assert json.loads((tmp_path / "job" / "window.json").read_text()) == 8
    (tmp_path / "job" / "000001.png").unlink()
    monkeypatch.setattr(jacobi, "_TUNED", {})
    monkeypatch.setattr(jacobi, "forward_cost", lambda *_: {1: 1.0, 32: 1.0})  # another machine, or a busier one
    paint_to(tmp_path / "job", pipe, samples, sampler, params)
    assert [(tmp_path / "job" / f"{i:06d}.png").read_bytes() for i in range(2)] == first


@pytest.mark.parametrize(("tokenizer", "side"), [("vq-mini", 64), ("vq-mini-128", 128)])
def test_a_tokenizer_alone_gets_the_default_generator_of_its_codes(tokenizer, side):
    pipe = vistok.pipeline(tokenizer=tokenizer, device="cpu")
    assert (pipe.name, pipe.size) == ("llamagen-mini", side)


def test_a_jobs_seconds_are_by_the_clock_however_many_processes_shared_it():
    steps, none = torch.tensor([[0, 1, 2]]), torch.zeros(1, dtype=torch.int64)
    parts = [Stats(steps, none, seconds=seconds) for seconds in (3.0, 4.0)]
    told = Summary(2, 0, 4.5, Path("pictures"), Stats.merged(parts)).to_dict()
    assert told["seconds"] == 4.5 and told["tokens_per_second"] == 6 / 4.5


def test_a_preview_has_the_noise_of_the_image_that_it_becomes():
    class Noise:
        capabilities = Capabilities(8, "sequence", 8, 8, range(1, 5), stochastic_decode=True)

        def decode(self, tokens, length=None, generator=None):
            return noise_for(len(tokens), (3, 8, 8), generator, tokens.device)

    shape = SimpleNamespace(tokens=SimpleNamespace(layout="sequence"), image_tokens=lambda tokens: tokens)
    pipe, tokens = SimpleNamespace(decoder=Noise(), model=shape), torch.zeros(2, 4, dtype=torch.long)
    shown = preview_images(pipe, Partial(tokens, torch.ones(2, 4, dtype=torch.bool), 4), seed=5)
    drawn = decode_images(pipe, tokens, [0, 1], seed=5)
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in drawn]
    assert drawn[0].tobytes() != drawn[1].tobytes()
