"""Feature extraction: same value for any batch layout, number of processes and interruption; bad input is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vistok.data.images import ImageFolder
from vistok.errors import VistokError
from vistok.eval.sets.distribution import (
    check_metrics,
    check_stored,
    evaluate_sets,
    extract_sets,
    open_set,
    parse_metrics,
    resize_of,
)
from vistok.eval.sets.extractors import Extractor, load_extractor
from vistok.eval.sets.features import extract_features
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.pictures import FolderPictures, NpzPictures
from vistok.eval.sets.reference import save_statistics
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.jobs import ShardedJob
from vistok.models.vision.inception import FidInception, fold_batch_norms, load_inception
from vistok.models.vision.scenes import SceneFeatures


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of the scenes network: the code does not care, and nothing is claimed about the values."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(fold_batch_norms(SceneFeatures().eval()).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """41 pictures of two sizes in nested folders."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(41):
        side = 24 if i % 3 else 40
        path = root / f"{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)).save(path)
    return root


def extract(pictures, weights, folder, **options):
    settings = {"batch_size": 4, "shard_size": 12, "workers": 0} | options
    return extract_features(FolderPictures(pictures), load_extractor("scenes-features", weights), folder, **settings)


def test_features_are_those_of_each_picture_alone_and_in_order(pictures, weights, tmp_path):
    found = extract(pictures, weights, tmp_path).load()
    extractor, source = load_extractor("scenes-features", weights), FolderPictures(pictures)
    alone = torch.cat([extractor(source.batch(i, i + 1))["features"] for i in range(len(source))])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_decoding_in_workers_changes_nothing(pictures, weights, tmp_path):
    here, there = (extract(pictures, weights, tmp_path / str(n), workers=n).load() for n in (0, 2))
    assert torch.equal(here, there)


def test_a_second_run_computes_only_what_is_missing(pictures, weights, tmp_path):
    first = extract(pictures, weights, tmp_path)
    whole = first.load()
    assert first.computed == 41
    first.job.path(1).unlink()
    second = extract(pictures, weights, tmp_path)
    assert second.computed == 12
    assert torch.equal(second.load(), whole)


def test_another_job_in_the_same_folder_is_refused(pictures, weights, tmp_path):
    extract(pictures, weights, tmp_path)
    with pytest.raises(VistokError, match=r"another job .*batch_size"):
        extract(pictures, weights, tmp_path, batch_size=5)


@pytest.mark.parametrize("same_time", [False, True])
def test_features_of_pictures_that_were_painted_again_are_not_taken_for_theirs(weights, tmp_path, same_time):
    """Uncompressed pictures keep their names and sizes; a picture of another size is seen even at the same time."""
    (tmp_path / "in").mkdir()

    def paint(level: int, side: int = 16) -> None:
        path = tmp_path / "in" / "0.ppm"
        Image.new("RGB", (side, side), (level, 0, 0)).save(path)
        os.utime(path, ns=(0, 0 if same_time else 1000 * level))

    paint(10)
    first = extract(tmp_path / "in", weights, tmp_path / "out")
    assert extract(tmp_path / "in", weights, tmp_path / "out").computed == 0
    paint(20, side=17 if same_time else 16)
    second = extract(tmp_path / "in", weights, tmp_path / "out")
    assert second.computed == 1
    assert not torch.equal(second.load(), first.load())
    assert torch.equal(second.load(), extract(tmp_path / "in", weights, tmp_path / "new").load())


def test_the_digest_of_a_protocol_is_the_same_on_every_machine(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / pictures.name, copy_function=shutil.copyfile)
    here, there = FolderPictures(pictures), FolderPictures(tmp_path / pictures.name)
    assert here.digest == there.digest and here.fingerprint != there.fingerprint


def test_features_that_are_no_numbers_end_the_extraction(pictures, weights, tmp_path):
    extractor = load_extractor("scenes-features", weights)
    broken = replace(extractor, prepare=lambda images: extractor.prepare(images) * float("nan"))
    with pytest.raises(VistokError, match="NaN or infinity"):
        extract_features(FolderPictures(pictures), broken, tmp_path, workers=0)
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_unreadable_picture_is_one_sentence_also_from_a_worker(pictures, weights, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"not a picture")
    for workers in (0, 1):
        with pytest.raises(VistokError, match=r"broken\.png") as caught:
            extract(tmp_path / "in", weights, tmp_path / f"out{workers}", workers=workers)
        assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


