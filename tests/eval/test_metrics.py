"""Metrics by name: their options, what is refused before a picture is read, and values on awkward sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vistok.errors import VistokError
from vistok.eval.probe import linear_probe
from vistok.eval.protocol import Protocol, Result, compare
from vistok.eval.reconstruction.metrics import quantise
from vistok.eval.reconstruction.paired import compare_pictures, pair_by_name, summarise_pairs
from vistok.eval.sets.distribution import check_sets, evaluate_sets, open_set, parse_metrics
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.inception_score import inception_score
from vistok.eval.sets.interface import METRICS, Measurement, PictureSet
from vistok.eval.sets.kernel import KernelDistance, cmmd, kernel_distance
from vistok.eval.sets.manifold import manifold_metrics, vendi_score
from vistok.eval.sets.pictures import FolderPictures
from vistok.eval.sets.reference import load_statistics
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.models.vision.lpips import SMALLEST, Lpips


def features(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Shards:
    """Features that are there."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    @property
    def count(self) -> int:
        return len(self.values)

    def load(self, output: str = "features") -> torch.Tensor:
        return self.values

    def shards(self, output: str = "features"):
        yield from self.values.split(7)

    def statistics(self, output: str = "features") -> FeatureStatistics:
        return FeatureStatistics.of(self.values)


class Listed:
    """Pictures that are counted and must not be read."""

    left_out = ()

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, stop: int) -> list[torch.Tensor]:
        raise AssertionError("a picture was read")


def side(values: torch.Tensor, name: str = "a") -> PictureSet:
    return PictureSet(name, name, pictures=Listed(len(values)), shards=Shards(values))


def test_every_metric_is_built_by_its_name_and_tells_its_options():
    for name in METRICS:
        ((given, metric),) = parse_metrics(name)
        assert given == name and METRICS[name].__doc__
        assert all("=" in setting for setting in metric.settings())
    (_, kid), (_, score) = parse_metrics("kid:subset_size=50:order=torch-fidelity, is:flavour=adm")
    assert kid == KernelDistance(subset_size=50, order="torch-fidelity") and score.flavour == "adm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fidd", "did you mean fid"),
        ("kid:subset_siz=3", "did you mean subset_size"),
        ("kid:subset_size=many", "a whole number"),
        ("kid:subset_size", "name:option=value"),
        ("kid:subset_size=1", "at least"),
        ("kid:order=random", "order"),
        ("is:flavour=tf", "flavour"),
        ("fid:neighbours=3", "no options"),
        ("precision:neighbours=0", "at least one"),
        ("psnr:convention=x", "convention"),
        (" , ", "name a metric"),
    ],
)
def test_metrics_and_options_that_are_not_known_are_named(text, message):
    with pytest.raises(VistokError, match=message):
        parse_metrics(text)


@pytest.mark.parametrize(
    ("metrics", "sizes", "message"),
    [
        ("fid", (12, 1), "'b' has 1 picture"),
        ("fid-infinity", (1, 12), "at least 2"),
        ("kid", (12, 2000), "kid:subset_size=12"),
        ("is", (2, 9), "10 splits"),
        ("precision", (3, 12), "at least 4"),
        ("psnr", (3, 12), "do not pair"),
        ("ssim", (3, 12), "do not pair"),
        ("lpips", (3, 3), "needs its weights"),
    ],
)
def test_sets_that_are_too_small_are_refused_before_a_picture_is_read(metrics, sizes, message):
    sides = [PictureSet(name, name, pictures=Listed(size)) for name, size in zip("ab", sizes, strict=True)]
    with pytest.raises(VistokError, match=message):
        check_sets(*sides, parse_metrics(metrics))


