"""Chat-3D v2: identifiers in text, tokens that keep their objects, and a model that says what it does not know."""

from __future__ import annotations

import json

import pytest
import torch

from vistok.data.scenes3d import draw_names, point_clouds, sample_rooms
from vistok.errors import VistokError
from vistok.projectors.learned.chat3d import Chat3D, Chat3DConfig
from vistok.projectors.learned.objects import (
    AttributeRelationTokens,
    ObjectTokens,
    assign,
    interleave,
    mentioned,
    recover,
)

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def test_a_name_that_nobody_has_is_reported():
    assert mentioned("<OBJ003> and <OBJ001>, not <OBJ3d>") == [3, 1]
    with pytest.raises(VistokError, match="<OBJ005>"):
        assign("what is <OBJ005>?", [1, 0])
    with pytest.raises(VistokError, match="<OBJ007>"):
        recover("<OBJ007>", [1, 0])


@pytest.mark.parametrize("kind", ["paper", "release"])
def test_tokens_of_an_object_do_not_depend_on_padding(kind):
    torch.manual_seed(0)
    features, locs, colours = torch.randn(1, 5, 6), torch.rand(1, 5, 6), torch.rand(1, 5, 3, 4)
    mask = torch.tensor([[True, True, True, False, False]])
    if kind == "paper":
        module = AttributeRelationTokens(8, 6, 3, layers=2).eval()
        given = lambda n: (features[:, :n], locs[:, :n], colours[:, :n], mask[:, :n])  # noqa: E731
    else:
        module = ObjectTokens(8, 6, 16, 2, 2, 16, scene_token=True).eval()
        given = lambda n: (features[:, :n], locs[:, :n], mask[:, :n])  # noqa: E731
    with torch.no_grad():
        for padded, alone in zip(module(*given(5)), module(*given(3)), strict=True):
            torch.testing.assert_close(padded[:, :3], alone, atol=2e-4, rtol=1e-4)


def test_image_tokens_need_features():
    with pytest.raises(VistokError, match="image_features"):
        ObjectTokens(8, 6, image_token=True)(torch.zeros(1, 2, 6), torch.zeros(1, 2, 6), torch.ones(1, 2))


def test_the_sequence_is_identifier_and_object_in_the_order_told():
    names, objects = torch.arange(1.0, 4)[None, :, None], torch.arange(11.0, 14)[None, :, None]
    sequence, length = interleave(names, [objects], torch.tensor([[2, 0, -1]]))
    assert sequence[0, :, 0].tolist() == [3, 13, 1, 11, 0, 0] and length.tolist() == [4]


@pytest.fixture(scope="module")
def chat():
    torch.manual_seed(0)
    return Chat3D(Chat3DConfig(text=TEXT, features=16, attributes=8, head_dim=4)).eval()


def test_a_model_answers_in_its_words_and_comes_back(chat, tmp_path):
    rooms = sample_rooms(1, 5)
    there = rooms.present[0]
    clouds, names = point_clouds(rooms)[0, there], draw_names(rooms)[0, there]
    question = f"what color is <OBJ{int(names[0]):03d}>?"
    answer = chat.answer(clouds, names, question)
    chat.save_pretrained(tmp_path)
    assert Chat3D.from_pretrained(tmp_path).answer(clouds, names, question) == answer


@pytest.mark.parametrize(
    ("question", "culprit"), [("what wood is <OBJ000>?", "wood"), ("what color is <OBJ004>?", "<OBJ004>")]
)
def test_what_a_model_cannot_be_asked_is_refused_by_name(chat, question, culprit):
    with pytest.raises(VistokError, match=culprit):
        chat.answer(torch.rand(2, 8, 6), torch.tensor([0, 1]), question)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(VistokError, match=r"chat3d\.json"):
        Chat3D.from_pretrained(tmp_path)


def test_a_model_that_reads_places_in_another_unit_is_refused(chat, tmp_path):
    chat.save_pretrained(tmp_path)
    config = tmp_path / "chat3d.json"
    entries = json.loads(config.read_text())
    del entries["side"]
    config.write_text(json.dumps(entries))
    with pytest.raises(VistokError, match=r"chat3d\.json.*side.*train it again"):
        Chat3D.from_pretrained(tmp_path)


def test_without_relations_or_identifiers_there_are_fewer_tokens():
    rooms = sample_rooms(2, 5)
    for options, streams in (({}, 3), ({"relations": False}, 2), ({"identifiers": False}, 2)):
        chat = Chat3D(Chat3DConfig(text=TEXT, features=16, attributes=8, head_dim=4, **options))
        embeds, there = chat.prefix(point_clouds(rooms), rooms.present, draw_names(rooms))
        assert embeds.shape[1] == 2 + 8 * streams
        assert torch.equal(there.sum(1) - 2, rooms.present.sum(1) * streams)


def test_places_are_most_of_what_tells_relation_tokens_apart():
    """Before any training. What a language model hardly sees in its tokens, it does not learn to look up."""
    torch.manual_seed(0)
    rooms = sample_rooms(128, 3)
    chat = Chat3D(Chat3DConfig(text=TEXT | {"hidden_size": 128})).eval()
    with torch.no_grad():
        tokens = chat.streams(point_clouds(rooms, 48), rooms.present)[1][rooms.present].double()
    places = torch.cat([rooms.centre, torch.ones_like(rooms.centre[..., :1])], -1)[rooms.present]
    told = places @ torch.linalg.lstsq(places, tokens).solution
    assert told.var(0).sum() / tokens.var(0).sum() > 0.6
