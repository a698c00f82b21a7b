"""FastVID, PruneVid and HoliTom beside plain readings of their definitions, token by token."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.families.attention import LayerAttention
from vistok.projectors import FastVID, HoliTom, ImageTokens, PruneVid
from vistok.projectors.methods.density_peaks import cluster
from vistok.projectors.methods.holitom import best_windows
from vistok.projectors.methods.prunevid import contiguous, static_places

TOKENS, WIDTH = 12, 8


def video(frames, noise=0.3, seed=0, scenes=2):
    """Frames of a few scenes, a part of whose places changes from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(scenes, TOKENS, WIDTH, generator=generator)
    images = []
    for i in range(frames):
        tokens = still[i * scenes // frames] + noise * torch.randn(TOKENS, WIDTH, generator=generator)
        tokens[:4] = torch.randn(4, WIDTH, generator=generator)
        q, k = (torch.randn(1, TOKENS, 4, generator=generator) for _ in range(2))
        images.append(
            ImageTokens(
                tokens[None],
                (3, 4),
                torch.nn.Identity(),
                5,
                torch.ones(1, TOKENS, dtype=torch.bool),
                attention={4: LayerAttention(q, k, 2, False)},
            )
        )
    return images


def seen(image):
    return image.attention[4].saliency()[0].mean(0).tolist()


def cosine(a, b):
    return float(torch.cosine_similarity(a, b, dim=-1))


def peaks(x, count, neighbours):
    """Centres by density peaks, in falling order of their scores."""
    n = len(x)
    distance = [[float((a - b).norm()) / math.sqrt(x.shape[1]) for b in x] for a in x]
    density = []
    for row in distance:
        near = sorted(row)[:neighbours]
        density.append(math.exp(-sum(d * d for d in near) / len(near)))
    largest = max(map(max, distance))
    score = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * min(denser, default=largest))
    return sorted(range(n), key=lambda i: -score[i])[:count], distance


def clusters(x, count, neighbours):
    """Centres in rising order, and the members of each."""
    centres, distance = peaks(x, count, neighbours)
    centres = sorted(centres)
    members = {c: [c] for c in centres}
    for i in range(len(x)):
        if i not in members:
            members[min(centres, key=lambda c: distance[i][c])].append(i)
    return members


@pytest.mark.parametrize("count", [1, 3, 12])
def test_clusters_are_those_of_the_definition(count):
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    centres, owner = cluster(x, count, 4)
    members = clusters(x, count, 4)
    assert centres.tolist() == list(members)
    assert all(owner[i] == at for at, own in enumerate(members.values()) for i in own)


def test_equal_tokens_are_parted_by_order():
    centres, owner = cluster(torch.ones(6, 3), 2, 4)
    assert centres.tolist() == [0, 1]
    assert owner[:2].tolist() == [0, 1]


def plain_fastvid(images, keep, segments, likeness, context, every, least):
    count = round(keep * TOKENS)
    merged = int(count * context)
    tokens = [image.hidden[0] for image in images]
    mean = [t.mean(0) for t in tokens]
    near = [cosine(mean[i], mean[i + 1]) for i in range(len(images) - 1)]
    lowest = sorted(range(len(near)), key=near.__getitem__)[: segments - 1]
    cuts = sorted({i for i, value in enumerate(near) if value < likeness} | set(lowest))
    edges = [0, *(i + 1 for i in cuts), len(images)]
    salient = [sorted(range(TOKENS), key=lambda j: -seen(image)[j])[: count - merged] for image in images]
    found = [{j: tokens[i][j] for j in salient[i]} for i in range(len(images))]
    for first, end in itertools.pairwise(edges):
        holders = range(end - 1, first - 1, -every)
        share = min(merged * (end - first) // len(holders), TOKENS - len(salient[0]))
        left = [(i, j) for i in range(first, end) for j in range(TOKENS) if j not in salient[i]]
        for i in holders:
            rest = [j for j in range(TOKENS) if j not in salient[i]]
            anchors = [rest[c] for c in peaks(tokens[i][rest], share, 4)[0]]
            joined = {j: [] for j in anchors}
            for f, j in left:
                joined[max(anchors, key=lambda a: cosine(tokens[f][j], tokens[i][a]))].append(tokens[f][j])
            for a, own in joined.items():
                weight = max(1 / (len(own) + 1), least)
                found[i][a] = weight * tokens[i][a] + (1 - weight) * torch.stack(own).mean(0)
    return found


@pytest.mark.parametrize(("frames", "segments", "likeness"), [(9, 3, 0.2), (9, 1, -1.0), (4, 8, 0.9), (1, 8, 0.9)])
def test_fastvid(frames, segments, likeness):
    images = video(frames)
    got = FastVID(0.5, segments, likeness, every=2).select_frames(images)
    assert_frames(got, plain_fastvid(images, 0.5, segments, likeness, 0.4, 2, 0.6))
    mean = sum(len(view.index) for (view,) in got) / frames
    assert mean <= 6


def assert_frames(got, expected):
    assert len(got) == len(expected)
    for (view,), frame in zip(got, expected, strict=True):
        assert sorted(view.index.tolist()) == sorted(frame)
        for place, token in zip(view.index.tolist(), view.tokens, strict=True):
            torch.testing.assert_close(token, frame[place], atol=1e-5, rtol=1e-5)


def plain_prunevid(images, share, likeness, scenes):
    tokens = [image.hidden[0] for image in images]
    count = len(images)
    members = clusters(torch.stack([t.mean(0) for t in tokens]), max(1, int(count * scenes)), 7)
    label = [next(c for c, own in members.items() if i in own) for i in range(count)]
    found = [{} for _ in images]
    for _, group in itertools.groupby(enumerate(contiguous(label)), lambda pair: pair[1]):
        frames = [i for i, _ in group]
        pairs = list(itertools.combinations(frames, 2))
        still = [
            j
            for j in range(TOKENS)
            if pairs and sum(cosine(tokens[a][j], tokens[b][j]) for a, b in pairs) / len(pairs) > likeness
        ]
        mean = torch.stack([tokens[i] for i in frames]).mean(0)
        for i in frames:
            for places, values in ([(still, mean)] if i == frames[0] else []) + [
                ([j for j in range(TOKENS) if j not in still], tokens[i])
            ]:
                if places:
                    for centre, own in clusters(values[places], max(1, int(len(places) * share)), 7).items():
                        found[i][places[centre]] = torch.stack([values[places[j]] for j in own]).mean(0)
    return found


@pytest.mark.parametrize(("frames", "likeness"), [(8, 0.8), (8, 2.0), (8, -2.0), (3, 0.8), (1, 0.8)])
def test_prunevid(frames, likeness):
    images = video(frames)
    got = PruneVid(0.5, likeness).select_frames(images)
    assert_frames(got, plain_prunevid(images, 0.5, likeness, 0.25))
    if likeness == -2.0:  # all stands still, and is told once
        assert [len(view.index) > 0 for (view,) in got].count(True) <= 2


def test_scenes_are_contiguous():
    assert contiguous([0, 0, 1, 0, 1, 1, 1]) == [0, 0, 1, 1, 1, 1, 1]
    assert contiguous([0, 0, 0, 1, 2, 2]) == [0, 0, 0, 0, 2, 2]
    assert contiguous([0, 1, 2]) == [-1, -1, -1]
    assert contiguous([5, 3, 3]) == [3, 3, 3]


def test_a_place_is_static_by_the_mean_over_pairs():
    frames = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))
    pairs = [torch.cosine_similarity(a, b, dim=-1) for a, b in itertools.combinations(frames, 2)]
    mean = torch.stack(pairs).mean(0)
    for likeness in (-0.2, 0.0, 0.2):
        assert torch.equal(static_places(frames, likeness), mean > likeness)
    assert not static_places(frames[:1], -1.0).any()


