"""Pictures to .vtok files and back: the embedded tokenizer, by number of tokens, by quality, and bad input."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from vistok.cli.output import Commands
from vistok.cli.tokenize import detokenize, tokenize
from vistok.data.images import ImageFolder, load_image, save_image, to_pil, to_tensor
from vistok.data.scenes import render, sample_scenes
from vistok.data.tiles import Tiling
from vistok.data.vtok import TokenFile, read_vtok, write_vtok
from vistok.errors import VistokError
from vistok.eval.reconstruction.metrics import psnr
from vistok.tokenizers import load
from vistok.tokenizers.files import PICTURES, detokenize_files, pair_paths, prepare, tokenize_files
from vistok.tokenizers.flow import noise_for
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.load import TOKENIZERS, LoadedTokenizer, load_tokenizer
from vistok.tokenizers.search import fewest_tokens
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.zoo import card

ENDS = (".vtok", ".png")

app = typer.Typer(cls=Commands)
app.command()(tokenize)
app.command()(detokenize)


def _run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    for i, picture in enumerate(to_pil(render(sample_scenes(5, 3), 64))):
        save_image(picture, folder / ("deep" if i % 2 else ".") / f"{i}.png")
    return folder


class Bars:
    """Decodes n tokens to a picture whose first n columns are right: quality grows with every token."""

    capabilities = Capabilities(16, "sequence", multiple=8, image_size=8, lengths=range(1, 9))

    def encode(self, images):
        return ((images[:, 0, 0] + 1) * 7.5).round().long()

    def decode(self, tokens, length=None):
        count = torch.as_tensor(tokens.shape[1] if length is None else length)
        shown = torch.arange(tokens.shape[1]) < count.reshape(-1, 1)
        rows = torch.where(shown, tokens / 7.5 - 1, -1.0)
        rows = torch.nn.functional.pad(rows, (0, 8 - rows.shape[1]), value=-1.0)
        return rows[:, None, None].expand(-1, 3, 8, 8)

    def parameters(self):
        yield torch.zeros(1)


class Noisy(Bars):
    """Paints noise, of which every token takes an eighth away."""

    capabilities = Capabilities(16, "sequence", 8, image_size=8, lengths=range(1, 9), stochastic_decode=True)

    def decode(self, tokens, length=None, generator=None):
        count = torch.as_tensor(tokens.shape[1] if length is None else length).expand(len(tokens))
        generator = generator or torch.Generator().manual_seed(0)
        noise = noise_for(len(tokens), (3, 8, 8), generator, tokens.device)
        return super().decode(tokens, length) + noise * (1 - count.view(-1, 1, 1, 1) / 8)


def _bars(*heights: int) -> torch.Tensor:
    """One picture a number: that many columns are white."""
    rows = torch.full((len(heights), 8), -1.0)
    for row, count in zip(rows, heights, strict=True):
        row[:count] = 1.0
    return rows[:, None, None].expand(-1, 3, 8, 8)


def test_the_fewest_tokens_are_found_for_each_picture():
    images = _bars(1, 3, 5, 8, 0)
    tokenizer = Bars()
    equal = lambda a, b: (a - b).abs().amax((1, 2, 3)) < 1e-3  # noqa: E731
    lengths, reached = fewest_tokens(tokenizer, images, tokenizer.encode(images), equal)
    assert lengths.tolist() == [1, 3, 5, 8, 1] and reached.all()
    never = lambda a, b: torch.zeros(len(a), dtype=torch.bool)  # noqa: E731
    lengths, reached = fewest_tokens(tokenizer, images, tokenizer.encode(images), never)
    assert lengths.tolist() == [8] * 5 and not reached.any()


def test_files_of_different_lengths_decode_in_one_batch(tmp_path):
    loaded = LoadedTokenizer("bars", "ab" * 32, Bars())
    sources = []
    for name, picture in zip("abc", to_pil(_bars(2, 6, 4)), strict=True):
        save_image(picture, tmp_path / f"{name}.png")
        sources.append((tmp_path / f"{name}.png", tmp_path / f"{name}.vtok"))
    equal = lambda a, b: (a - b).abs().amax((1, 2, 3)) < 1e-3  # noqa: E731
    summary = tokenize_files(loaded, sources, reached=equal, batch_size=2)
    assert (summary.pictures, summary.tokens, summary.unreached) == (3, 12, 0)
    assert [len(read_vtok(target).tokens) for _, target in sources] == [2, 6, 4]
    back = [(target, tmp_path / f"back-{target.stem}.png") for _, target in sources]
    assert detokenize_files(loaded, back) == 3
    for (source, _), (_, again) in zip(sources, back, strict=True):
        assert torch.equal(to_tensor(load_image(source)), to_tensor(load_image(again)))
    detokenize_files(loaded, back, length=1)
    assert (to_tensor(load_image(back[1][1]))[0, 0] > 0).sum() == 1


@pytest.mark.parametrize("overlap", [None, 2])
def test_what_decodes_by_sampling_depends_on_its_seed_and_not_on_what_is_beside_it(tmp_path, overlap):
    """Neither the number of tokens that reach a quality, nor the pictures, and the quality holds of the pictures."""
    loaded, near = LoadedTokenizer("noisy", "ab" * 32, Noisy()), lambda a, b: psnr(a / 2, b / 2) >= 12
    sources = []
    for number, picture in enumerate(to_pil(_bars(2, 6, 4, 1, 3))):
        picture = picture if overlap is None else picture.resize((8, 13 if number else 9))
        save_image(picture, tmp_path / f"{number}.png")
        sources.append(tmp_path / f"{number}.png")

    def made(folder, batch_size, *groups):
        for group in groups:
            pairs = [(source, tmp_path / folder / f"{source.stem}.vtok") for source in group]
            tokenize_files(loaded, pairs, reached=near, batch_size=batch_size, overlap=overlap)
            back = [(target, target.with_suffix(".png")) for _, target in pairs]
            detokenize_files(loaded, back, batch_size=batch_size)
        return [(tmp_path / folder / source.with_suffix(each).name).read_bytes() for source in sources for each in ENDS]

    alone = made("alone", 1, *([source] for source in sources))
    assert alone == made("together", 8, sources) == made("backwards", 2, sources[::-1])
    lengths = [len(read_vtok(tmp_path / "alone" / f"{source.stem}.vtok").tokens) for source in sources]
    assert max(lengths) > 1
    if overlap is None:
        pictures = [[to_tensor(load_image(f / s.name)) for s in sources] for f in (tmp_path, tmp_path / "alone")]
        assert near(*map(torch.stack, pictures)).all()
    seeded = [(tmp_path / "alone" / f"{source.stem}.vtok", tmp_path / "seed" / source.name) for source in sources]
    detokenize_files(loaded, seeded, seed=1)
    assert (tmp_path / "seed" / "1.png").read_bytes() != (tmp_path / "alone" / "1.png").read_bytes()


def test_a_picture_goes_to_tokens_and_back(pictures, tmp_path):
    out = _run("tokenize", pictures / "0.png", "-o", tmp_path / "a.vtok", "--json")
    figures = json.loads(out)
    assert figures["pictures"] == 1 and figures["bytes"] == (tmp_path / "a.vtok").stat().st_size
    content = read_vtok(tmp_path / "a.vtok")
    assert content.tokenizer == "vq-mini" and content.sha256 == card("vq-mini").files["model.safetensors"]
    _run("detokenize", tmp_path / "a.vtok", "-o", tmp_path / "b.png")
    error = (to_tensor(load_image(pictures / "0.png")) - to_tensor(load_image(tmp_path / "b.png"))).square().mean() / 4
    assert -10 * error.log10() > 20


def test_folders_keep_their_structure_and_batches_do_not_matter(pictures, tmp_path):
    _run("tokenize", pictures, "-o", tmp_path / "one", "--batch-size", 1)
    _run("tokenize", pictures, "-o", tmp_path / "all", "--batch-size", 8)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.vtok"))
    assert [str(name) for name in names] == ["0.vtok", "2.vtok", "4.vtok", "deep/1.vtok", "deep/3.vtok"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    _run("detokenize", tmp_path / "all", "-o", tmp_path / "back")
    assert len(ImageFolder(tmp_path / "back")) == 5


def test_a_foreign_or_damaged_file_stops_before_the_first_picture(pictures, tmp_path, monkeypatch):
    _run("tokenize", pictures, "-o", tmp_path / "t")
    victim = tmp_path / "t" / "4.vtok"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-3])
    with pytest.raises(VistokError, match="truncated or was changed"):
        _run("detokenize", tmp_path / "t", "-o", tmp_path / "back")
    victim.write_bytes(whole)
    monkeypatch.setattr(load, "sha256", lambda _: "0" * 64)
    with pytest.raises(VistokError, match="was made by 'vq-mini'"):
        _run("detokenize", tmp_path / "t", "-o", tmp_path / "back", "--tokenizer", "vq-mini")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [("one-d-piece-mini", (16, 16), 10), ("vq-mini", (256,), 256), ("vq-mini", (16, 16, 1), 256)],
)
@pytest.mark.parametrize("tiling", [None, Tiling(64, 64, 64, 8)])
def test_tokens_of_a_shape_that_their_tokenizer_does_not_make_are_refused(tmp_path, name, shape, count, tiling):
    loaded = load_tokenizer(name)
    codes = loaded.tokenizer.capabilities.codebook_size
    tokens = torch.zeros(count, dtype=torch.long)
    write_vtok(tmp_path / "a.vtok", TokenFile(name, loaded.sha256, codes, shape, tokens, tiling))
    with pytest.raises(VistokError, match=r"a\.vtok' holds tokens of the shape .* make it again"):
        _run("detokenize", tmp_path / "a.vtok")


@pytest.mark.parametrize("name", ["owner/name", "../weights", "titok-l-32"])
def test_a_file_cannot_make_us_fetch_or_read_other_weights(tmp_path, monkeypatch, name):
    monkeypatch.setattr(load, "resolve", lambda _: pytest.fail("looked for weights that only the file named"))
    write_vtok(tmp_path / "a.vtok", TokenFile(name, "0" * 64, 8, (4,), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(VistokError, match=f"'{name}'.*--tokenizer"):
        _run("detokenize", tmp_path / "a.vtok")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tokens", 3, "--psnr", 30], "give one of them"),
        (["--tokens", 3], "decodes all 256 tokens of a picture and no fewer, got 3"),
        (["--psnr", 30], "no length to choose"),
        (["--lpips", 0.1], "--lpips-head and --lpips-backbone"),
        (["--size", 63], "smaller than|multiples of"),
        (["--tokenizer", "vq-mine"], "unknown model 'vq-mine': did you mean vq-mini"),
        (["--tokenizer", "titok-l-32"], "'yucornetto/tokenizer_titok_l32_imagenet' to fetch it"),
        (["--tokenizer", "llamagen-b-256"], "to fetch it"),
    ],
)
def test_mistakes_get_one_sentence(pictures, options, sentence):
    with pytest.raises(VistokError, match=sentence):
        _run("tokenize", pictures / "0.png", *options)


def test_paths_that_cannot_be_are_refused(pictures, tmp_path):
    with pytest.raises(VistokError, match="there is no file or folder"):
        pair_paths([tmp_path / "absent"], None, PICTURES, ".vtok")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VistokError, match="holds no file that ends in"):
        pair_paths([tmp_path / "empty"], None, PICTURES, ".vtok")
    with pytest.raises(VistokError, match="is one file for 5 results"):
        pair_paths([pictures], tmp_path / "a.vtok", PICTURES, ".vtok")
    save_image(load_image(pictures / "0.png"), pictures / "0.jpg")
    with pytest.raises(VistokError, match="would both become"):
        pair_paths([pictures], None, PICTURES, ".vtok")
    assert pair_paths([pictures / "0.png"], None, PICTURES, ".vtok") == [(pictures / "0.png", pictures / "0.vtok")]


@pytest.mark.parametrize("command", ["tokenize", "detokenize"])
@pytest.mark.parametrize("place", ["file/deep", "file/deep.vtok", "taken"])
def test_places_that_cannot_be_written_are_refused_before_any_work(pictures, tmp_path, monkeypatch, command, place):
    _run("tokenize", pictures / "0.png", "-o", tmp_path / "0.vtok")
    (tmp_path / "file").write_text("a file")
    ends = {"tokenize": ".vtok", "detokenize": ".png"}[command]
    (tmp_path / "taken" / f"0{ends}").mkdir(parents=True)
    source = pictures / "0.png" if command == "tokenize" else tmp_path / "0.vtok"
    monkeypatch.setattr(load, "load_tokenizer", lambda *_: pytest.fail("loaded a tokenizer for a place that is none"))
    with pytest.raises(VistokError, match=r"cannot write|is a folder"):
        _run(command, source, "-o", tmp_path / place.replace(".vtok", ends))


def test_a_picture_that_a_tokenizer_does_not_take_is_named(pictures, tmp_path):
    Image.new("RGB", (3, 9)).save(pictures / "deep" / "small.png")
    with pytest.raises(VistokError, match=r"'.*small\.png' has 3x9 pixels and is smaller than one token: give --size"):
        _run("tokenize", pictures, "-o", tmp_path / "out")


def test_the_picture_that_tokens_were_made_of_is_not_replaced_unasked(pictures, tmp_path):
    _run("tokenize", pictures / "0.png")
    before = (pictures / "0.png").read_bytes()
    with pytest.raises(VistokError, match="give -o"):
        _run("detokenize", pictures / "0.vtok")
    assert (pictures / "0.png").read_bytes() == before
    _run("detokenize", pictures / "0.vtok", "-o", tmp_path / "back.png")
    _run("detokenize", pictures / "0.vtok", "-o", tmp_path / "back.png")  # what is named is replaced
    with pytest.raises(VistokError, match="257 tokens, since the picture holds 256"):
        _run("detokenize", pictures / "0.vtok", "--tokens", 257, "-o", tmp_path / "back.png")


def test_free_sizes_are_cropped_to_multiples_and_fixed_ones_resized(pictures):
    image = load_image(pictures / "0.png").resize((70, 50))
    assert prepare(image, Capabilities(8, "grid", multiple=16), None).shape == (3, 48, 64)
    assert prepare(image, Capabilities(8, "grid", multiple=16), 32).shape == (3, 32, 32)
    assert prepare(image, Capabilities(8, "sequence", multiple=16, image_size=64), None).shape == (3, 64, 64)
    with pytest.raises(VistokError, match="smaller than one token"):
        prepare(image, Capabilities(8, "grid", multiple=64), None)


def test_every_family_loads_by_folder_and_states_what_it_can_do(tmp_path):
    shape = (16, 1, 1)
    config = TiTokConfig(
        shape, shape, 4, 16, 4, legacy=False, pixel_decoder=False, variable_length=True, image_size=16, patch_size=8
    )
    TiTok(config).save_pretrained(tmp_path / "mine")
    loaded = load_tokenizer(str(tmp_path / "mine"))
    assert isinstance(loaded.tokenizer, TiTok) and loaded.name == "mine"
    capabilities = loaded.tokenizer.capabilities
    assert capabilities.variable_length and capabilities.bits_per_token == 4 and capabilities.layout == "sequence"
    grid = load_tokenizer("vq-mini").tokenizer.capabilities
    assert not grid.variable_length and grid.layout == "grid" and grid.image_size is None
    own = {"vq_upscaled"}  # a network of our own, of which nothing is published
    assert all(TOKENIZERS[family].presets for family in set(TOKENIZERS.table) - own)
    (tmp_path / "mine" / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(VistokError, match=r"not the shape of a tokenizer \(it has colour\)"):
        load_tokenizer(str(tmp_path / "mine"))
    with pytest.raises(VistokError, match="no published file name of a tokenizer: give a preset"):
        load_tokenizer(str(tmp_path / "mine" / "model.safetensors"))
    with pytest.raises(VistokError, match="unknown tokenizer family 'vqq'"):
        TOKENIZERS["vqq"]
