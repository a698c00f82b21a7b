"""PVC's blocks: what follows from the paper's design, for there is no reference that runs."""

from __future__ import annotations

import copy

import pytest
import torch

from vistok.errors import VistokError
from vistok.projectors.learned.pvc import ProgressiveEncoder, PvcEncoder, TimeEmbedding, pixel_shuffle


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    module = ProgressiveEncoder(image_size=16, patch_size=4, width=16, heads=2, layers=3, temporal_layers=2).eval()
    for layer in module.layers[1:]:
        torch.nn.init.normal_(layer.temporal_norm.modulation.weight, std=0.5)
        torch.nn.init.normal_(layer.temporal_norm.modulation.bias, std=0.5)
        layer.chunk = 5
    return module


FRAMES = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TIME = (torch.arange(4) / 4).expand(2, -1)


@torch.no_grad()
def test_a_frame_does_not_see_later_ones(encoder):
    whole, _ = encoder(FRAMES, TIME)
    changed = FRAMES.clone()
    changed[:, 3] += 1
    other, _ = encoder(changed, TIME)
    torch.testing.assert_close(other[:, :3], whole[:, :3])
    changed = FRAMES.clone()
    changed[:, 0] += 1
    assert not torch.allclose(encoder(changed, TIME)[0][:, 3], whole[:, 3])


@torch.no_grad()
def test_frame_by_frame_equals_all_at_once(encoder):
    whole, _ = encoder(FRAMES, TIME)
    state, frames = None, []
    for t in range(4):
        frame, state = encoder(FRAMES[:, t : t + 1], TIME[:, t : t + 1], state)
        frames.append(frame)
    torch.testing.assert_close(torch.cat(frames, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fresh_temporal_layers_change_nothing():
    torch.manual_seed(0)
    module = ProgressiveEncoder(image_size=16, patch_size=4, width=16, heads=2, layers=3, temporal_layers=2).eval()
    together, _ = module(FRAMES, TIME)
    alone = torch.cat([module(FRAMES[:, t : t + 1], TIME[:, t : t + 1])[0] for t in range(4)], 1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_picture_is_a_static_video_whose_frames_say_different_things(encoder):
    module = PvcEncoder(encoder, hidden_size=24).eval()
    torch.nn.init.normal_(module.connector.modulation.weight, std=0.5)
    tokens = module(FRAMES[:, 0])
    assert tokens.shape == (2, 4 * 1, 24)  # 4 frames of 4x4 patches in 4x4 blocks
    assert not torch.allclose(tokens[:, 0], tokens[:, 3])


@torch.no_grad()
def test_times_are_told_apart_in_half_precision():
    """Angles of up to 1000 rad must not be rounded to bfloat16, whose steps are 4 rad there."""
    embedding = TimeEmbedding(16)
    torch.testing.assert_close(embedding(TIME), copy.deepcopy(embedding).bfloat16()(TIME).float(), atol=0.02, rtol=0.02)


def test_bad_shapes_are_refused():
    with pytest.raises(VistokError, match="blocks of 4x4"):
        pixel_shuffle(torch.zeros(1, 6, 6, 2), 0.25)
    with pytest.raises(VistokError, match="do not tile"):
        ProgressiveEncoder(image_size=17, patch_size=4, width=16, heads=2, layers=1, temporal_layers=0)
