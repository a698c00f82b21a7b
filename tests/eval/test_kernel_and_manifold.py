"""KID, CMMD, Inception Score and manifold metrics beyond their goldens: invariants and bad input."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.eval.sets.inception_score import inception_score
from vistok.eval.sets.kernel import cmmd, kernel_distance
from vistok.eval.sets.manifold import manifold_metrics, neighbour_radii, vendi_score


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_is_near_zero_for_one_law_and_grows_with_the_shift():
    real = normal(400, 8, 0)
    same, near, far = (kernel_distance(real, normal(400, 8, 1, s), 20, 200) for s in (0.0, 0.3, 1.0))
    assert abs(same.mean) < 3 * same.std < near.mean < far.mean


def test_kid_subsets_larger_than_the_set_are_refused():
    with pytest.raises(VistokError, match="at most 30"):
        kernel_distance(normal(30, 4, 0), normal(90, 4, 0), subset_size=50)


def test_cmmd_ignores_the_length_of_embeddings_and_the_size_of_its_chunks():
    x, y = normal(70, 16, 0), normal(50, 16, 1, 0.2)
    assert cmmd(x, y, chunk=9) == pytest.approx(cmmd(4 * x, y), rel=1e-9)


def test_inception_score_bounds():
    logits = 50 * torch.eye(10).repeat(20, 1)
    assert inception_score(logits, "one-split").mean == pytest.approx(10, rel=1e-6)
    assert inception_score(torch.zeros(40, 10)).mean == pytest.approx(1)


def test_inception_score_of_too_few_pictures_or_an_unknown_flavour_is_refused():
    with pytest.raises(VistokError, match="at least 10"):
        inception_score(torch.zeros(9, 5))
    with pytest.raises(VistokError, match="did you mean adm"):
        inception_score(torch.zeros(9, 5), "amd")


def test_equal_sets_have_full_precision_and_recall_and_far_sets_none():
    x = normal(50, 4, 0)
    equal, far = manifold_metrics(x, x), manifold_metrics(x, x + 100)
    assert (equal.precision, equal.recall, equal.coverage) == (1, 1, 1)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_precision_and_recall_are_not_swapped():
    """Samples from one mode of two are precise but do not cover; torch-fidelity <= 0.3 returned the two swapped."""
    real = torch.cat([normal(60, 4, 0), normal(60, 4, 1, 30.0)])
    found = manifold_metrics(real, normal(60, 4, 2))
    assert found.precision > 0.7 and found.recall < 0.6


def test_radius_leaves_the_point_itself_out():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radii(x, 1).tolist() == pytest.approx([1, 1, 2, 4])
    with pytest.raises(VistokError, match="more than 4"):
        neighbour_radii(x, 4)


def test_vendi_counts_the_different_pictures():
    assert vendi_score(torch.eye(5).repeat(4, 1)) == pytest.approx(5, rel=1e-6)
    assert vendi_score(torch.ones(7, 3)) == pytest.approx(1, rel=1e-6)


class Generated:
    """Features that are made block by block and never held together."""

    def __init__(self, features: torch.Tensor, rows: int):
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self):
        for block in self.features.split(self.rows):
            yield block.clone()


@pytest.mark.parametrize("rows", [1, 7, 50, 1000])
def test_features_in_blocks_of_any_size_have_the_same_figures(rows):
    real, fake = normal(90, 6, 0), normal(60, 6, 1, 0.4)
    a, b = Generated(real, rows), Generated(fake, rows)
    assert kernel_distance(a, b, 10, 30) == pytest.approx(kernel_distance(real, fake, 10, 30), rel=1e-12)
    assert cmmd(a, b) == pytest.approx(cmmd(real, fake), rel=1e-9)
    found, expected = manifold_metrics(a, b), manifold_metrics(real, fake)
    for name in ("precision", "recall", "precision_strict", "recall_strict", "density", "coverage"):
        assert getattr(found, name) == getattr(expected, name)
    torch.testing.assert_close(found.realism, expected.realism, rtol=1e-9, atol=0)


@pytest.mark.parametrize("metric", [lambda x, y: kernel_distance(x, y, 2, 5), cmmd, manifold_metrics])
def test_no_metric_asks_for_all_features_at_once(metric):
    class Watched(Generated):
        def __iter__(self):
            for block in super().__iter__():
                assert len(block) <= 8
                yield block

    metric(Watched(normal(40, 6, 0), 8), Watched(normal(40, 6, 1), 8))
