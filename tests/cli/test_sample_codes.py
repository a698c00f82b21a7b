"""``vistok sample`` on folders of Janus, Emu3 and Chameleon: pictures, trace and stats, or codes without a decoder."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.samplers.tiny_codes import EMU3, MODELS, SIDE, K
from vistok.cli.main import app
from vistok.models.codes.chameleon import ChameleonGenerator
from vistok.tokenizers.taming import TamingVQGAN
from vistok.tokenizers.vq import VQConfig
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task

EMU3_TOKENS = {
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}
VQGAN = VQConfig(
    codebook_size=K, codebook_dim=4, l2_norm=False, channels=32, channel_mult=(1, 1), res_blocks=1, z_channels=4
)


def run(*arguments):
    return CliRunner().invoke(app, ["sample", *map(str, arguments)])


def words(ids, **special):
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", extra_special_tokens=special or None, **tokens
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, as save_pretrained writes it."""
    from transformers import ChameleonImageProcessor, ChameleonProcessor, Emu3ImageProcessor, Emu3Processor

    made = {kind: tmp_path_factory.mktemp(kind) for kind in MODELS}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = Recipe(
        "tiny-janus",
        "janus",
        steps=1,
        batch_size=2,
        model=shape | {"num_key_value_heads": 2, "max_position_embeddings": 64},
        data={"seed": 61, "scenes": 4, "size": 16, "eval_scenes": 2},
        init={"tokenizer": "vq-mini"},
    )
    build_task(recipe).export(made["janus"], {"held_out_loss": 6.0}, 1)
    MODELS["emu3"]().save_pretrained(made["emu3"])
    vocabulary = {name: token for name, token in MODELS["emu3"]().config.vocabulary_map.items() if name in EMU3}
    tokenizer = words(vocabulary | {"a": 4, "dot": 15}, **EMU3_TOKENS)
    Emu3Processor(Emu3ImageProcessor(), tokenizer).save_pretrained(made["emu3"])
    MODELS["chameleon"]().save_pretrained(made["chameleon"])
    tokenizer = words(
        {"a": 13, "dot": 15, "<image>": 25}, image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>"
    )
    ChameleonProcessor(ChameleonImageProcessor(), tokenizer).save_pretrained(made["chameleon"])
    return made


@pytest.mark.parametrize("kind", ["janus", "emu3"])
def test_pictures_trace_and_stats(kind, folders, tmp_path):
    size = ["--size", 32] if kind == "emu3" else []  # 4 by 4 codes, as in the prompts that the tiny vocabulary can say
    out, trace, figures = tmp_path / "out", tmp_path / "trace.png", tmp_path / "figures.json"
    options = ["--sampler", "sjd:window=4", "--trace", trace, "--json", figures, "--force", "-n", 2]
    done = run("--model", folders[kind], "--prompt", "a dot", "--out", out, *size, *options)
    assert done.exit_code == 0, done.exception
    side = {"janus": 16, "emu3": 8}[kind]  # the tiny Emu3's tokenizer halves a side once, the published one thrice
    assert [Image.open(path).size for path in sorted(out.glob("*.png"))] == [(side, side)] * 2
    assert trace.exists()
    found = json.loads(figures.read_text())
    assert found["samples"] == 2
    assert found["target_forwards"] < found["tokens"]


def test_chameleon_without_a_decoder_saves_codes_and_says_so(folders, tmp_path, capfd):
    done = run("--model", folders["chameleon"], "--prompt", "a dot", "--out", tmp_path / "x.png", "--sampler", "sjd")
    assert done.exit_code == 0, done.exception
    assert "--tokenizer" in done.output + capfd.readouterr().err
    codes = np.load(tmp_path / "x.npy")
    assert codes.shape == (1, SIDE, SIDE)
    assert codes.min() >= 0 and codes.max() < K