def test_statistics_do_not_stand_for_pictures(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    stored, pictures = open_set(tmp_path / "s.npz"), PictureSet("b", "b", pictures=Listed(20))
    check_sets(stored, pictures, parse_metrics("fid,is"))
    for sides, metrics in (((stored, pictures), "kid"), ((stored, pictures), "precision"), ((pictures, stored), "fid")):
        with pytest.raises(VistokError, match="statistics only"):
            check_sets(*sides, parse_metrics(metrics))
    with pytest.raises(VistokError, match="spatial"):
        check_sets(stored, pictures, parse_metrics("sfid"))


def test_kid_can_take_the_order_of_torch_fidelity():
    real, fake = side(features(30)), side(features(40, seed=1) + 0.5)
    ours, theirs = (KernelDistance(5, 20, order).compute(real, fake) for order in ("reference-first", "torch-fidelity"))
    swapped = KernelDistance(5, 20).compute(fake, real)
    assert theirs == swapped != ours


NOT_NUMBERS = {
    "fid": lambda x, y: frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)),
    "kid": lambda x, y: kernel_distance(x, y, 2, 5),
    "cmmd": cmmd,
    "precision": manifold_metrics,
    "vendi": lambda x, y: vendi_score(torch.cat([x, y])),
    "is": lambda x, y: inception_score(torch.cat([x, y]), splits=2),
    "is, one split": lambda x, y: inception_score(torch.cat([x, y]), "one-split"),
    "is, adm": lambda x, y: inception_score(torch.cat([x, y]), "adm"),
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", NOT_NUMBERS)
def test_features_that_are_no_numbers_are_refused(metric, bad):
    good, broken = features(12), features(12)
    NOT_NUMBERS[metric](good, broken)
    broken[7, 2] = bad
    for sides in ((good, broken), (broken, good)):
        with pytest.raises(VistokError, match="NaN or infinity"):
            NOT_NUMBERS[metric](*sides)


def test_pictures_and_features_of_other_measurements_are_refused_as_well():
    with pytest.raises(VistokError, match="NaN"):
        quantise(torch.tensor([0.0, float("nan")]))
    broken = features(12)
    broken[3, 1] = float("nan")
    labels = torch.arange(12) % 2
    with pytest.raises(VistokError, match="NaN"):
        linear_probe(features(12), labels, broken, labels)