def every_partition(count):
    for cuts in itertools.product([0, 1], repeat=count - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), count]
        yield list(itertools.pairwise(edges))


@pytest.mark.parametrize("seed", range(5))
def test_holitoms_windows_save_most(seed):
    alike = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed)) > 0.4
    windows, saved = best_windows(alike)

    def value(parts):
        return sum(int(alike[a : b - 1].all(0).sum()) * (b - 1 - a) for a, b in parts if b - a > 1)

    assert value(windows) == saved == max(map(value, every_partition(7)))
    assert windows[0][0] == 0
    assert windows[-1][1] == 7
    assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))


def plain_merge(values, count):
    members = clusters(values, count, min(7, count)) if count else {}
    mixed = {}
    for centre, own in members.items():
        others = [values[j] for j in own if j != centre]
        mixed[centre] = values[centre] if not others else 0.6 * values[centre] + 0.4 * torch.stack(others).mean(0)
    return mixed


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("frames", "noise"), [(6, 0.2), (6, 3.0), (1, 0.2)])
def test_holitom(frames, noise, density):
    images = video(frames, noise)
    tokens = [image.hidden[0] for image in images]
    near = [[cosine(tokens[t][j], tokens[t + 1][j]) > 0.8 for j in range(TOKENS)] for t in range(frames - 1)]
    windows, saved = best_windows(torch.tensor(near)) if frames > 1 else ([(0, 1)], 0)
    total = frames * TOKENS
    share = min(0.3 * total / (total - saved), 1.0)
    expected = [{} for _ in images]
    for first, end in windows:
        still = [j for j in range(TOKENS) if end - first > 1 and all(near[t][j] for t in range(first, end - 1))]
        moving = [j for j in range(TOKENS) if j not in still]
        if still:
            mean = torch.stack(tokens[first:end]).mean(0)[still]
            merged = plain_merge(mean, max(1, round(len(still) * share)))
            expected[first] |= {still[centre]: value for centre, value in merged.items()}
        for i in range(first, end):
            budget = math.ceil(len(moving) * share)
            best = sorted(moving, key=lambda j, i=i: -seen(images[i])[j])[: round(budget * (1 - density))]
            rest = [j for j in moving if j not in best]
            expected[i] |= {j: tokens[i][j] for j in best}
            merged = plain_merge(tokens[i][rest], budget - len(best))
            expected[i] |= {rest[centre]: value for centre, value in merged.items()}
    assert_frames(HoliTom(0.3, density=density).select_frames(images), expected)


@pytest.mark.parametrize("kind", [FastVID, PruneVid, HoliTom])
def test_all_of_a_video_stays_whole(kind):
    images = video(3)
    assert all(view.index.tolist() == list(range(TOKENS)) for (view,) in kind(1.0).select_frames(images))
    assert all(view.tokens is None for (view,) in kind(1.0).select_frames(images))


@pytest.mark.parametrize("kind", [FastVID, PruneVid, HoliTom])
def test_more_tokens_than_a_frame_has_are_refused(kind):
    with pytest.raises(VistokError, match="13 tokens of 12"):
        kind(13).select_frames(video(3))


@pytest.mark.parametrize("kind", [FastVID, PruneVid, HoliTom])
def test_a_picture_is_refused(kind):
    with pytest.raises(VistokError, match=rf"{kind.name} .* picture"):
        kind().select(video(1)[0])


def test_what_cannot_be():
    for make in (
        lambda: FastVID(every=0),
        lambda: PruneVid(scenes=0.0),
        lambda: HoliTom(density=2.0),
        lambda: HoliTom(0),
    ):
        with pytest.raises(VistokError):
            make()
