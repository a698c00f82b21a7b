"""Pipelines and models go into folders and to the hub, and come back; nothing here touches a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vistok
from tests.cli.test_cli import vistok as command
from vistok.data.images import to_pil
from vistok.errors import VistokError
from vistok.pipelines import Pipeline
from vistok.tokenizers.vq import VQTokenizer
from vistok.zoo import card, read_card
from vistok.zoo.model_card import verify_files

PROMPT = {"text": "a red circle", "class": 3}
QUICK = {"mar": "mar:iterations=4:head_steps=4"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in a folder: what is pushed lies there, and is what a snapshot gives."""
    repositories = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private=None, exist_ok=False):
            (repositories / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path, revision=None, commit_message=None):
            shutil.copytree(folder_path, repositories / repo_id, dirs_exist_ok=True)

    def snapshot(repo, allow_patterns=None):
        if not (repositories / repo).is_dir():
            raise OSError("no such repository")
        return str(repositories / repo)

    def config(name, *args, **options):
        raise VistokError(f"'{name}' holds no transformers model")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr("vistok.pipelines.resolve.load_config", config)
    return repositories


@pytest.mark.parametrize("name", ["llamagen", "llamagen-one-d-piece-mini", "mar"])
def test_a_saved_pipeline_paints_the_same_pictures(name, tmp_path):
    pipe = vistok.pipeline(name, device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved", device="cpu")
    prompt, sampler = PROMPT[pipe.conditional_on], QUICK.get(name)
    first, second = (each(prompt, seed=3, sampler=sampler) for each in (pipe, again))
    assert torch.equal(first.tokens, second.tokens)
    assert first.images[0].tobytes() == second.images[0].tobytes()
    assert (again.guidance, again.temperature, again.name) == (pipe.guidance, pipe.temperature, pipe.name)
    verify_files(read_card(tmp_path / "saved"), tmp_path / "saved")


def test_a_saved_pipeline_is_whole_and_used_by_the_commands(tmp_path):
    vistok.pipeline("llamagen", device="cpu").save_pretrained(tmp_path / "saved")
    moved = tmp_path / "elsewhere"
    (tmp_path / "saved").rename(moved)
    done = command("sample", "--model", str(moved), "--prompt", "a red circle", "--out", str(tmp_path / "a.png"))
    assert done.returncode == 0, done.stderr
    command("sample", "--prompt", "a red circle", "--out", str(tmp_path / "b.png"))
    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()


def test_a_pipeline_goes_to_the_hub_and_comes_back(hub):
    pipe = vistok.pipeline("llamagen", device="cpu")
    address = pipe.push_to_hub("someone/shapes", dtype=torch.float16)
    assert address.endswith("someone/shapes")
    text = (hub / "someone" / "shapes" / "README.md").read_text()
    told = huggingface_hub.ModelCard(text).data
    assert told.library_name == "vistok" and told.pipeline_tag == "text-to-image" and told.license == "apache-2.0"
    assert 'vistok.pipeline("someone/shapes")' in text
    again = vistok.pipeline("someone/shapes", device="cpu")
    assert torch.equal(again("a red circle", seed=3).tokens, pipe("a red circle", seed=3).tokens)


def test_a_model_goes_to_the_hub_and_comes_back(hub):
    tokenizer = VQTokenizer.from_pretrained("vq-mini")
    tokenizer.push_to_hub("someone/codes")
    again = VQTokenizer.from_pretrained("someone/codes")
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.parameters(), again.parameters(), strict=True))
    text = (hub / "someone" / "codes" / "README.md").read_text()
    assert 'VQTokenizer.from_pretrained("someone/codes")' in text and card("vq-mini").paper in text


def test_what_the_hub_refuses_is_one_sentence(hub, monkeypatch):
    def refuse(*args, **options):
        raise OSError("401 unauthorized\nlong story")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(VistokError, match=r"someone/codes.*401 unauthorized.*hf auth login") as told:
        VQTokenizer.from_pretrained("vq-mini").push_to_hub("someone/codes")
    assert "long story" not in str(told.value)
    with pytest.raises(VistokError, match="someone/nothing"):
        vistok.pipeline("someone/nothing", device="cpu")


def test_a_folder_and_a_number_format_are_understood_as_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pipe = vistok.pipeline("llamagen", device="cpu")
    with pytest.raises(VistokError, match="unknown dtype 'float8'"):
        pipe.save_pretrained("~/saved", dtype="float8")
    assert not (tmp_path / "saved").exists()
    pipe.save_pretrained("~/saved", dtype="float16")
    assert load_file(tmp_path / "saved" / "model.safetensors")["tok_embeddings.weight"].dtype == torch.float16
    assert vistok.pipeline("~/saved", device="cpu").name == pipe.name


def test_names_that_lead_to_no_pipeline_say_what_to_name(tmp_path):
    vistok.pipeline("llamagen", device="cpu").save_pretrained(tmp_path)
    with pytest.raises(VistokError, match=r"is a file: name the folder .* --checkpoint"):
        vistok.pipeline(str(tmp_path / "model.safetensors"), device="cpu")
    with pytest.raises(VistokError, match="there is no file or folder 'runs/one/step-100'"):
        vistok.pipeline("runs/one/step-100", device="cpu")
    entries = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(entries | {"family": "dice"}))
    with pytest.raises(VistokError, match=r"family 'dice', which is not known here: install"):
        vistok.pipeline(str(tmp_path), device="cpu")


