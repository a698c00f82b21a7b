"""Tasks that train grounding models: what they train, and that what they export is at work afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.tiny import tiny
from vistok.data.boxes import parse_box
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes3d import draw_names, point_clouds, sample_rooms
from vistok.errors import VistokError
from vistok.projectors.grounding.control import REGION_START
from vistok.projectors.grounding.interface import load_grounder
from vistok.projectors.learned.chat3d import Chat3D
from vistok.projectors.learned.croc import read_croc
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task
from vistok.train.tasks.scenes.chat3d import named_slots
from vistok.train.tasks.scenes.extension import BoxReader, slots
from vistok.train.tasks.scenes.llava import load_llava

pytest.importorskip("peft")
RECIPES = ("read-mini", "pink-mini", "vpt-mini", "croc-mini", "chat3d-mini")
FROZEN = ("vision_tower", ".base_layer.", "embed_tokens", "norm.weight")


def stepped(recipe: Recipe):
    """A task after one backward pass."""
    task = build_task(recipe)
    loss, _ = task.model(**task.batch(0, slice(0, 4)))
    loss.backward()
    assert loss.isfinite()
    return task


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_reaches_all_that_is_trained(name):
    task = stepped(tiny(name))
    idle = [n for n, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
    if name == "chat3d-mini":  # its first stage aligns tokens alone
        assert not any("encoder" in n or "object_proj" in n for n in idle)
    else:
        assert not idle
    if name in ("read-mini", "pink-mini", "vpt-mini"):
        trained = {n for n, p in task.model.named_parameters() if p.requires_grad}
        assert not any(part in n for n in trained for part in FROZEN)


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_depends_on_its_step_alone(name):
    task = build_task(tiny(name))
    first, again, part = task.batch(3, slice(0, 4)), task.batch(3, slice(0, 4)), task.batch(3, slice(1, 3))
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
        if key not in ("chosen",):  # which tokens are replaced is drawn for the rows of a process together
            assert torch.equal(value[1:3], part[key]), key
    assert any(not torch.equal(value, task.batch(4, slice(0, 4))[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["read-mini", "pink-mini", "vpt-mini"])
def test_what_is_exported_grounds_pictures(name, tmp_path):
    task = stepped(tiny(name))
    task.model.eval()
    task.export(tmp_path, task.evaluate(), 1)
    grounder = load_grounder(tmp_path)
    (picture,) = to_pil(render(sample_scenes(1, 3), 64))
    found = grounder.ground(picture, "the red circle")
    assert isinstance(found.answer, str)


def test_what_the_vpt_task_trains_is_what_second_look_asks(tmp_path):
    """Both turns of the packed sequence give the logits that the exported model gives to the same prompt."""
    task = build_task(tiny("vpt-mini"))
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.requires_grad:
                parameter.data = (parameter + 0.05 * torch.randn_like(parameter)).bfloat16().float()
    batch = task.batch(0, slice(0, 1))
    given = {key: batch[key] for key in ("images", "crops", "first", "second", "length")}
    with torch.no_grad():
        _, second, _ = task.model.answer_logits(**given, hide=torch.zeros(1, dtype=torch.bool))
    task.export(tmp_path, {}, 1)
    looker = load_grounder(tmp_path)
    words = {number: word for word, number in task.model.extended.ids.items()}
    first = [words[int(token)] for token in batch["first"][0, : int(batch["length"])]]
    asked = [words[int(token)] for token in batch["second"][0, : first.index("assistant:") + 1]]
    turns = [" ".join(first), " ".join(asked)]
    assert REGION_START in turns[0]
    inputs = looker.processor(
        images=[torch.zeros(3, 64, 64)] * 2,
        text="".join(f"USER: <image>\n{turn} " for turn in turns),
        return_tensors="pt",
    )
    inputs["pixel_values"] = torch.cat([batch["images"], batch["crops"]])
    with torch.no_grad():
        alone = looker.model(**inputs).logits[0, -1]
    torch.testing.assert_close(second[0, len(asked) - 1], alone, atol=2e-3, rtol=0)


def test_croc_exports_a_llava_that_normalises_with_pool_and_head(tmp_path):
    task = stepped(tiny("croc-mini"))
    task.export(tmp_path, {}, 1)
    pool, head = read_croc(tmp_path / "croc.safetensors")
    assert pool.mask_token.shape == (128, 128) and head.position_embeddings.num_embeddings == 64
    tokens = load_llava(str(tmp_path)).model.multi_modal_projector(torch.randn(1, 64, 128))
    assert torch.allclose(tokens.norm(dim=-1), torch.ones(1, 64), atol=1e-4)


def test_croc_hides_the_caption_from_the_picture():
    """Visual tokens see each other both ways; what a caption says later changes no hidden state before it."""
    task = build_task(tiny("croc-mini"))
    task.model.eval()
    batch = task.batch(0, slice(0, 2))
    changed = dict(batch, captions=batch["captions"].clone())
    changed["captions"][:, 5:] = 7
    with torch.no_grad():
        assert torch.equal(task.model.losses(**batch)[1], task.model.losses(**changed)[1])


def test_chat3d_exports_a_model_that_answers(tmp_path):
    task = build_task(tiny("chat3d-mini"))
    task.export(tmp_path, {}, 1)
    rooms = sample_rooms(1, 2)
    there = rooms.present[0]
    asked = (point_clouds(rooms)[0, there], draw_names(rooms)[0, there], "how many balls are there?")
    assert Chat3D.from_pretrained(tmp_path).answer(*asked) == task.model.chat.float().eval().answer(*asked)


def test_identifiers_of_questions_lead_to_their_solids():
    task = build_task(tiny("chat3d-mini"))
    batch = task.batch(0, slice(0, 4))
    found = named_slots(batch["questions"], batch["names"])
    b, k, s = (found >= 0).nonzero().unbind(1)
    first = min(batch["questions"][b, k, s] - batch["names"][b, found[b, k, s]])
    assert len(b) and (batch["questions"][b, k, s] == batch["names"][b, found[b, k, s]] + first).all()


def test_a_text_longer_than_its_slot_is_refused():
    with pytest.raises(VistokError, match="3 words, and a slot holds 2"):
        slots([[("a b", "a")]], {"a": 0, "b": 1, "<pad>": 2, "</s>": 3}, 2)


@pytest.mark.parametrize(
    ("name", "data", "culprit"),
    [
        ("vpt-mini", {"scale": [0.6, 0.3]}, "scale"),
        ("pink-mini", {"tasks": ["pointing"]}, "pointing"),
        ("chat3d-mini", {"objects": [3, 9]}, "3 to 9"),
        ("read-mini", {"seed": 1_000_003}, "seed"),
        ("croc-mini", {"keep": 65}, "65"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_name(name, data, culprit):
    recipe = tiny(name)
    with pytest.raises(VistokError, match=culprit):
        build_task(replace(recipe, data=recipe.data | data)).batch(0, slice(0, 1))


@pytest.mark.parametrize("name", ["pink-mini", "vpt-mini"])
def test_boxes_as_numbers_are_those_of_the_words_and_others_do_not_count(name):
    """Whoever says a box in words is taught it as numbers too, where the answer begins; other answers teach none."""
    task = build_task(tiny(name))
    batch = task.batch(0, slice(0, 4))
    told = batch["boxes"].isfinite().all(-1)
    ids = {number: word for word, number in task.model.extended.ids.items()}
    key, opens = ("questions", "[") if name == "pink-mini" else ("first", REGION_START)
    rows, targets = batch[key].flatten(0, -2), batch["targets" if name == "pink-mini" else "region_targets"]
    for row, target, box in zip(rows, targets.flatten(0, -2), batch["boxes"].flatten(0, -2), strict=True):
        said = [ids[int(token)] for token in target if token >= 0]
        assert bool(box.isfinite().all()) == (said[0] == opens)
        if said[0] == "[":
            written = "".join(said[: said.index("]") + 1])
            assert torch.allclose(torch.tensor(parse_box(written, (1, 1), 2)), box, atol=1e-6)
        assert len(row) == len(target)
    reader = BoxReader(8)
    states, boxes = torch.randn(2, 3, 8), torch.rand(2, 3, 4)
    boxes[0, 1], boxes[1] = float("inf"), float("inf")
    loss = reader(states, boxes)
    assert torch.allclose(loss, reader(states[0, [0, 2]], boxes[0, [0, 2]]))
    assert reader(states[1], boxes[1]).item() == 0
    assert told.any()


@pytest.mark.parametrize(
    ("name", "head", "part"),
    [("pink-mini", "numbers", "numbers"), ("vpt-mini", "numbers", "numbers"), ("chat3d-mini", "reader", "names")],
)
def test_no_head_reads_what_weighs_nothing(name, head, part):
    """Without supervision a task trains nothing but what says the answers, and is told no more."""
    recipe = tiny(name)
    task, helped = (build_task(replace(recipe, data=recipe.data | {"supervision": w})) for w in (0.0, 3.0))
    batch = task.batch(100, slice(0, 4))
    with torch.no_grad():
        said, more = task.model(**batch)[1], helped.model(**batch)[1]
    assert set(more) - set(said) == {part}
    alone = {n for n, _ in task.model.named_parameters()}
    assert {n.split(".")[0] for n, _ in helped.model.named_parameters() if n not in alone} == {head}


def test_chat3d_on_a_llava_is_stored_as_a_difference(tmp_path):
    """What is trained beside the LLaVA's language model comes back, and says what the trained model said."""
    recipe = tiny("chat3d-mini")
    lora = {"rank": 2, "alpha": 4, "modules": ["q_proj", "down_proj"]}
    model = {key: value for key, value in recipe.model.items() if key != "text"} | {"lora": lora}
    task = build_task(replace(recipe, model=model, init={"llava": "llava-mini"}, data=recipe.data | {"align": 0}))
    loss, _ = task.model(**task.batch(0, slice(0, 4)))
    loss.backward()
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert not any(part in name for name in trained for part in (".base_layer.", "norm.weight") if "language" in name)
    assert {"lora_A", "embed_tokens", "encoder", "relation_module"} <= {p for n in trained for p in n.split(".")}
    with torch.no_grad():
        for parameter in task.model.chat.parameters():
            if parameter.requires_grad:
                parameter.data = (parameter + 0.02 * torch.randn_like(parameter)).bfloat16().float()
    task.model.eval()
    rooms = sample_rooms(2, 2)
    names, questions = draw_names(rooms), task.batch(0, slice(0, 2))["questions"]
    given = (point_clouds(rooms), rooms.present, names, questions)
    with torch.no_grad():
        said = task.model.answer_logits(*given)
    task.export(tmp_path, {}, 1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000
    task.model.chat = Chat3D.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(task.model.answer_logits(*given), said, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "init", "culprit"),
    [({}, {}, "model.text"), ({"lora": {}}, {}, "init.llava"), ({}, {"llava": "llava-mini"}, "model.lora")],
)
def test_chat3d_wants_one_language_model(model, init, culprit):
    recipe = tiny("chat3d-mini")
    with pytest.raises(VistokError, match=culprit):
        build_task(replace(recipe, model=model, init=init))


