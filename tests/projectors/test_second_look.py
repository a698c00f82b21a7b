"""Visual Perception Token: control tokens as regions, the second look around generate, and what is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vistok.errors import VistokError
from vistok.models.extension import extend_vocabulary
from vistok.projectors.grounding.control import (
    ACTIONS,
    GRID,
    REGION_TOKENS,
    action_tokens,
    parse_regions,
    region_words,
    squared,
)
from vistok.projectors.grounding.second_look import Encoder, SecondLook
from vistok.projectors.learned.perception import PatchedPerceptionProjector, PerceptionProjector
from vistok.zoo.transformers import load_image_text

WH = (128, 96)
WHAT = "what color is the circle?"


@pytest.mark.parametrize("box", [(0, 0, 128, 96), (1, 1, 2, 2), (16, 12, 32, 24), (100, 80, 128, 96), (15, 11, 17, 13)])
def test_a_region_holds_its_box_and_is_a_cell_larger(box):
    (found,) = parse_regions("".join(region_words(box, WH)), WH)
    for low, high, first, last, side in zip(box[:2], box[2:], found[:2], found[2:], WH, strict=True):
        cell = side / GRID
        assert first <= low and high <= last
        assert low - first <= 2 * cell and last - high <= 2 * cell
        assert 0 <= first < last <= side


@pytest.mark.parametrize("inner", ["", "<|x_1|>", "<|y_1|>", "<|x_9|><|y_1|>"])
def test_a_region_without_cells_of_the_grid_is_refused(inner):
    with pytest.raises(VistokError, match="region"):
        parse_regions(f"<|region_token_start|>{inner}<|region_token_end|>", WH)


def test_more_regions_than_allowed_are_refused():
    region = "".join(region_words((0, 0, 10, 10), WH))
    assert len(parse_regions(region * 3, WH)) == 3
    with pytest.raises(VistokError, match="3 regions, and 2"):
        parse_regions(region * 3, WH, most=2)


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (0, 0, 129, 10), (10, 10, 10, 20)])
def test_a_box_outside_the_picture_is_no_region(box):
    with pytest.raises(VistokError, match="no part of a picture"):
        region_words(box, WH)


@pytest.mark.parametrize("box", [(0, 0, 10, 30), (100, 0, 128, 10), (0, 0, 128, 96), (50, 90, 60, 96)])
def test_a_square_covers_the_box_within_the_picture(box):
    x0, y0, x1, y1 = squared(box, WH)
    assert 0 <= x0 < x1 <= WH[0] and 0 <= y0 < y1 <= WH[1]
    assert y0 <= box[1] and box[3] <= y1 and x0 <= box[0] and box[2] <= x1
    assert x1 - x0 == y1 - y0 or y1 - y0 == WH[1]


def loaded():
    model, processor = load_image_text("llava-mini", "cpu", "float32")
    words = [*REGION_TOKENS, *(token for action in ACTIONS for token in action_tokens(action))]
    extend_vocabulary(model, processor.tokenizer, words)
    return model, processor


class Saying:
    """Stands for ``generate``: says what it is told, one text a call, and remembers what it was given."""

    def __init__(self, model, processor, *texts):
        self.texts, self.given, self.tokenizer = list(texts), [], processor.tokenizer
        model.generate = self

    def __call__(self, **kwargs):
        self.given.append(kwargs)
        text = self.texts.pop(0)
        said = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        before = kwargs.get("input_ids", said[:, :0])
        return torch.cat([before, said, torch.full((1, 1), self.tokenizer.eos_token_id)], 1)


@pytest.fixture(scope="module")
def parts():
    return loaded()


def test_a_region_is_looked_at_again_in_full_resolution(parts):
    model, processor = parts
    picture = Image.new("RGB", (256, 256), (10, 10, 10))
    picture.paste((250, 30, 30), (192, 0, 256, 64))
    region = "".join(region_words((200, 8, 248, 56), picture.size))
    saying = Saying(model, processor, region, "red")
    found = SecondLook(model, processor).ground(picture, WHAT)
    assert found.answer == "red"
    x0, y0, x1, y1 = found.regions[0].box
    assert x0 <= 200 and y1 >= 56 and x1 == 256 and y0 == 0
    first, second = (given["pixel_values"] for given in saying.given)
    assert first.shape[0] == 1 and second.shape[0] == 2
    assert torch.equal(first[0], second[0])
    assert (second[1, 0] > 0).float().mean() > (second[0, 0] > 0).float().mean()  # the red corner fills more of it
    assert (saying.given[1]["input_ids"] == model.config.image_token_id).sum() == 2 * 64


def test_without_control_tokens_the_first_answer_stands(parts):
    model, processor = parts
    Saying(model, processor, "blue")
    found = SecondLook(model, processor).ground(Image.new("RGB", (50, 80)), WHAT)
    assert found.answer == "blue" and found.regions == ()


def test_every_region_of_an_answer_is_looked_at(parts):
    model, processor = parts
    region = "".join(region_words((0, 0, 10, 10), (64, 64)))
    saying = Saying(model, processor, region * 2, "red")
    found = SecondLook(model, processor).ground(Image.new("RGB", (64, 64)), WHAT)
    assert len(found.regions) == 2 and saying.given[1]["pixel_values"].shape[0] == 3
    Saying(model, processor, region * 5)
    with pytest.raises(VistokError, match="5 regions, and 4"):
        SecondLook(model, processor).ground(Image.new("RGB", (64, 64)), WHAT)


@pytest.mark.parametrize("action", ACTIONS)
def test_features_of_another_encoder_follow_a_reencoding_action(parts, action):
    model, processor = parts
    start, doing, end = action_tokens(action)
    saying = Saying(model, processor, f"{start}{doing}{end}", "red")
    width = model.config.text_config.hidden_size
    projector = PerceptionProjector(6, width)
    looker = SecondLook(model, processor, {action: Encoder(lambda picture: torch.ones(1, 5, 6), projector)})
    assert looker.ground(Image.new("RGB", (64, 64)), WHAT).answer == "red"
    embeds = saying.given[1]["inputs_embeds"]
    plain = projector(torch.ones(1, 5, 6)).detach()
    # Somewhere in the prompt stand five tokens that are the features and a share of the condition.
    inside = [
        i
        for i in range(embeds.shape[1] - 4)
        if torch.linalg.matrix_rank((embeds[0, i : i + 5] - plain[0]).detach(), atol=1e-4) == 1
        and (embeds[0, i : i + 5] - embeds[0, i]).abs().max() < 1e-5
    ]
    assert len(inside) == 1


def test_an_encoder_that_is_not_there_is_named(parts):
    model, processor = parts
    start, doing, end = action_tokens("seg")
    Saying(model, processor, f"{start}{doing}{end}")
    with pytest.raises(VistokError, match="'seg'"):
        SecondLook(model, processor).ground(Image.new("RGB", (64, 64)), WHAT)
    with pytest.raises(VistokError, match="'sam'"):
        SecondLook(model, processor, {"sam": None})


def test_a_processor_without_the_control_tokens_is_told_so():
    model, processor = load_image_text("llava-mini", "cpu", "float32")
    with pytest.raises(VistokError, match="region_token_start"):
        SecondLook(model, processor)


def test_published_projectors_load_strictly(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    for kind, features in ((PerceptionProjector, (1, 3, 6)), (PatchedPerceptionProjector, (1, 6, 8, 8))):
        module = kind(6, 10, 2)
        state = {f"model.projector.{key}": value for key, value in module.state_dict().items()}
        save_file({**state, "model.other": torch.zeros(1)}, path)
        again = PerceptionProjector.from_checkpoint(path)
        given = torch.randn(*features), torch.randn(2, 10)
        assert type(again) is kind and torch.equal(again(*given), module(*given))
        del state["model.projector.layernorm_feature.bias"]
        save_file(state, path)
        with pytest.raises(VistokError, match="layernorm_feature"):
            PerceptionProjector.from_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(VistokError, match="no perception projector"):
        PerceptionProjector.from_checkpoint(path)


def test_too_few_conditions_are_refused():
    with pytest.raises(VistokError, match="2 pictures need 4"):
        PerceptionProjector(6, 10, 2)(torch.zeros(2, 3, 6), torch.zeros(2, 10))