def test_stored_statistics_that_are_no_numbers_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.array([0, np.nan]), sigma=np.eye(2))
    with pytest.raises(VistokError, match="NaN"):
        load_statistics(tmp_path / "s.npz")
    np.savez(tmp_path / "o.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(VistokError, match=r"o\.npz"):
        load_statistics(tmp_path / "o.npz")


def test_a_result_is_a_number_or_none():
    protocol = Protocol("psnr")
    with pytest.raises(VistokError, match=r"psnr .*'a' is not a number"):
        Result("a", float("nan"), protocol)
    with pytest.raises(VistokError, match="recall"):
        Result("a", 1.0, protocol, details={"recall": float("nan")})
    nothing, something = Result("a", None, protocol), Result("b", 3.0, protocol)
    assert compare([nothing, something]) == [something, nothing] and something < nothing


def manifold_by_definition(real: torch.Tensor, fake: torch.Tensor, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage, word by word, with exact distances."""

    def distance(a, b):
        return (a.double()[:, None] - b.double()[None]).square().sum(-1).sqrt()

    radius_real, radius_fake = (distance(x, x).sort(1).values[:, k] for x in (real, fake))
    between = distance(fake, real)
    return {
        "precision": (between <= radius_real).any(1).double().mean().item(),
        "recall": (between <= radius_fake[:, None]).any(0).double().mean().item(),
        "density": (between < radius_real).sum().item() / (k * len(fake)),
        "coverage": (between.amin(0) < radius_real).double().mean().item(),
    }


@pytest.mark.parametrize("repeated", [0, 4, 8, 12])
@pytest.mark.parametrize("shared", [False, True])
def test_repeated_pictures_have_the_values_of_the_definition(repeated, shared):
    """Most of the balls may have radius zero; a sample that equals a repeated picture lies in its ball."""
    real, fake = features(12, 40) + 10, features(12, 40, seed=1) + 10
    real[:repeated] = real[0]
    if shared:
        fake[:3] = real[0]
    found = manifold_metrics(real, fake)
    for name, value in manifold_by_definition(real, fake, 3).items():
        assert getattr(found, name) == pytest.approx(value), name
    assert not found.realism.isnan().any()


def write(folder, names, seed=0):
    random = np.random.default_rng(seed)
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
    return FolderPictures(folder)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([f"{i}.png" for i in range(12)], [f"{i:04d}.png" for i in range(12)]),
        (["a.png", "b.png"], ["a.bmp", "b.bmp"]),
        (["c/a.png", "d/a.png"], ["c/a.png", "d/a.png"]),
        (["a.png", "a.bmp"], ["a.png", "a.bmp"]),
    ],
)
def test_pairs_go_by_name(tmp_path, ours, theirs):
    targets, outputs = write(tmp_path / "a", ours), write(tmp_path / "b", theirs)
    sources = (targets, outputs)
    by_content = {side.batch(i, i + 1)[0].numpy().tobytes(): i for side in (outputs,) for i in range(len(side))}
    expected = [(i, by_content[targets.batch(i, i + 1)[0].numpy().tobytes()]) for i in range(len(targets))]
    assert pair_by_name(*sources) == expected
    assert compare_pictures(*sources)[1].value == pytest.approx(1)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (["a.png", "b.png"], ["a.png", "c.png"], "only in 'a': b; only in 'b': c"),
        (["0.png", "1.png"], ["1.png", "2.png"], "only in 'a': 0"),
        (["a.png"], ["a.bmp", "a.gif"], "more than once in 'b': a"),
        (["1.png", "01.png"], ["1.bmp", "001.bmp"], "more than once"),
        (["a.png", "b.png"], ["a.png"], "only in 'a': b"),
    ],
)
def test_sets_that_do_not_pair_are_refused(tmp_path, ours, theirs, message):
    with pytest.raises(VistokError, match=message):
        pair_by_name(write(tmp_path / "a", ours), write(tmp_path / "b", theirs))


def test_a_pair_of_two_sizes_is_named(tmp_path):
    write(tmp_path / "a", ["0.png", "1.png"])
    write(tmp_path / "b", ["0.png"])
    Image.new("RGB", (20, 12)).save(tmp_path / "b" / "1.png")
    with pytest.raises(VistokError, match=r"a/1\.png'.*b/1\.png'.*16x16.*20x12"):
        compare_pictures(FolderPictures(tmp_path / "a"), FolderPictures(tmp_path / "b"))


def test_equal_pairs_are_counted_and_not_averaged():
    assert summarise_pairs(torch.tensor([10.0, torch.inf, 20.0])) == Measurement(15.0, 5.0, {"identical pairs": 1.0})
    assert summarise_pairs(torch.tensor([torch.inf])) == Measurement(None, None, {"identical pairs": 1.0})


def test_paired_metrics_of_one_command_are_those_of_the_other(tmp_path):
    names = [f"{i}.png" for i in range(3)]
    sides = write(tmp_path / "a", names), write(tmp_path / "b", names, seed=1)
    metrics = parse_metrics("psnr,ssim:convention=llamagen")
    found = evaluate_sets(*(open_set(tmp_path / name) for name in "ab"), None, metrics)
    assert found[0] == compare_pictures(*sides)[0]
    assert found[1] == compare_pictures(*sides, "llamagen")[1]


@pytest.mark.parametrize("net", SMALLEST)
def test_pictures_too_small_for_lpips_get_a_sentence(net):
    metric, side = Lpips(net).eval(), SMALLEST[net]
    with torch.no_grad():
        assert metric(torch.zeros(1, 3, side, 40), torch.zeros(1, 3, side, 40)).shape == (1,)
    with pytest.raises(VistokError, match=rf"at least {side} pixels.*40x{side - 1}"):
        metric(torch.zeros(1, 3, side - 1, 40), torch.zeros(1, 3, side - 1, 40))