def test_samplers_are_measured_without_a_decoder(folders, tmp_path, monkeypatch):
    """Forwards and times; scores, which need pictures, are left out in a sentence."""
    monkeypatch.setattr("vistok.eval.geneval.metadata.scene_prompts", lambda *_: [{"prompt": "a dot"}] * 2)
    asked = ["bench", "samplers", "--model", folders["chameleon"], "--samplers", "ar,sjd:window=4", "--cfg", 3]
    done = CliRunner().invoke(app, [*map(str, asked), "--json", str(tmp_path / "b.json")])
    assert done.exit_code == 0, done.exception
    assert "no decoder" in done.output
    plain, jacobi = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert jacobi["forwards"] < plain["forwards"]


def test_chameleon_with_its_vqgan_paints_the_same_codes(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("vistok.tokenizers.taming.CHAMELEON", VQGAN)
    torch.manual_seed(0)
    vqgan = TamingVQGAN(VQGAN)
    file = tmp_path / "vqgan.ckpt"
    torch.save({"state_dict": published(vqgan) | {"loss.discriminator.weight": torch.zeros(2)}}, file)
    asked = ["--model", folders["chameleon"], "--prompt", "a dot", "--out", tmp_path / "x.png"]
    done = run(*asked, "--tokenizer", file)
    assert done.exit_code == 0, done.exception
    run(*asked)
    wanted = vqgan.decode(torch.from_numpy(np.load(tmp_path / "x.npy")))
    painted = torch.from_numpy(np.array(Image.open(tmp_path / "x.png"))).permute(2, 0, 1)
    assert torch.allclose(painted.float(), ((wanted[0].clamp(-1, 1) + 1) * 127.5).round(), atol=1)


def published(vqgan):
    """The weights under the names of taming-transformers, written down independently of the loader."""
    levels, state = len(vqgan.config.channel_mult), {}
    for key, value in vqgan.state_dict().items():
        if key.endswith("codebook_used"):
            continue
        parts = key.split(".")
        if parts[1] == "conv_blocks":
            level = int(parts[2])
            up = parts[0] == "decoder"
            parts[1:3] = ["up" if up else "down", str(levels - 1 - level if up else level)]
            parts[3] = {"res": "block"}.get(parts[3], parts[3])
        elif parts[1] == "mid":
            parts[2] = ("block_1", "attn_1", "block_2")[int(parts[2])]
        state[".".join(parts)] = value
    return state


def test_lumina_forces_its_line_ends_and_its_end():
    network = copy.deepcopy(MODELS["chameleon"]())
    network.config.vocab_size = 9000
    plan = ChameleonGenerator.lumina(network, 2, 4).plan
    assert plan.places.tolist() == [-1, -1, -1, -1, K] * 2 + [K + 1]
    assert plan.ids[K:].tolist() == [8803, 19]
    assert ChameleonGenerator.opening(network, 2, 4) == [20, 8805, 8806]


BAD = {
    "an odd size": ("emu3", ["--size", "33"], "multiple of 8"),
    "another size": ("chameleon", ["--size", "512"], "leave --size out"),
    "an odd size of Lumina": ("chameleon", ["--preset", "lumina-mgpt", "--size", "16"], "even number"),
    "no Lumina-mGPT": ("chameleon", ["--preset", "lumina-mgpt"], "vocabulary"),
    "no preset of the family": ("chameleon", ["--preset", "GPT-B"], "anole or lumina-mgpt"),
    "a text encoder": ("janus", ["--text-encoder", "x"], "--text-encoder"),
    "an unknown word": ("janus", [], "never saw"),
    "a trace without pictures": ("chameleon", ["--force", "--trace", "t.png"], "--tokenizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_get_one_sentence(name, folders, tmp_path, monkeypatch):
    kind, options, culprit = BAD[name]
    monkeypatch.chdir(tmp_path)
    done = run("--model", folders[kind], "--prompt", "a zebra", *options)
    assert done.exit_code != 0
    assert culprit in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_model_is_refused_by_name(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path / "lm")
    done = run("--model", tmp_path / "lm", "--prompt", "a dot", "--out", tmp_path / "x.png")
    assert "llama" in str(done.exception)
    assert "janus, emu3, chameleon" in str(done.exception)