@pytest.mark.parametrize("name", ["chat3d-mini", "pink-mini"])
def test_no_question_sees_another_one_or_what_follows(name):
    """Whatever attention a task runs: one that takes a bool mask for numbers shows every answer to its question."""
    task = build_task(tiny(name))
    task.model.eval()
    batch = task.batch(100, slice(0, 2))
    keys = ("clouds", "present", "names") if name == "chat3d-mini" else ("images",)
    given, asked = [batch[key] for key in keys], batch["questions"]
    changed = asked.clone()
    changed[:, 0, 4:] = 7
    changed[:, 1:] = 8
    with torch.no_grad():
        before, after = (task.model.answer_logits(*given, questions)[:, 0, :4] for questions in (asked, changed))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_the_llava_below_answers_in_its_own_words():
    task = build_task(tiny("vpt-mini"))
    extended, new = task.model.extended, set(task.words)
    with torch.no_grad():
        extended.head_rows.copy_(100 * extended.head_rows.sign())
    seen, asked = task._seen(render(sample_scenes(4, 3), task.data.side)), ["what color is the circle ? assistant:"] * 4
    assert any(new & set(answer.split()) for answer in extended.decode(seen, asked, 12))
    assert not any(new & set(answer.split()) for answer in extended.decode(seen, asked, 12, says_new=False))