@pytest.mark.parametrize("value", ["128", 128.5, -1, [128], 10**30])
def test_a_text_encoder_of_no_shape_is_told(tmp_path, value):
    vistok.pipeline("llamagen", device="cpu").save_pretrained(tmp_path)
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"d_ff": value}))
    with pytest.raises(VistokError, match=r"no text encoder has the shape in .*config\.json"):
        vistok.pipeline(str(tmp_path), device="cpu")


def test_a_pipeline_that_cannot_be_saved_says_why(tmp_path):
    pipe = vistok.pipeline("llamagen", device="cpu")
    with pytest.raises(VistokError, match="is a file"):
        (tmp_path / "taken").write_text("")
        pipe.save_pretrained(tmp_path / "taken")
    pipe.tokenizer = object()
    with pytest.raises(VistokError, match=r"image tokenizer.*object"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists() or not any(Path(tmp_path / "saved").iterdir())


@pytest.fixture(scope="module")
def pipe():
    return vistok.pipeline("llamagen", device="cpu")


def test_a_generator_draws_the_seed(pipe):
    draw = torch.Generator().manual_seed(7)
    first, second = (pipe("a red circle", generator=draw).tokens for _ in range(2))
    assert not torch.equal(first, second), "the generator goes on"
    assert torch.equal(pipe("a red circle", generator=torch.Generator().manual_seed(7)).tokens, first)
    for mistake in ({"generator": draw, "seed": 3}, {"generator": [draw]}, {"n": 2, "num_images_per_prompt": 3}):
        with pytest.raises(VistokError):
            pipe("a red circle", **mistake)


def test_images_come_as_the_call_asks(pipe):
    plain = pipe(["a red circle", "a blue square"], num_images_per_prompt=2, seed=3)
    assert len(plain.images) == 4
    arrays = pipe(["a red circle", "a blue square"], 2, seed=3, output_type="np").images
    tensors = pipe(["a red circle", "a blue square"], 2, seed=3, output_type="pt").images
    assert arrays.shape == (4, 64, 64, 3) and tensors.shape == (4, 3, 64, 64)
    assert np.allclose(arrays, tensors.movedim(1, -1).numpy())
    assert [image.tobytes() for image in to_pil(tensors * 2 - 1)] == [image.tobytes() for image in plain.images]
    tokens = pipe("a red circle", seed=3, output_type="latent")
    assert tokens.images == [] and torch.equal(tokens.tokens, plain.tokens[:1])
    with pytest.raises(VistokError, match="latent"):
        pipe("a red circle", output_type="latents")


@pytest.mark.parametrize("sampler", ["ar", "sjd:window=16"])
def test_a_callback_sees_every_step(pipe, sampler):
    seen = []

    def callback(shown, step, timestep, given):
        assert shown is pipe and step == timestep
        seen.append((step, int(given["decided"].sum())))
        return given

    out = pipe("a red circle", seed=3, sampler=sampler, callback_on_step_end=callback)
    assert [step for step, _ in seen] == list(range(int(out.stats.forwards[0]) + 1))
    assert seen[-1][1] == 256 and sorted(count for _, count in seen) == [count for _, count in seen]
    assert torch.equal(out.tokens, pipe("a red circle", seed=3, sampler=sampler).tokens)
    with pytest.raises(VistokError, match="return none"):
        pipe("a red circle", callback_on_step_end=lambda *given: {"latents": given[-1]["latents"] + 1})


def test_masked_samplers_show_their_steps_too():
    seen = []
    mar = vistok.pipeline("mar", device="cpu")
    mar(3, sampler=QUICK["mar"], callback_on_step_end=lambda pipe, step, _, given: seen.append(given["decided"].sum()))
    assert len(seen) == 4 and seen[-1] == mar.model.tokens.length


@pytest.mark.parametrize(
    ("folder", "dtype", "culprit"),
    [
        ("", None, "has no name"),
        ("model.pt", None, "name is that of a file"),
        ("x" * 300, None, "255 bytes"),
        ("m", "float8", "unknown dtype 'float8'"),
        ("m", torch.int8, r"real numbers, not as torch\.int8"),
        ("m", torch.complex64, r"real numbers, not as torch\.complex64"),
    ],
)
def test_what_no_network_is_saved_as_leaves_nothing_behind(tmp_path, monkeypatch, folder, dtype, culprit):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VistokError, match=culprit):
        VQTokenizer.from_pretrained("vq-mini").save_pretrained(folder, dtype)
    assert not list(tmp_path.iterdir())


def test_a_network_is_saved_by_the_name_of_a_number_format_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    VQTokenizer.from_pretrained("vq-mini").save_pretrained("~/m", "bfloat16")
    assert {each.dtype for each in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_network_without_a_card_does_not_inherit_that_of_the_folder(tmp_path):
    tokenizer = VQTokenizer.from_pretrained("vq-mini")
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "card.json").exists()
    VQTokenizer(tokenizer.config).save_pretrained(tmp_path)
    assert VQTokenizer.from_pretrained(tmp_path).card is None


def test_weights_beside_their_shape_lead_to_the_folder(tmp_path):
    VQTokenizer.from_pretrained("vq-mini").save_pretrained(tmp_path)
    with pytest.raises(VistokError, match=rf"or the folder '{tmp_path}'"):
        VQTokenizer.from_pretrained(tmp_path / "model.safetensors")
