"""Names lead to cards and files; nothing is fetched that was not asked for; embedded files are what their cards say."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from vistok import zoo
from vistok.errors import VistokError
from vistok.pipelines import pipeline
from vistok.tokenizers import VQTokenizer, load_tokenizer
from vistok.zoo import registry
from vistok.zoo.model_card import verify_files
from vistok.zoo.transformers import load_causal_lm

LOADERS = pytest.mark.parametrize(
    "load",
    [
        pipeline,
        lambda name: pipeline(checkpoint=name),
        lambda name: pipeline(tokenizer=name),
        load_tokenizer,
        VQTokenizer.from_pretrained,
        load_causal_lm,
        zoo.resolve,
    ],
)


@pytest.mark.parametrize("name", ["", " "])
@LOADERS
def test_an_empty_name_stands_for_nothing(name, load):
    with pytest.raises(VistokError, match="name is empty"):
        load(name)


@pytest.mark.parametrize("name", ["~nobody-here", "./~/" + "x" * 300, "~nobody-here/a/b", "x" * 300])
@LOADERS
def test_names_that_no_file_can_have_are_told(name, load):
    with pytest.raises(VistokError, match=r"unknown model|no file or folder|no embedded generator"):
        load(name)


@pytest.mark.parametrize("name", ["vq-mini", "VQ-mini", Path("vq-mini")])
def test_an_embedded_name_that_is_a_folder_here_too_is_told(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / str(name)
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a folder of pictures is none of a model
        assert zoo.resolve(name) == registry.WEIGHTS / "vq-mini"
    VQTokenizer.from_pretrained("vq-mini").save_pretrained(folder)
    with pytest.warns(UserWarning, match=rf"write './{name}'"):
        assert zoo.resolve(name) == registry.WEIGHTS / "vq-mini"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zoo.resolve(f"./{name}") == Path(str(name))


@pytest.fixture
def card() -> zoo.ModelCard:
    return zoo.ModelCard(
        name="tiny",
        task="image-tokenizer",
        family="vq",
        parameters=3,
        files={},
        source="",
        licence="Apache-2.0",
        aliases=("small",),
        seed=0,
        metrics={"psnr": 30.5},
    )


@pytest.fixture
def embedded(tmp_path, monkeypatch, card):
    """A zoo whose only embedded model is ``tiny``."""
    folder = tmp_path / "tiny"
    (folder / "text").mkdir(parents=True)
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")
    save_file({"b": torch.ones(3)}, folder / "text" / "model.safetensors")
    zoo.write_card(folder, card)
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    registry._cards.cache_clear()
    yield folder
    registry._cards.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    """The hub library refuses to go to the network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_card_survives_the_way_through_its_file(tmp_path, card):
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    written = zoo.write_card(tmp_path, card)
    assert zoo.read_card(tmp_path) == written
    assert written.files == {"model.safetensors": zoo.sha256(tmp_path / "model.safetensors")}
    assert written == dataclasses.replace(card, files=written.files, source=str(tmp_path))
    entries = json.loads((tmp_path / "card.json").read_text())
    assert entries["seed"] == 0
    assert "steps" not in entries and "source" not in entries


@pytest.mark.parametrize("content", ["", "[]", '{"name": "x"}', '{"colour": "red"}', "{"])
def test_a_broken_card_is_named(tmp_path, content):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(VistokError, match=r"card\.json' is not a model card"):
        zoo.read_card(tmp_path)


WRONG = [{"parts": {"tokenizer": 7}}, {"parts": []}, {"sampling": [1]}, {"guidance": "high"}, {"temperature": [1.0]}]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_entry_of_another_type_is_told(tmp_path, card, wrong):
    zoo.write_card(tmp_path, card)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong), encoding="utf-8-sig")  # as some editors write
    with pytest.raises(VistokError, match=rf"is not a model card \('{next(iter(wrong))}'"):
        zoo.read_card(tmp_path)


def test_embedded_models_come_first_and_resolve_by_name_and_alias(embedded):
    assert zoo.cards()[0].name == "tiny" and zoo.cards()[0].embedded
    assert zoo.card("Tiny") == zoo.card("small")
    assert zoo.resolve("small") == embedded
    assert zoo.resolve("tiny", "model.safetensors") == embedded / "model.safetensors"
    with pytest.raises(VistokError, match=r"no 'other\.safetensors'"):
        zoo.resolve("tiny", "other.safetensors")


