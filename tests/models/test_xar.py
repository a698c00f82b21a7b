"""xAR: strict loading of the published layout, entities, and a cache that changes nothing."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.xar import XAR, XARConfig, parse_entities
from vistok.models.xar.entities import cell_side

SMALL = {
    "img_size": 16,
    "vae_stride": 4,
    "vae_embed_dim": 2,
    "entity": "cell:2",
    "embed_dim": 16,
    "num_heads": 2,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "class_num": 5,
}
CAPTIONS = {"caption_dim": 6, "caption_tokens": 3}
EVERY = ("token", "cell:2", "subsample:2", "scale:1", "scale:2", "image")


def small(entity: str = "cell:2", **more: int) -> XAR:
    """A network whose weights are all noise: the zeros of a new one would hide what they gate."""
    model = XAR(XARConfig(**SMALL | {"entity": entity} | more)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def published_file(model: XAR) -> dict:
    """The weights as published: with the tables of positions in each block, and the mask."""
    state = dict(model.state_dict())
    for half in ("encoder", "decoder"):
        rope = f"{half}_blocks.0.attn.rope.freqs"
        state |= {rope: torch.ones(2), f"{rope}_cos": torch.ones(16, 8), f"{rope}_sin": torch.ones(16, 8)}
    return state | {"mask": torch.zeros(1, 1, 16, 16)}


@pytest.mark.parametrize(
    ("preset", "millions", "entries"), [("xAR-B", 172.6, 257), ("xAR-L", 608.4, 497), ("xAR-H", 1186.0, 617)]
)
def test_published_shapes(preset, millions, entries) -> None:
    with torch.device("meta"):
        model = XAR.from_preset(preset)
    tables = 1 + 3 * (model.config.encoder_depth + model.config.decoder_depth)
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.06
    assert len(model.state_dict()) + tables == entries


@pytest.mark.parametrize("wrapped", [False, True])
def test_published_files_load_strictly(tmp_path, wrapped) -> None:
    model, path = small(), tmp_path / "xar.pth"
    state = published_file(model)
    torch.save({"model": small("token").state_dict(), "model_ema": state} if wrapped else state, path)
    loaded = XAR.from_pretrained(path, preset="xAR-B", prefer_ema=True, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_other_weights_are_refused_by_name(tmp_path, change) -> None:
    state, path = published_file(small()), tmp_path / "xar.pth"
    if change == "missing":
        del state["pred.weight"]
    elif change == "unexpected":
        state["pred.extra"] = torch.ones(1)
    else:
        state["pred.weight"] = torch.ones(3, 16)
    torch.save(state, path)
    with pytest.raises(VistokError, match=r"pred\."):
        XAR.from_pretrained(path, preset="xAR-B", **SMALL)


@pytest.mark.parametrize("entity", EVERY)
def test_every_entity_divides_a_picture_and_gives_it_back(entity) -> None:
    entities = parse_entities(entity, 4)
    tokens = torch.randn(2, 16, 3)
    sequence = entities.split(tokens)
    assert sequence.shape[1] == sum(entities.sizes) == len(entities.numbers) == len(entities.places)
    assert torch.equal(entities.join(sequence), tokens)


def test_entities_are_what_their_names_say() -> None:
    raster = torch.arange(16.0)[None, :, None]
    first = {e: parse_entities(e, 4).split(raster)[0, :4, 0].tolist() for e in EVERY}
    assert first["token"] == first["image"] == [0, 1, 2, 3]
    assert first["cell:2"] == [0, 1, 4, 5]
    assert first["subsample:2"] == [0, 2, 8, 10]
    assert first["scale:2"] == [2.5, 4.5, 10.5, 12.5]
    assert parse_entities("scale:1", 4).sizes == (1, 4, 16) and parse_entities("token", 4).sizes == (1,) * 16


@pytest.mark.parametrize(
    ("entity", "said"),
    [("cel:2", "cell"), ("cell:3", "divisor"), ("cell:0", "divisor"), ("scale:3", "scale"), ("token:2", "token")],
)
def test_impossible_entities_are_refused(entity, said) -> None:
    with pytest.raises(VistokError, match=said):
        parse_entities(entity, 4)


def test_published_clusters_are_square_cells() -> None:
    assert cell_side(16, 4) == 8
    with pytest.raises(VistokError, match="square"):
        cell_side(16, 3)


@pytest.mark.parametrize("entity", EVERY)
@pytest.mark.parametrize("captions", [{}, CAPTIONS], ids=["classes", "captions"])
@torch.no_grad()
def test_cached_velocities_are_those_of_one_pass(entity, captions) -> None:
    """The network is causal over entities: what was finished at time 0 and kept gives what one pass over all gives."""
    model = small(entity, **captions)
    sizes, labels = model.entities.sizes, torch.randn(2, 3, 6) if captions else torch.tensor([1, 4])
    sequence = torch.randn(2, sum(sizes), 2)
    t = torch.zeros(2, len(sizes))
    cache = model.new_cache(2)
    if captions:
        model.read(labels, cache)
    for k, part in enumerate(sequence.split(sizes, 1)):
        t[:, k] = 0.3
        want = model.velocities(sequence, t, labels).split(sizes, 1)[k]
        t[:, k] = 0
        model.decode(torch.randn_like(part), torch.tensor(0.9), labels, cache)  # an earlier step leaves no trace
        torch.testing.assert_close(model.decode(part, torch.tensor(0.3), labels, cache), want, atol=1e-4, rtol=1e-4)
        model.decode(part, torch.tensor(0.0), labels, cache)
        cache.advance(sizes[k])


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("captions", [{}, CAPTIONS], ids=["classes", "captions"])
def test_one_picture_trains(captions, rank) -> None:
    model = small(**captions, modulation_rank=rank).train()
    loss = model(torch.randn(1, 2, 4, 4), torch.randn(1, 3, 6) if captions else torch.tensor([3]))
    loss.backward()
    assert loss.ndim == 0 and all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_every_entity_reads_every_word_and_a_dropped_caption_is_none() -> None:
    model = small(**CAPTIONS, label_drop_prob=1.0)
    sequence, t, caption = torch.randn(1, 16, 2), torch.rand(1, 4), torch.randn(1, 3, 6)
    whole = model.velocities(sequence, t, caption)
    for word in range(3):
        other = caption.clone()
        other[:, word] = 0
        assert ((model.velocities(sequence, t, other) - whole).abs().amax(2) > 1e-6).all()
    assert (model.conditional_on, model.classes, model.text_width) == ("text", 0, 6)
    _, _, dropped, _ = model.train().noisy(torch.randn(1, 2, 4, 4), caption)
    assert torch.equal(dropped, model.null_condition(1)) and not dropped.any()


@pytest.mark.parametrize("half", CAPTIONS)
def test_captions_have_a_width_and_a_length(half) -> None:
    with pytest.raises(VistokError, match="both caption_dim and caption_tokens"):
        small(**{half: CAPTIONS[half]})
