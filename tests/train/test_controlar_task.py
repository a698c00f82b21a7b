"""Training ControlAR: exact control pictures of scenes, the start from a LlamaGen, and a run from recipe to picture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import vistok
from tests.train.tiny import figures, tiny
from vistok.data.images import to_pil
from vistok.data.scenes import SHAPES, render, sample_scenes
from vistok.data.scenes.controls import render_outlines, render_segmentation, shape_map
from vistok.errors import VistokError
from vistok.models.controlar import ControlAR
from vistok.models.llamagen import LlamaGen
from vistok.train.tasks import build_task


def test_maps_and_outlines_are_those_of_the_rendered_objects():
    scenes = sample_scenes(32, 3)
    shapes, pictures = shape_map(scenes, 64), render(scenes, 64)
    assert int(shapes.max()) < len(SHAPES)
    for i in range(len(scenes)):
        assert set(shapes[i].unique().tolist()) - {-1} == set(scenes.shape[i][scenes.present[i]].tolist())
    segmentation, outlines = render_segmentation(scenes, 64), render_outlines(scenes, 64)
    assert segmentation.shape == outlines.shape == pictures.shape
    for control in (segmentation, outlines):
        assert set(control.unique().tolist()) == {-1.0, 1.0}
    white = outlines[:, 0] > 0
    assert (shapes[white] >= 0).all()  # outlines belong to their objects
    background = torch.nn.functional.pad((shapes < 0).float(), (1, 1, 1, 1), value=1.0)
    near = torch.nn.functional.max_pool2d(background[:, None], 3, stride=1)[:, 0] > 0
    assert (white | ~(near & (shapes >= 0))).all()  # every object pixel beside the background is in one


@pytest.mark.parametrize("tuned", [True, False])
def test_a_run_starts_from_a_llamagen_and_ends_in_a_folder_that_paints(tmp_path, tuned):
    recipe = tiny("llamagen-mini-control", steps=2)
    recipe = replace(recipe, data=recipe.data | {"tune_generator": tuned})
    base = LlamaGen.from_pretrained(recipe.init["gpt"]).state_dict()
    own = build_task(recipe).model.gpt.state_dict()
    assert all(torch.equal(own[key], value) for key, value in base.items()) and len(own) > len(base)
    found = figures(recipe, tmp_path)
    assert all(loss > 0 for loss in found["loss"])
    assert {"held_out_loss", "held_out_loss_without_control"} <= found["held_out"].keys()
    export = tmp_path / "export"
    model = ControlAR.from_pretrained(export)
    assert model.controls == ("canny", "seg") and model.card.family == "controlar"
    kept = [torch.equal(value, base[key]) for key, value in model.state_dict().items() if key in base]
    assert all(kept) != tuned
    assert (export / "text_encoder").is_dir() == tuned  # else it is that of the generator
    written = load_file(export / "model.safetensors").keys()
    assert (written >= base.keys()) == tuned and (tuned or not written & base.keys())
    pipe = vistok.pipeline(str(export))
    picture = to_pil(render_outlines(sample_scenes(1, 3), 64))[0].crop((0, 0, 8, 8))
    drawn = pipe.with_control(picture, "canny")("a red circle", seed=1)
    assert drawn.images[0].size == (8, 8)
    model.save_pretrained(tmp_path / "whole")  # with all weights, beside a card that names the rest
    again = ControlAR.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_a_run_goes_on_from_a_controlar_and_shares_what_that_shares(tmp_path):
    recipe = tiny("llamagen-mini-control", steps=2)
    first = figures(recipe, tmp_path / "first")
    export = tmp_path / "first" / "export"
    onward = {"gpt": str(export), "text_encoder": recipe.init["text_encoder"]}
    recipe = replace(recipe, init=recipe.init | onward)
    task, before = build_task(recipe), ControlAR.from_pretrained(export)
    begun, told = task.model.gpt.state_dict(), before.state_dict()
    assert all(torch.equal(begun[key], told[key]) for key in told.keys() - set(ControlAR.idle_keys))
    shared = LlamaGen.from_pretrained(recipe.init["text_encoder"]).state_dict().keys()
    trained = {name: parameter.requires_grad for name, parameter in task.model.gpt.named_parameters()}
    assert all(grows == (name not in shared) for name, grows in trained.items())
    found = figures(recipe, tmp_path / "second")
    assert found["held_out"]["held_out_loss"] < first["held_out"]["held_out_loss"] + 0.5
    after = ControlAR.from_pretrained(tmp_path / "second" / "export")
    assert after.card.parts == before.card.parts
    after.save_pretrained(tmp_path / "alone")
    card = json.loads((export / "card.json").read_text())
    (tmp_path / "alone" / "card.json").write_text(json.dumps(card | {"parts": {}}))
    with pytest.raises(VistokError, match="tune_generator: true"):
        build_task(replace(recipe, init=recipe.init | {"gpt": str(tmp_path / "alone")}))


def test_what_codes_show_is_taught_beside_the_codes():
    recipe = tiny("llamagen-mini-control")
    losses = {}
    for weight in (0.0, 2.0):
        task = build_task(replace(recipe, data=recipe.data | {"supervision": weight}))
        task.model.eval()
        with torch.no_grad():
            losses[weight], parts = task.model(**task.batch(0, slice(0, recipe.batch_size)))
    assert losses[2.0] - losses[0.0] == pytest.approx(parts["term"].item(), rel=1e-4) and parts["term"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"controls": ["cany"]}, "canny"),
        ({"controls": "canny"}, "list"),
        ({"source": "folder", "path": "."}, "of scenes alone"),
        ({"tune_captions": True}, "tune_captions"),
    ],
)
def test_controls_that_are_not_known_are_refused(change, said):
    recipe = tiny("llamagen-mini-control")
    data = {name: value for name, value in recipe.data.items() if name != "supervision"}
    with pytest.raises(VistokError, match=said):
        build_task(replace(recipe, data=data | change))
