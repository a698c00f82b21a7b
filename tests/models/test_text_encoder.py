"""The caption path: left padding, one encoder class for published and mini encoders, strict loading."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.models.text_encoder import TextEncoder, left_pad, load_text_encoder, word_level_tokenizer

WORDS = ["a", "red", "blue", "circle", "square", "left", "of", ","]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder.build(WORDS, d_model=16, num_layers=2, num_heads=2, d_ff=32, max_length=8).eval()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4), dtype=st.sampled_from([torch.bool, torch.float]))
def test_left_pad_moves_valid_rows_to_the_end_and_clears_the_rest(lengths, dtype):
    features = torch.randn(len(lengths), 7, 3)
    mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).to(dtype)
    padded, padded_mask = left_pad(features, mask)
    assert padded_mask.dtype == dtype
    for i, n in enumerate(lengths):
        assert torch.equal(padded[i, 7 - n :], features[i, :n])
        assert not padded[i, : 7 - n].any()
    assert torch.equal(padded_mask, mask.flip(1))


def test_shapes_and_mask(encoder):
    with pytest.warns(UserWarning, match="has 13 tokens.*the first 8"):
        features, mask = encoder(["a red circle", "", "a red circle left of a blue square, a red square"])
    assert features.shape == (3, 8, encoder.dim) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [4, 1, 8]  # the end token counts, and long captions are cut
    assert mask[:, -1].all()
    assert not features[~mask].any()


@pytest.mark.parametrize("words", [6, 7, 8, 9, 40])
def test_a_caption_that_does_not_fit_is_said_to_be_cut(encoder, words):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encoder(["a red circle", " ".join(["a"] * words)])
    cut = [str(each.message) for each in said]
    assert len(cut) == (words + 1 > encoder.max_length)  # the end token counts
    assert all(f"has {words + 1} tokens" in each and "first 8" in each and "'a a a" in each for each in cut)


def test_features_depend_on_the_words_and_not_on_the_batch(encoder):
    together, _ = encoder(["a red circle", "a blue square left of a circle"])
    alone, _ = encoder(["a red circle"])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-6)
    other, _ = encoder(["a blue circle"])
    assert (alone - other).abs().max() > 1e-3


def test_special_tokens_have_the_ids_of_t5():
    tokenizer = word_level_tokenizer(WORDS)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "a"]) == [0, 1, 2, 3]
    assert tokenizer("A RED, circle!")["input_ids"] == [3, 4, 10, 6, 2, 1]


@pytest.mark.parametrize("word", ["Red", "two words", "left-of", ""])
def test_words_that_could_never_occur_are_refused(word):
    with pytest.raises(VistokError, match="not one lower-case word"):
        word_level_tokenizer(["a", word])


def test_unknown_words_are_named_once_in_order(encoder):
    assert encoder.unknown_words(["a Red circle", "a purple Dragon, a purple cat"]) == ["purple", "dragon", "cat"]
    assert encoder.unknown_words(["a red, blue square"]) == []
    assert encoder.known_words == sorted(WORDS)


def test_every_weight_is_trained():
    encoder = TextEncoder.build(WORDS, 16, 2, 2, 32, max_length=8, dropout_rate=0.0).train()
    features, _ = encoder(["a red circle", "a blue square"])
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_round_trip_keeps_weights_words_and_settings(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = TextEncoder.from_pretrained(tmp_path).eval()
    assert (loaded.max_length, loaded.clean_captions) == (8, False)
    assert loaded.known_words == encoder.known_words
    captions = ["a red circle", "left of a blue zebra"]
    for found, expected in zip(loaded(captions), encoder(captions), strict=True):
        assert torch.equal(found, expected)
    assert TextEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)(captions)[0].dtype == torch.bfloat16


def test_what_was_read_changes_no_file(encoder, tmp_path):
    files = []
    for name in ("before", "after"):
        encoder.save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "tokenizer.json").read_text())
        encoder(["a red circle", "left of a blue zebra"])
    assert files[0] == files[1] and json.loads(files[0])["truncation"] is None


def test_a_published_encoder_cleans_captions_and_takes_120_tokens(encoder, tmp_path):
    encoder.encoder.save_pretrained(tmp_path)  # as transformers writes it, without the settings of this package
    encoder.tokenizer.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for line in ('  "caption_length": 8,\n', '  "clean_captions": false,\n'):
        config = config.replace(line, "")
    (tmp_path / "config.json").write_text(config)
    published = TextEncoder.from_pretrained(tmp_path).eval()
    assert (published.max_length, published.clean_captions) == (120, True)
    messy, _ = published(["<b>A red</b> circle @user"])
    plain, mask = published(["a red circle"])
    assert torch.equal(messy, plain)
    assert mask.sum() == 4 and mask.shape == (1, 120)


def test_other_names_and_incomplete_encoders_are_refused(encoder, tmp_path):
    with pytest.raises(VistokError, match="no file or folder"):
        TextEncoder.from_pretrained(tmp_path / "absent")
    with pytest.raises(VistokError, match="no T5 text encoder that"):
        TextEncoder.from_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    deeper = (tmp_path / "config.json").read_text().replace('"num_layers": 2', '"num_layers": 3')
    (tmp_path / "config.json").write_text(deeper)
    with pytest.raises(VistokError, match=r"lacks encoder\.block\.2"):
        TextEncoder.from_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(VistokError, match="no T5 text encoder that"):
        TextEncoder.from_pretrained(tmp_path)


def test_a_model_that_is_no_t5_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    word_level_tokenizer(WORDS).save_pretrained(tmp_path)
    with pytest.raises(VistokError, match="bert"):
        TextEncoder.from_pretrained(tmp_path)


@torch.inference_mode()
def test_reading_alone_gives_the_bits_of_transformers(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    light = load_text_encoder(tmp_path)
    assert not hasattr(light.encoder.config, "to_dict")  # which is not transformers'
    captions = ["a red circle", "left of a blue zebra", "", "a, a, a, a, a, a"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for some in (captions, captions[:1]):
            for found, expected in zip(light(some), encoder(some), strict=True):
                assert torch.equal(found, expected)
        assert (light.dim, light.known_words) == (encoder.dim, encoder.known_words)
        assert light.unknown_words(captions) == encoder.unknown_words(captions) == ["zebra"]
        light.save_pretrained(tmp_path / "again")
        assert torch.equal(TextEncoder.from_pretrained(tmp_path / "again").eval()(captions)[0], encoder(captions)[0])
        light.save_pretrained(tmp_path)  # over itself


def test_other_encoders_are_read_by_transformers(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"caption_length": 8,', ""))  # as transformers writes it
    assert hasattr(load_text_encoder(tmp_path).encoder.config, "to_dict")
    (tmp_path / "config.json").write_text(config.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(VistokError, match=r"encoder\.block\.2"):
        load_text_encoder(tmp_path)
    with pytest.raises(VistokError, match="no file or folder"):
        load_text_encoder(tmp_path / "absent")