def test_shards_are_split_among_processes_without_overlap(tmp_path):
    job = ShardedJob(tmp_path, {"a": 1}, 10, ".json")
    mine, theirs = job.pending(0, 2), job.pending(1, 2)
    assert sorted(mine + theirs) == list(range(10))
    job.path(4).write_text("{}")
    assert 4 not in job.pending(0, 2)
    with pytest.raises(VistokError, match="9 of 10 shards"):
        job.check_complete()


def test_folders_are_listed_as_paths_sort_and_hold_only_names(pictures, tmp_path):
    for name in ("b.png", "a/z.PNG", "a/.hidden.png", "a-1.png", "a/b/ä.png", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    source = FolderPictures(tmp_path)
    assert [source.path(i) for i in range(len(source))] == ImageFolder(tmp_path).paths
    assert [picture.shape for picture in source.batch(1, 9)] == [(3, 4, 4)] * 3
    (tmp_path / "b.png").write_bytes(b"longer or shorter")
    assert FolderPictures(tmp_path).digest != source.digest
    with pytest.raises(VistokError, match="no picture in"):
        (tmp_path / "empty").mkdir()
        FolderPictures(tmp_path / "empty")


def test_bfloat16_is_another_protocol(pictures, weights, tmp_path):
    exact, fast = (load_extractor("scenes-features", weights, precision=p) for p in ("float32", "bfloat16"))
    features = extract(pictures, weights, tmp_path / "exact").load()
    source = FolderPictures(pictures)
    found = extract_features(source, fast, tmp_path / "fast", batch_size=4, shard_size=12, workers=0).load()
    assert found.dtype == torch.float32
    assert 0 < (found - features).norm() / features.norm() < 0.02
    with pytest.raises(VistokError, match=r"another job .*precision"):
        extract_features(source, fast, tmp_path / "exact", batch_size=4, shard_size=12, workers=0)
    save_statistics(tmp_path / "ref.npz", FeatureStatistics.of(features), exact.name, exact.weights, exact.resize)
    stored = open_set(tmp_path / "ref.npz")
    check_stored(stored, exact)
    with pytest.raises(VistokError, match="give --precision float32"):
        check_stored(stored, fast)
    with pytest.raises(VistokError, match="did you mean bfloat16"):
        load_extractor("scenes-features", weights, precision="bflot16")


@pytest.mark.parametrize(
    ("name", "mend"),
    [("a.npy", "numpy.savez"), ("a.zip", "unpack"), ("a.png", "folder that it lies in"), ("a.bin", "a folder")],
)
def test_files_that_are_no_set_of_pictures_are_told_what_to_give(tmp_path, name, mend):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VistokError, match=rf"{name}' is a file: .*{mend}"):
        open_set(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_batch_is_named(tmp_path, save):
    save(tmp_path / "batch.npz", np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    data = bytearray((tmp_path / "batch.npz").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    (tmp_path / "batch.npz").write_bytes(data)
    source = NpzPictures(tmp_path / "batch.npz")
    try:
        source.batch(0, 9)  # a stored array has no checksum of its parts
    except VistokError as error:
        assert "batch.npz" in str(error)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_batches_are_read_in_any_order(tmp_path, save):
    array = np.random.default_rng(0).integers(0, 256, (9, 5, 6, 3), dtype=np.uint8)
    save(tmp_path / "batch.npz", array, np.arange(9))
    source = NpzPictures(tmp_path / "batch.npz")
    assert len(source) == 9
    for start, stop in [(2, 5), (5, 9), (0, 3)]:
        expected = torch.from_numpy(array[start:stop]).permute(0, 3, 1, 2)
        assert torch.equal(torch.stack(source.batch(start, stop)), expected)


@pytest.mark.parametrize("array", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8)])
def test_npz_batches_of_another_kind_are_refused(tmp_path, array):
    np.savez(tmp_path / "batch.npz", array)
    with pytest.raises(VistokError, match="expected uint8"):
        NpzPictures(tmp_path / "batch.npz")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(VistokError, match="no sample batch"):
        NpzPictures(tmp_path / "empty.npz")


def test_a_folder_and_its_batch_file_have_the_same_distance(pictures, weights, tmp_path):
    """Every source goes one way: folder against folder equals statistics against batch file."""
    network = load_extractor("scenes-features", weights)
    array = np.random.default_rng(1).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "b.npz", array)
    (tmp_path / "b").mkdir()
    for i, picture in enumerate(array):
        Image.fromarray(picture).save(tmp_path / "b" / f"{i:02d}.png")
    values, metrics = [], parse_metrics("fid,kid:subset_size=20,precision,vendi")
    for side in ("b", "b.npz"):
        sets = [open_set(path) for path in (pictures, tmp_path / side)]
        sets = extract_sets(*sets, network, tmp_path / f"work-{side}", metrics, workers=0)
        result, kid, precision, vendi = evaluate_sets(*sets, network, metrics)
        values.append(result.value)
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert result.protocol.metric == "fd-scenes-features" and result.protocol.samples == 30
    assert kid.std is not None and "recall" in precision.details and 1 <= vendi.value <= 30
    assert kid.protocol.options == ("subsets=100", "subset_size=20", "order=reference-first")
    assert precision.protocol.reference and not vendi.protocol.reference