def test_verify_accepts_the_files_of_the_card(embedded):
    assert zoo.verify("tiny").files.keys() == {"model.safetensors", "text/model.safetensors"}


def test_verify_refuses_a_changed_a_missing_and_an_extra_file(embedded):
    extra = embedded / "extra.safetensors"
    extra.touch()
    with pytest.raises(VistokError, match="not on the card"):
        zoo.verify("tiny")
    extra.unlink()
    data = bytearray((embedded / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (embedded / "model.safetensors").write_bytes(data)
    with pytest.raises(VistokError, match="SHA-256"):
        zoo.verify("tiny")
    (embedded / "model.safetensors").unlink()
    with pytest.raises(VistokError, match="is missing"):
        zoo.verify("tiny")


def test_what_is_shipped_is_what_the_cards_say():
    for shipped in zoo.cards():
        if shipped.embedded:
            verify_files(shipped, zoo.WEIGHTS / shipped.name)


def test_names_and_aliases_lead_to_one_model_each():
    names = [name for card in zoo.cards() for name in (card.name, *card.aliases)]
    assert len(names) == len(set(names))
    assert all(name == zoo.canonical(name) or name.startswith("lamagen") for name in names)
    assert all(part in names or zoo.hub_id(part) for card in zoo.cards() for part in card.parts.values())


def test_lamagen_is_a_spelling_of_llamagen():
    assert zoo.card("lamagen-b-256") is zoo.card("LlamaGen-B-256")


def test_unknown_names_get_the_nearest(offline):
    for lookup in (zoo.card, zoo.resolve):
        with pytest.raises(VistokError, match=r"unknown model 'llamagen-b-255': did you mean .*llamagen-b-256"):
            lookup("llamagen-b-255")


def test_a_checkpoint_file_name_leads_to_its_card():
    card = zoo.card_of_file("/somewhere/c2i_L_384.pt")
    assert (card.preset, card.config["block_size"]) == ("GPT-L", 576)
    assert zoo.card_of_file("mine.pt") is None


def test_existing_paths_resolve_to_themselves(tmp_path):
    file = tmp_path / "x.pt"
    file.touch()
    assert zoo.resolve(file) == file
    assert zoo.resolve(tmp_path) == tmp_path
    assert zoo.resolve(tmp_path, "x.pt") == file


@pytest.mark.parametrize("name", ["absent/x.pt", "x.pt", "./absent", "/absent/folder", "a/b/c"])
def test_an_absent_path_is_not_taken_for_a_hub_id(name, monkeypatch):
    monkeypatch.setattr(registry, "_fetch", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(VistokError, match="there is no file or folder"):
        zoo.resolve(name)


def test_a_published_name_is_not_fetched_but_says_how(monkeypatch):
    monkeypatch.setattr(registry, "_fetch", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(VistokError, match=r"FoundationVision/LlamaGen:c2i_B_256\.pt"):
        zoo.resolve("llamagen-b-256")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name:a/b.pt", ("owner/name", "a/b.pt")),
        ("owner/name.pt", None),
        ("./owner/name", None),
        ("name", None),
        ("../name", None),
    ],
)
def test_hub_ids(name, expected):
    assert zoo.hub_id(name) == expected


def test_a_hub_id_is_fetched_as_named(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, file: calls.append((repo, file)) or str(tmp_path / file)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: calls.append(repo) or str(tmp_path))
    assert zoo.resolve("owner/name:x.pt") == tmp_path / "x.pt"
    assert zoo.resolve("owner/name", "y.pt") == tmp_path / "y.pt"
    assert zoo.resolve("owner/name") == tmp_path
    assert calls == [("owner/name", "x.pt"), ("owner/name", "y.pt"), "owner/name"]


@pytest.mark.parametrize("name", ["owner/name:x.pt", "owner/name"])
def test_a_hub_that_does_not_answer_gets_one_sentence(offline, monkeypatch, tmp_path, name):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(VistokError, match=rf"cannot fetch '{name}' from the hub .* name its path") as caught:
        zoo.resolve(name)
    assert "\n" not in str(caught.value)


def test_a_repository_of_several_models_is_not_fetched_whole(offline):
    with pytest.raises(VistokError, match=r"holds several models: .*LlamaGen:vq_ds16_c2i\.pt"):
        zoo.resolve("FoundationVision/LlamaGen")
