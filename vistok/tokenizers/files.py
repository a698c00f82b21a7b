"""Pictures to ``.vtok`` files and back, many at a time; every file is whole or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vistok.data.folders import list_files, warn_left_out
from vistok.data.images import READABLE_SUFFIXES, center_crop, load_image, save_image, to_pil, to_tensor
from vistok.data.tiles import Tiling
from vistok.data.vtok import SUFFIX, TokenFile, read_vtok, write_vtok
from vistok.errors import VistokError
from vistok.files import IMAGE_SUFFIXES, check_writable, is_folder_target
from vistok.ops.noise import derive_seed
from vistok.tokenizers.interface import Capabilities, Tokenizer, noise_of
from vistok.tokenizers.load import LoadedTokenizer
from vistok.tokenizers.search import fewest_tokens

Reached = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T")
PICTURES, TOKENS = READABLE_SUFFIXES, frozenset({SUFFIX})  # what is taken from folders


@dataclass
class TokenizeSummary:
    """What was written.

    Attributes:
        pictures: how many.
        tokens, bytes, pixels: sums over all files.
        unreached: pictures whose quality all tokens did not reach; they hold all tokens.
    """

    pictures: int = 0
    tokens: int = 0
    bytes: int = 0
    pixels: int = 0
    unreached: int = 0

    def to_dict(self) -> dict[str, float]:
        """All figures, with the size in bits a pixel."""
        return {**asdict(self), "bits_per_pixel": 8 * self.bytes / self.pixels}


def pair_paths(inputs: list[Path], out: Path | None, suffixes: frozenset[str], suffix: str) -> list[tuple[Path, Path]]:
    """Each input file with the place of its output.

    Args:
        inputs: files, and folders whose files are taken at any depth.
        out: a file for one file, else a folder that keeps the inputs' structure (see ``is_folder_target``); beside the
            inputs if None.
        suffixes: of the files that are taken from folders.
        suffix: of the outputs.

    Raises:
        VistokError: an input is absent or empty, two outputs would be the same file, an output cannot be written,
            ``out`` is a file for many, or a picture beside its tokens is there already: it may be the one that they
            were made of.
    """
    pairs: list[tuple[Path, Path]] = []
    for given in inputs:
        if not given.exists():
            raise VistokError(f"there is no file or folder '{given}': check the path.")
        files = [given]
        if given.is_dir():
            listing = list_files(given, suffixes, PICTURES | TOKENS)
            warn_left_out(given, listing.left_out)
            files = [given / name for name in listing.names]
            if not files:
                raise VistokError(f"the folder '{given}' holds no file that ends in {' '.join(sorted(suffixes))}.")
        root = given if given.is_dir() else given.parent
        pairs += [(path, ((out or root) / path.relative_to(root)).with_suffix(suffix)) for path in files]
    if out is not None and not is_folder_target(out, IMAGE_SUFFIXES if suffix in IMAGE_SUFFIXES else {suffix}):
        if len(inputs) == 1 and not inputs[0].is_dir():
            check_writable(out, folder=False)
            return [(inputs[0], out)]
        raise VistokError(f"'{out}' is one file for {len(pairs)} results: name a folder.")
    seen: dict[Path, Path] = {}
    for source, target in pairs:
        if target in seen:
            raise VistokError(f"'{seen[target]}' and '{source}' would both become '{target}': rename one.")
        if out is None and suffix in IMAGE_SUFFIXES and target.exists():
            raise VistokError(f"'{target}' exists, and the picture of '{source}' would replace it: give -o.")
        seen[target] = source
        check_writable(target, folder=False)
    return pairs


def prepare(image: Image.Image, capabilities: Capabilities, size: int | None, what: str = "the picture") -> Tensor:
    """A picture as a tokenizer takes it, [3, H, W] in [-1, 1].

    Args:
        image: any size.
        capabilities: of the tokenizer.
        size: side of the centre crop; by default the one side that the tokenizer takes, or else the picture is only
            cropped to multiples of what it takes.
        what: how to call the picture in an error.

    Raises:
        VistokError: the picture is smaller than one token, or the tokenizer does not take that size.
    """
    side, multiple = size or capabilities.image_size, capabilities.multiple
    if side is not None and capabilities.resize == "stretch":
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    elif side is not None:
        image = center_crop(image, side)
    width, height = (length // multiple * multiple for length in image.size)
    if not width or not height:
        mend = "give --size" if side is None else f"give a --size of {multiple} or more"
        raise VistokError(f"{what} has {image.width}x{image.height} pixels and is smaller than one token: {mend}.")
    if side is None:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return to_tensor(image)


def tokenize_files(
    loaded: LoadedTokenizer,
    pairs: list[tuple[Path, Path]],
    length: int | None = None,
    reached: Reached | None = None,
    size: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], Any] = lambda _: None,
    overlap: int | None = None,
) -> TokenizeSummary:
    """Encode pictures and write their tokens.

    Args:
        loaded: the tokenizer.
        pairs: picture and ``.vtok`` file each.
        length: how many first tokens to keep; all if None.
        reached: keep the fewest tokens that reach this quality instead (see ``fewest_tokens``).
        size: see ``prepare``.
        batch_size: pictures at a time; does not change the files.
        progress: called with the number of pictures that were written.
        overlap: least pixels that neighbouring tiles share, where pictures are tokenized in tiles, of the size that the
            tokenizer takes (or ``size``); whole pictures, cropped to what it takes, if None.

    Raises:
        VistokError: a picture cannot be read, or the tokenizer does not take it, or not this length.
    """
    tokenizer = loaded.tokenizer
    capabilities = tokenizer.capabilities
    capabilities.check_discrete()
    summary = TokenizeSummary()
    if overlap is not None:
        side = tile_side(capabilities, size)
        for source, target in pairs:
            _write_tiles(loaded, source, target, side, overlap, length, reached, batch_size, summary)
            progress(1)
        return summary
    prepared = ((prepare(load_image(each), capabilities, size, f"'{each}'"), target) for each, target in pairs)
    for same in _batches(prepared, batch_size, key=lambda item: item[0].shape):
        images = torch.stack([image for image, _ in same]).to(loaded.device)
        tokens, lengths, good = _encode(tokenizer, images, length, reached)
        summary.unreached += good.count(False)
        shape, flat = tuple(tokens.shape[1:]), tokens.flatten(1)
        for (_, target), row, keep in zip(same, flat, lengths, strict=True):
            content = TokenFile(loaded.name, loaded.sha256, capabilities.codebook_size, shape, row[:keep].cpu())
            summary.bytes += write_vtok(target, content)
            summary.tokens += keep
        summary.pictures += len(same)
        summary.pixels += len(same) * images.shape[-1] * images.shape[-2]
        progress(len(same))
    return summary


def tile_side(capabilities: Capabilities, size: int | None) -> int:
    """The side of the tiles that a tokenizer takes.

    Raises:
        VistokError: it takes any size and none was given, or not this one.
    """
    side = size or capabilities.image_size
    if side is None:
        raise VistokError(
            "this tokenizer takes pictures of any size: give --size for tiles of one, or leave --tiles out."
        )
    if capabilities.image_size not in (None, side):
        raise VistokError(
            f"this tokenizer takes tiles of {capabilities.image_size} pixels, got --size {side}: leave --size out."
        )
    if side % capabilities.multiple:
        raise VistokError(f"tiles of this tokenizer have sides of multiples of {capabilities.multiple}, got {side}.")
    return side


def _encode(
    tokenizer: Tokenizer, images: Tensor, length: int | None, reached: Reached | None
) -> tuple[Tensor, list[int], list[bool]]:
    """Tokens of pictures, how many of each are kept, and whether that is good enough."""
    tokens = tokenizer.encode(images)
    tokenizer.capabilities.check_tokens(tokens)
    every = tokens[0].numel()
    if reached is not None:
        found, good = fewest_tokens(tokenizer, images, tokens, reached)
        return tokens, found.tolist(), good.tolist()
    if length is not None:
        tokenizer.capabilities.check_length(length, every)
    return tokens, [length or every] * len(images), [True] * len(images)


def _write_tiles(
    loaded: LoadedTokenizer,
    source: Path,
    target: Path,
    side: int,
    overlap: int,
    length: int | None,
    reached: Reached | None,
    batch_size: int,
    summary: TokenizeSummary,
) -> None:
    """Tokenize one picture in tiles; all keep as many tokens, of a quality as many as the most difficult needs."""
    image = to_tensor(load_image(source))
    tiling = Tiling(*image.shape[1:], side, overlap)
    rows: list[Tensor] = []
    keep, good = 0, True
    for images in tiling.cut(image).split(batch_size):
        tokens, lengths, enough = _encode(loaded.tokenizer, images.to(loaded.device), length, reached)
        shape, keep, good = tuple(tokens.shape[1:]), max(keep, *lengths), good and all(enough)
        rows.append(tokens.flatten(1).cpu())
    kept = torch.cat(rows)[:, :keep].flatten()
    codes = loaded.tokenizer.capabilities.codebook_size
    content = TokenFile(loaded.name, loaded.sha256, codes, shape, kept, tiling)
    summary.bytes += write_vtok(target, content)
    summary.tokens += len(kept)
    summary.pictures += 1
    summary.unreached += not good
    summary.pixels += tiling.height * tiling.width


def detokenize_files(
    loaded: LoadedTokenizer,
    pairs: list[tuple[Path, Path]],
    length: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], Any] = lambda _: None,
    seed: int = 0,
) -> int:
    """Decode ``.vtok`` files and write pictures.

    Args:
        loaded: the tokenizer.
        pairs: ``.vtok`` file and picture each.
        length: how many first tokens to decode, where a file holds more; all if None.
        batch_size: pictures at a time; does not change them.
        progress: called with the number of pictures that were written.
        seed: of the noise that every picture, and every tile, begins with, where decoding draws noise.

    Returns:
        How many pictures were written.

    Raises:
        VistokError: a file is damaged or of another tokenizer, or cannot be decoded to this length, or none is so long.
    """
    tokenizer = loaded.tokenizer
    # Headers are cheap: a wrong file is refused before the first picture is written.
    most = 0
    for source, _ in pairs:
        content = read_vtok(source)
        content.check_tokenizer(loaded.name, loaded.sha256, f"'{source}'")
        if len(content.shape) != (2 if tokenizer.capabilities.layout == "grid" else 1):
            raise VistokError(
                f"'{source}' holds tokens of the shape {list(content.shape)}, which '{loaded.name}' does not make: "
                "make it again."
            )
        most = max(most, len(content.tokens) // (1 if content.tiling is None else content.tiling.count))
    if length is not None and length > most:
        held = "the picture holds" if len(pairs) == 1 else "no picture holds more than"
        raise VistokError(f"cannot decode {length} tokens, since {held} {most}: ask for fewer.")
    contents = ((read_vtok(source), target) for source, target in pairs)
    for same in _batches(contents, batch_size, key=lambda item: (item[0].shape, item[0].tiling is not None)):
        files = [content for content, _ in same]
        if files[0].tiling is not None:
            for file, target in same:
                save_image(to_pil(_join(loaded, file, length, batch_size, seed)[None])[0], target)
                progress(1)
            continue
        counts = [len(file.tokens) if length is None else min(length, len(file.tokens)) for file in files]
        rows = [file.tokens[:count] for file, count in zip(files, counts, strict=True)]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(loaded.device)
        lengths: int | Tensor = counts[0] if len(set(counts)) == 1 else torch.tensor(counts)
        if len(files[0].shape) > 1:
            tokenizer.capabilities.check_length(lengths, files[0].tokens.numel())
            tokens = tokens.view(len(tokens), *files[0].shape)
        pictures = to_pil(tokenizer.decode(tokens, lengths, **noise_of(tokenizer, [derive_seed(seed)] * len(tokens))))
        for (_, target), picture in zip(same, pictures, strict=True):
            save_image(picture, target)
        progress(len(same))
    return len(pairs)


def _join(loaded: LoadedTokenizer, file: TokenFile, length: int | None, batch_size: int, seed: int) -> Tensor:
    """The picture [3, H, W] of a file that holds tiles."""
    tokenizer, tiling = loaded.tokenizer, file.tiling
    assert tiling is not None
    rows = file.tokens.view(tiling.count, -1)
    count = rows.shape[1] if length is None else min(length, rows.shape[1])
    tiles = []
    for tokens in rows[:, :count].to(loaded.device).split(batch_size):
        if len(file.shape) > 1:
            tokenizer.capabilities.check_length(count, torch.Size(file.shape).numel())
            tokens = tokens.view(len(tokens), *file.shape)
        noise = noise_of(tokenizer, [derive_seed(seed)] * len(tokens))
        tiles.append(tokenizer.decode(tokens, count, **noise).clamp(-1, 1).cpu())
        if tiles[-1].shape[-1] != tiling.side:
            raise VistokError(
                f"the file tells of tiles of {tiling.side} pixels, its tokens are {tiles[-1].shape[-1]} wide."
            )
    return tiling.join(torch.cat(tiles))


def _batches(items: Iterable[T], batch_size: int, key: Callable[[T], Any]) -> Iterator[list[T]]:
    """Consecutive items of one key, at most ``batch_size`` at a time."""
    for _, group in groupby(items, key):
        while batch := list(islice(group, batch_size)):
            yield batch