def test_metrics_are_bound_to_their_networks():
    with pytest.raises(VistokError, match="sfid is defined on the inception extractor"):
        check_metrics(parse_metrics("sfid"), "scenes-features")
    with pytest.raises(VistokError, match="did you mean fid"):
        parse_metrics("fidd")
    with pytest.raises(VistokError, match="unknown resize convention"):
        load_extractor("dinov2", None, "tf1")


def test_resize_conventions_of_files_are_not_mixed(tmp_path):
    stats = {"mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(tmp_path / "plain.npz", **stats)
    np.savez(tmp_path / "x_clean_train_256.npz", **stats)
    np.savez(tmp_path / "adm.npz", mu_s=np.zeros(2), sigma_s=np.eye(2), **stats)
    plain, clean, adm = (tmp_path / name for name in ("plain.npz", "x_clean_train_256.npz", "adm.npz"))
    assert resize_of([tmp_path, adm], None) == "tf1"
    assert resize_of([plain], "pytorch-fid") == "pytorch-fid"
    assert resize_of([tmp_path], None) is None
    for paths, wanted, message in (
        ([plain], None, "does not say"),
        ([clean, adm], None, "'tf1' resize"),
        ([adm], "clean", "'tf1'"),
    ):
        with pytest.raises(VistokError, match=message):
            resize_of(paths, wanted)


def test_wrong_or_missing_inception_weights_name_the_right_files(tmp_path):
    with pytest.raises(VistokError, match="pt_inception-2015-12-05"):
        load_extractor("inception")
    save_file({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.safetensors")
    with pytest.raises(VistokError, match="pt_inception-2015-12-05"):
        load_inception(tmp_path / "torchvision.safetensors")


def test_a_torchscript_inception_is_called_by_its_name(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "inception-2015-12-05.pt")
    with pytest.raises(VistokError, match=r"TorchScript.*pt_inception-2015-12-05"):
        load_inception(tmp_path / "inception-2015-12-05.pt")


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    torch.manual_seed(0)
    network = FidInception()
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, path)
    return path


def test_the_inception_network_gives_all_outputs_and_folding_changes_no_value(inception_file):
    network = load_inception(inception_file)
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        plain = network(x)
        shapes = {name: tuple(value.shape) for name, value in plain.items()}
        assert shapes == {"features": (2, 2048), "spatial": (2, 2023), "logits": (2, 1008)}
        torch.testing.assert_close(network(x, 192)["features"].shape, torch.Size([2, 192]))
        expected = plain["features"] @ network.fc.weight.T
        torch.testing.assert_close(plain["logits"], expected)
        for name, value in fold_batch_norms(network)(x).items():
            torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-5)
        with pytest.raises(VistokError, match="not 100"):
            network(x, 100)


def test_the_weights_digest_does_not_depend_on_the_file_format(inception_file, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    save_file(state, tmp_path / "w.safetensors")
    digests = {load_extractor("inception", path).weights for path in (inception_file, tmp_path / "w.safetensors")}
    assert len(digests) == 1


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of networks that transformers knows, with random weights."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        SiglipConfig,
        SiglipModel,
        YolosConfig,
        YolosForObjectDetection,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("networks")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, vision = size | {"vocab_size": 99}, size | {"image_size": 32, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    clip.save_pretrained(root / "clip")
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(root / "siglip")
    Dinov2Model(Dinov2Config(**size, image_size=28, patch_size=14)).save_pretrained(root / "dinov2")
    labels = {"num_labels": 80, "image_size": [32, 32], "patch_size": 16, "num_detection_tokens": 5}
    YolosForObjectDetection(YolosConfig(**size, **labels)).save_pretrained(root / "yolos")
    clip.save_pretrained(root / "half-clip", state_dict=clip.vision_model.state_dict(prefix="vision_model."))
    return root


def test_dinov2_and_clip_load_from_a_folder(networks):
    picture = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    for name, dim in (("dinov2", 16), ("clip", 12)):
        extractor = load_extractor(name, networks / name)
        features = extractor([picture, picture])["features"]
        assert features.shape == (2, dim)
        assert torch.equal(features[0], features[1])
    with pytest.raises(VistokError, match="absent"):
        load_extractor("clip", networks / "absent" / "folder" / "deep")


def load_network(kind: str, folder) -> None:
    if kind == "mask2former":
        from vistok.eval.geneval.mask2former import Mask2FormerDetector

        Mask2FormerDetector(folder)
    elif kind == "clip score":
        from vistok.eval.clip_score import ClipModel

        ClipModel(folder)
    else:
        load_extractor(kind, folder)


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("clip", "dinov2", "dinov2"),
        ("clip", "siglip", "siglip"),
        ("clip", "half-clip", "text_model"),
        ("clip score", "siglip", "siglip"),
        ("clip score", "clip", "tokenizer"),
        ("dinov2", "clip", "clip"),
        ("dinov2", "yolos", "yolos"),
        ("dinov2", "timm/resnet18.a1_in1k", "no DINOv2"),
        ("mask2former", "yolos", "yolos"),
        ("mask2former", "clip", "clip"),
    ],
)
def test_another_network_or_half_of_one_is_refused_by_name(networks, kind, given, named):
    folder = given if given.startswith("timm/") else networks / given
    with pytest.raises(VistokError, match=named) as caught:
        load_network(kind, folder)
    assert given in str(caught.value) and "\n" not in str(caught.value)


def test_memory_of_statistics_does_not_grow_with_the_pictures(pictures, weights, tmp_path):
    """The reduction reads one shard at a time: it asks for each file once and holds none."""
    shards = extract(pictures, weights, tmp_path)
    assert [len(part) for part in shards.shards()] == [12, 12, 12, 5]
    whole = shards.load()
    streamed = shards.statistics()
    assert streamed.count == 41
    torch.testing.assert_close(streamed.covariance, torch.cov(whole.double().T), rtol=0, atol=1e-8)


RUN = """
import sys
from vistok.eval.sets.extractors import load_extractor
from vistok.eval.sets.features import extract_features
from vistok.eval.sets.pictures import FolderPictures
extract_features(FolderPictures(sys.argv[1]), load_extractor("scenes-features", sys.argv[2]), sys.argv[3],
                 batch_size=2, shard_size=4, workers=0)
"""


def launch(arguments: list, rank: int, port: int) -> subprocess.Popen:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def finish(processes: list[subprocess.Popen]) -> list[int]:
    try:
        return [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow  # starts six interpreters
def test_two_processes_killed_at_random_moments_end_with_the_same_value(pictures, weights, tmp_path):
    settings = {"batch_size": 2, "shard_size": 4}
    reference = extract(pictures, weights, tmp_path / "one", **settings)
    shared = tmp_path / "two"
    for attempt, shards in enumerate((1, 4)):
        processes = [launch([pictures, weights, shared], rank, 29610 + attempt) for rank in (0, 1)]
        deadline = time.monotonic() + 240
        while len(list(shared.glob("[0-9]*.safetensors"))) < shards and time.monotonic() < deadline:
            time.sleep(0.001)
        for process in processes:
            process.send_signal(signal.SIGKILL)
        finish(processes)
    assert finish([launch([pictures, weights, shared], rank, 29620) for rank in (0, 1)]) == [0, 0]
    resumed = extract(pictures, weights, shared, **settings)
    assert resumed.computed == 0
    assert torch.equal(resumed.load(), reference.load())
    assert frechet_distance(resumed.statistics(), reference.statistics()) == pytest.approx(0, abs=1e-9)


def test_a_network_of_the_users_own_is_an_extractor(pictures, tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, pixels):
            return {"features": pixels.mean((2, 3))}

    own = Extractor("mean", Mean(), "none", "first pixels", "x/255", prepare=lambda images: images[..., :9, :9] / 255)
    found = extract_features(FolderPictures(pictures), own, tmp_path, batch_size=3, workers=0).load()
    source = FolderPictures(pictures)
    expected = torch.stack([picture[:, :9, :9].float().mean((1, 2)) / 255 for picture in source.batch(0, len(source))])
    torch.testing.assert_close(found, expected)
