"""A family's parts put together are the model: backbone, embedding, head, positions and masks."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.models.families import FAMILIES, family_of
from vistok.models.huggingface import cache_argument, given_cache
from vistok.projectors.apply.shrink import positions_of

# LFM2 has convolutions among its layers, whose state no window of rows can be scored on.
NAMES = [name for name in FAMILIES if hasattr(tiny, name) and name != "lfm2_vl"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_window_of_text_after_a_prompt_with_pictures(name):
    """Scored in one pass of the parts, a window has the logits that the model gives it step by step."""
    model, inputs = getattr(tiny, name)(), getattr(tiny, f"{name}_inputs")()
    family = family_of(model)
    mask = inputs["attention_mask"]
    window = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    prompt = model(**inputs, **_positions(family, mask), past_key_values=DynamicCache(), use_cache=True)
    offset = family.position_offset(model)
    offset = offset if isinstance(offset, int) else offset.clone()
    cache, width = given_cache(prompt), mask.shape[1]
    whole = torch.cat([mask, torch.ones_like(window)], 1)
    positions = positions_of(whole)
    queries = positions[:, width:]
    visible = torch.ones(4, width + 4).tril(width).bool() & whole.bool()[:, None, None]
    masks = family.masks(model, visible, queries, positions)
    backbone = family.backbone(model)
    states = backbone(
        inputs_embeds=family.embed(model, window),
        attention_mask=masks,
        position_ids=queries + offset,
        use_cache=True,
        **{cache_argument(backbone): cache},
    ).last_hidden_state
    logits = family.head(model, states)
    plain = model(**_longer(name, inputs, window), **_positions(family, whole), use_cache=False).logits[:, width:]
    torch.testing.assert_close(logits, plain, atol=5e-5, rtol=1e-4)


def _positions(family, mask):
    """As ``generate`` counts them: from 0 at the first token of a row; models with three axes count for themselves."""
    return {} if family.position_axes == 3 else {"position_ids": positions_of(mask)}


def _longer(name, inputs, window):
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], window], 1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(window)], 1)
    for types in ("mm_token_type_ids", "token_type_ids"):
        if types in inputs:
            answer = int(name == "paligemma")  # which is not part of the prefix that sees itself in both directions
            longer[types] = torch.cat([inputs[types], torch.full_like(window, answer, dtype=inputs[types].dtype)], 1)
    return longer


def test_an_unknown_family_is_refused_with_the_list():
    with pytest.raises(VistokError, match="'Linear' is no known family") as told:
        family_of(torch.nn.Linear(2, 2))
    assert all(name in str(told.value) for name in FAMILIES)
