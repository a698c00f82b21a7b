"""READ and Pink at work on pictures of any size, what they paint, and what is refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.projectors.test_second_look import Saying
from vistok.errors import VistokError
from vistok.models.extension import extend_vocabulary
from vistok.projectors.grounding.interface import Region, load_grounder
from vistok.projectors.grounding.masks import SamMasks
from vistok.projectors.grounding.paint import paint
from vistok.projectors.grounding.pink import WORDS, Pink, Wording, bootstrap
from vistok.projectors.grounding.points import Points
from vistok.projectors.grounding.read import SEG, Read, ReadHead, uncrop
from vistok.projectors.overlay import overlay
from vistok.zoo.transformers import load_image_text


@pytest.fixture(scope="module")
def read_parts():
    model, processor = load_image_text("llava-mini", "cpu", "float32")
    extend_vocabulary(model, processor.tokenizer, (SEG, "where"))
    return model, processor


@pytest.fixture(scope="module")
def pink_parts():
    model, processor = load_image_text("llava-mini", "cpu", "float32")
    extend_vocabulary(model, processor.tokenizer, WORDS)
    return model, processor


def read(parts, *said, **options):
    torch.manual_seed(0)
    model, processor = parts
    Saying(model, processor, *said)
    widths = model.config.text_config.hidden_size, model.config.vision_config.hidden_size
    return Read(model, processor, ReadHead(*widths, **options).eval())


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (1, 5000), (5000, 1), (64, 64), (400, 900)])
def test_thin_pictures_are_drawn_larger_within_bounds(size):
    picture = Image.new("RGB", size)
    mask = torch.ones(picture.height, picture.width, dtype=torch.bool)
    painted = paint(picture, (Region(box=(0, 0, *size), mask=mask),))
    shown = overlay(picture, torch.tensor([[True, False, True]] * 3))
    for drawn in (painted, shown):
        assert drawn.width % size[0] == 0 and drawn.width * size[1] == drawn.height * size[0]
        assert max(drawn.size) <= max(4096, *size)
        assert min(drawn.size) >= 336 or max(drawn.size) + max(size) > 4096


@pytest.mark.parametrize("size", [(64, 64), (200, 120), (31, 77), (1, 9)])
def test_a_mask_and_points_are_those_of_the_whole_picture(read_parts, size):
    found = read(read_parts, SEG).ground(Image.new("RGB", size, (200, 40, 40)), "the red circle")
    (region,) = found.regions
    assert found.answer == SEG
    assert region.mask.shape == region.similarity.shape == (size[1], size[0])
    assert region.mask.dtype == torch.bool
    assert (region.points.xy >= 0).all()
    assert (region.points.xy <= torch.tensor(size) - 1 + 1e-4).all()


def test_every_seg_has_its_region(read_parts):
    assert len(read(read_parts, f"{SEG} {SEG}").ground(Image.new("RGB", (64, 64)), "the circle").regions) == 2


def test_an_answer_without_seg_has_no_region(read_parts):
    found = read(read_parts, "no").ground(Image.new("RGB", (64, 64)), "the circle")
    assert found.answer == "no" and found.regions == ()


@pytest.mark.parametrize(
    ("text", "said"), [("", "no text"), ("  ", "no text"), ("?", "no text"), ("a <image>", "<image>")]
)
def test_what_is_no_text_is_refused(read_parts, pink_parts, text, said):
    for grounder in (read(read_parts), Pink(*pink_parts)):
        with pytest.raises(VistokError, match=said):
            grounder.ground(Image.new("RGB", (64, 64)), text)


def test_a_processor_without_seg_is_told_so():
    with pytest.raises(VistokError, match=SEG):
        Read(*load_image_text("llava-mini", "cpu", "float32"), None)


def test_without_a_decoder_sam_is_asked_for(read_parts):
    model, processor = read_parts
    with pytest.raises(VistokError, match="SAM"):
        Read(model, processor, None).ground(Image.new("RGB", (64, 64)), "the circle")


def test_nothing_is_found_outside_of_what_the_model_sees():
    logits = uncrop(torch.ones(8, 8), (10, 30))
    assert (
        (logits[:, :10] == -torch.inf).all() and (logits[:, 20:] == -torch.inf).all() and (logits[:, 10:20] == 1).all()
    )


def tiny_sam():
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    config = SamConfig(
        vision_config={"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {
            "image_size": 64,
            "patch_size": 8,
            "mlp_dim": 16,
            "window_size": 4,
            "global_attn_indexes": [0],
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "num_hidden_layers": 1, "mlp_dim": 16, "num_attention_heads": 2}
        | {"iou_head_hidden_dim": 16},
    )
    images = SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return SamMasks(SamModel(config).eval(), SamProcessor(images))


@pytest.mark.parametrize("labels", [[1, 0, -1], [-1, -1, -1]])
def test_sam_draws_over_the_picture_from_points_and_a_state(labels):
    points = Points(torch.tensor([[5.0, 6], [20, 30], [1, 1]]), torch.tensor(labels))
    masks = tiny_sam()
    for prompt in (None, torch.randn(16)):
        assert masks(Image.new("RGB", (40, 50), (9, 200, 9)), points, prompt).shape == (50, 40)


def test_sam_serves_a_model_that_points(read_parts):
    found = read(read_parts, SEG).ground(Image.new("RGB", (40, 50)), "the circle", sam=tiny_sam())
    assert found.regions[0].mask.shape == (50, 40)


@pytest.mark.parametrize(("prompt", "told"), [(16, True), (32, False)])
def test_sam_is_prompted_with_the_state_of_seg_where_it_is_as_wide(read_parts, prompt, told):
    sam, widths = tiny_sam(), []
    decode = sam.model.mask_decoder.forward
    sam.model.mask_decoder.forward = lambda **given: (
        widths.append(given["sparse_prompt_embeddings"].shape[2]) or decode(**given)
    )
    grounder = read(read_parts, SEG, prompt=prompt)
    (region,) = grounder.ground(Image.new("RGB", (40, 50)), "the circle", sam=sam).regions
    points = int((region.points.labels >= 0).sum())
    sam(Image.new("RGB", (40, 50)), region.points)
    assert points and widths == [widths[1] + told, widths[1]]


def test_a_box_of_an_answer_is_in_pixels_of_the_picture(pink_parts):
    model, processor = pink_parts
    picture = Image.new("RGB", (200, 100))
    for said, box in (("[0.10,0.20,0.50,0.90]", (20, 20, 100, 90)), ("red", None), ("[0.50,0.20,0.10,0.90]", None)):
        Saying(model, processor, said)
        found = Pink(model, processor, Wording(decimals=2)).ground(picture, "the red circle")
        assert found.answer == said
        assert [region.box for region in found.regions] == ([] if box is None else [pytest.approx(box)])


def test_a_box_outside_the_picture_cannot_be_described(pink_parts):
    with pytest.raises(VistokError, match="200x100"):
        Pink(*pink_parts).describe(Image.new("RGB", (200, 100)), (0, 0, 201, 50))


class Consistent:
    """A model whose second description leads elsewhere."""

    wording = Wording()

    def __init__(self):
        self.asked = []

    def _what(self, picture, box):
        return f"what {box}"

    def say_all(self, pictures, prompts):
        self.asked.append(len(prompts))
        names = {"what (0, 0, 50, 50)": "the first", "what (50, 50, 100, 100)": "the second"}
        boxes = {"first": "[0.000,0.000,0.500,0.500]", "second": "[0.000,0.000,0.400,0.400]"}
        return [names.get(p) or next(box for word, box in boxes.items() if word in p) for p in prompts]


def test_bootstrapping_keeps_what_leads_back_with_the_annotated_box():
    picture = Image.new("RGB", (100, 100))
    boxes = [(0, 0, 50, 50), (50, 50, 100, 100), (0, 0, 9, 9)]
    pictures = [(picture, boxes), (picture, boxes * 6)]  # the second has too many
    kept = bootstrap(Consistent(), pictures)
    assert [(s.picture, s.box, s.text) for s in kept] == [(0, (0, 0, 50, 50), "the first")]
    assert bootstrap(Consistent(), []) == []
    assert len(bootstrap(Consistent(), pictures, check=False)) == 2
    with pytest.raises(VistokError, match="no part"):
        bootstrap(Consistent(), [(picture, [(0, 0, 101, 5)])])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_bootstrapping_keeps_the_same_however_many_boxes_are_asked_about_at_once(batch_size):
    first, second = (0, 0, 50, 50), (50, 50, 100, 100)
    pictures = ((Image.new("RGB", (100, 100)), boxes) for boxes in ([first, second], [], [second, first], [first]))
    model = Consistent()
    kept = bootstrap(model, pictures, batch_size=batch_size)
    assert [(s.picture, s.box) for s in kept] == [(0, first), (2, first), (3, first)]
    assert max(model.asked) <= batch_size and sum(model.asked) == 2 * 5


@pytest.mark.parametrize("size", [(64, 64), (500, 300)])
def test_what_is_painted_shows_mask_points_and_box(size):
    picture = Image.new("RGB", size, (120, 120, 120))
    mask = torch.zeros(size[1], size[0], dtype=torch.bool)
    mask[10:40, 10:40] = True
    points = Points(torch.tensor([[20.0, 20], [50, 50]]), torch.tensor([1, 0]))
    painted = paint(picture, (Region(box=(5, 5, 45, 45), mask=mask, points=points),))
    scale = painted.width // size[0]
    assert painted.size == (size[0] * scale, size[1] * scale) and min(painted.size) >= 300
    at = lambda x, y: painted.getpixel((int((x + 0.5) * scale), int((y + 0.5) * scale)))  # noqa: E731
    assert at(30, 30) != at(60, 20)
    green, red = at(20, 20), at(50, 50)
    assert green[1] > max(green[0], green[2]) and red[0] > max(red[1], red[2])
    assert max(at(60, 20)) < 120  # what lies outside is dimmed


def test_a_name_that_grounds_nothing_is_refused():
    with pytest.raises(VistokError, match=r"extension\.json"):
        load_grounder("llava-mini")
