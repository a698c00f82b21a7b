"""A One-D-Piece encoder in closed form: every token tells a cell of the picture, the first ones whole cells.

With as many tokens as there are patches, each tells the principal components of its own patch; with four times as many,
the others tell three quarters of it, four times as sharply (what is left follows from the whole). Places come
in four interleaved lattices, each row by row, so that the first quarter of the tokens covers the picture evenly and
neighbours in the picture are a fixed distance apart in the sequence, which rotary positions can tell. The weights
have the published layout; one block's attention finds the patch and the functional that a token tells, and the
codebook is the k-means of what comes out. Nothing of the encoder has to be trained, so a generator can learn its
tokens while the painter is still being trained.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.titok import Decoder, Encoder, TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.train.tasks.starts.patch_codes import PatchComponents, spherical_kmeans
from vistok.train.tasks.starts.spatial import fit_by_least_squares, inputs_of

SHARE = 0.15  # of what a patch shows beside its place, so that the norms before attention hardly depend on it
WHOLE, QUARTER = 0.125, 0.25  # of a component (pixels in [-1, 1]) beside the constant first channel of a point
LATTICES = ((0, 0), (1, 1), (0, 1), (1, 0))
QUARTERS = ((1, 1), (0, 1), (1, 0))
PLACE, OTHER = 24.0, 14.0  # logits: of the right cell, half for its row or column; of the right kind of token
POINTS = 1 << 15  # that a codebook is the k-means of
FLAT = 0.06  # beside a patch's contrast: how much one of a single colour weighs, in that k-means for one
WHOLES = 0.75  # share of the codes that tell whole cells, where others tell quarters
EXACT = 1e-7  # ridge of the encoder's last map: weak components count as much as strong ones
KEPT = (16, 64, 256)  # tokens from which the painter's first map is fitted


def lattice_order(side: int) -> Tensor:
    """Returns the cells of a grid, lattice by lattice and row by row in each, int64 [side^2]."""
    cells = torch.arange(side**2).view(side, side)
    return torch.cat([cells[row::2, column::2].flatten() for row, column in LATTICES])


class _Heads(NamedTuple):
    """The projections of one attention, by head: [heads, head width, width], with the bias of the queries."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    query_bias: Tensor


class Cells(nn.Module):
    """What tokens tell: points of the unit sphere, as ``PatchCodes`` makes them.

    Args:
        config: of the tokenizer.
        images: pictures [B, 3, H, W] in [-1, 1] that the components are fitted to.

    Raises:
        VistokError: the shape has no closed form.
    """

    def __init__(self, config: TiTokConfig, images: Tensor):
        super().__init__()
        self.grid, cells = config.grid, config.grid**2
        self.groups, rest = divmod(config.num_tokens, cells)
        if rest or self.groups not in (1, 4) or config.grid % 2 or config.patch_size % 2:
            raise VistokError(
                f"'data.start: cells' needs as many tokens as patches ({cells}) or four times as many, and even sides "
                f"of grid and patches; got {config.num_tokens} tokens."
            )
        if not config.l2_norm or config.legacy or config.mode != "vq":
            raise VistokError("'data.start: cells' needs 'model.l2_norm: true', 'legacy: false' and 'mode: vq'.")
        count = config.token_size - 1
        self.whole = PatchComponents(images, config.patch_size, count)
        self.quarter = PatchComponents(images, config.patch_size // 2, count)
        self.register_buffer("order", lattice_order(config.grid), persistent=False)

    def functionals(self) -> tuple[Tensor, Tensor]:
        """Returns the components of all groups as maps of a patch: weights [groups, count, 3, p, p] and biases."""
        p = self.whole.patch
        maps = [WHOLE * rearrange(self.whole.directions, "(p q c) n -> n c p q", p=p, q=p)]
        offsets = [-WHOLE * self.whole.mean @ self.whole.directions]
        half = rearrange(self.quarter.directions, "(p q c) n -> n c p q", p=p // 2, q=p // 2)
        for row, column in QUARTERS[: self.groups - 1]:
            whole = half.new_zeros(len(half), 3, p, p)
            whole[:, :, row * p // 2 :][:, :, : p // 2, column * p // 2 :][..., : p // 2] = QUARTER * half
            maps.append(whole)
            offsets.append(-QUARTER * self.quarter.mean @ self.quarter.directions)
        return torch.stack(maps), torch.stack(offsets)

    def forward(self, images: Tensor) -> Tensor:
        """Returns points [B, N, D] of pictures [B, 3, H, W]; the constant channel's sign tells wholes from quarters."""
        weight, bias = self.functionals()
        values = F.conv2d(images, weight.flatten(0, 1), bias.flatten(), stride=self.whole.patch)
        values = rearrange(values, "b (g n) h w -> b g (h w) n", g=self.groups)[:, :, self.order]
        sign = torch.ones(self.groups, device=images.device)
        sign[1:] = -1
        constant = sign[:, None, None].expand(*values.shape[:3], 1)
        return F.normalize(torch.cat([constant, values], -1), dim=-1).flatten(1, 2)

    def contrast(self, images: Tensor) -> Tensor:
        """Returns how far the pixels of what each token tells are from their mean (the root of the mean square),
        [B, groups, cells]."""
        parts = [deviation(images, self.whole.patch)]
        quarters = deviation(images, self.quarter.patch)
        parts += [quarters[:, row::2, column::2] for row, column in QUARTERS[: self.groups - 1]]
        return torch.stack(parts, 1).flatten(2)[:, :, self.order]


def deviation(images: Tensor, patch: int) -> Tensor:
    """Returns how far the pixels of each patch of pictures [B, 3, H, W] are from their mean, [B, H / patch, W / patch].

    It is the root of their mean square distance.
    """
    mean, square = F.avg_pool2d(images, patch), F.avg_pool2d(images.square(), patch)
    return (square - mean.square()).sum(1).clamp(min=0).sqrt()


@torch.no_grad()
def start_from_cells(tokenizer: TiTok, cells: Cells, images: Tensor, generator: torch.Generator) -> None:
    """Writes the encoder and the codebook, and starts the painter with its least-squares solution.

    Args:
        tokenizer: one block in the encoder, as many heads in both as there are kinds of tokens (1 or 4).
        cells: what its tokens tell.
        images: pictures [B, 3, H, W] in [-1, 1] that codes and painter are fitted to.
        generator: draws the first codebook.
    """
    config = tokenizer.config
    if config.encoder[1] != 1 or config.encoder[2] != cells.groups or config.decoder[2] != cells.groups:
        raise VistokError(
            f"'data.start: cells' writes an encoder of one layer, with {cells.groups} heads here and in the decoder."
        )
    _write_encoder(tokenizer.encoder, tokenizer.latent_tokens, cells)
    head = tokenizer.encoder.conv_out
    states = inputs_of(head, lambda: tokenizer.latents(images))
    fit_by_least_squares(head, states.flatten(2).transpose(1, 2).flatten(0, 1), cells(images).flatten(0, 1), EXACT)
    told = F.normalize(head(states).flatten(2), dim=1).unflatten(2, (cells.groups, -1))  # [B, D, groups, cells]
    codes = _codes(told, cells.contrast(images) + FLAT, config.codebook_size, generator)
    tokenizer.quantize.embedding.weight.copy_(codes)
    _write_painter(tokenizer.decoder, cells)
    _fit_painter(tokenizer, images)


def _codes(told: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The k-means of the points that tokens tell, of wholes and of quarters.

    Objects show at edges, and most of a picture has none: points [B, D, groups, cells] weigh ``weights``
    [B, groups, cells].
    """
    wholes = round(WHOLES * count)
    alone = told.shape[2] == 1
    kinds = [(slice(None), count)] if alone else [(slice(0, 1), wholes), (slice(1, None), count - wholes)]
    codes = []
    for kind, share in kinds:
        points = rearrange(told[:, :, kind], "b d g n -> (b g n) d")
        if len(points) < share:
            raise VistokError(
                f"{share} codes cannot be the k-means of {len(points)} cells: draw more pictures "
                "('data.start_pictures'), or make 'model.codebook_size' smaller."
            )
        chosen = torch.multinomial(weights[:, kind].flatten(), POINTS, replacement=True, generator=generator)
        codes.append(spherical_kmeans(points[chosen], share, generator))
    return torch.cat(codes)


def _write_encoder(encoder: Encoder, latents: Tensor, cells: Cells) -> None:
    grid, groups, width = cells.grid, cells.groups, latents.shape[1]
    weight, bias = cells.functionals()
    count = weight.shape[1]
    content, place = groups * count, groups * count
    group, flags = place + 2 * grid, place + 2 * grid + groups  # then: class, patch
    out = flags + 2
    if out + count > width:
        raise VistokError(f"an encoder in closed form is {out + count} wide at least here, got {width}.")
    patches, tokens = _places(encoder, cells.order, place, grid, groups)
    patches[1:, flags + 1] = 1
    patches[0, flags] = 1
    tokens[torch.arange(len(tokens)), group + torch.arange(groups).repeat_interleave(grid**2)] = 1
    embed = encoder.patch_embed
    nn.init.zeros_(embed.weight)
    nn.init.zeros_(embed.bias)
    # Pictures come in as [0, 1].
    embed.weight[:content] = 2 * SHARE * weight.flatten(0, 1)
    embed.bias[:content] = SHARE * (bias - weight.flatten(2).sum(-1)).flatten()
    _install(encoder, latents, patches, tokens)
    heads = _empty(encoder, groups)
    size = heads.query.shape[1]
    scale = size**0.5
    f_patch, f_token, f_class = (width / 3) ** 0.5, (width / 3) ** 0.5, width**0.5
    _compare_places(heads, place, grid, PLACE * scale / (2 * f_patch * f_token))
    heads.query_bias[:, 2 * grid] = OTHER
    heads.key[:, 2 * grid, flags + 1] = scale / f_patch  # patches, not tokens of the same cell
    shut = (2 * PLACE) * scale / f_class  # a token of another kind looks at the class token, which tells nothing
    heads.query_bias[:, 2 * grid + 1] = shut
    heads.key[:, 2 * grid + 1, flags] = 1
    for head in range(groups):
        heads.query[head, 2 * grid + 1, group + head] = -shut / f_token
        heads.value[head, :count, head * count : (head + 1) * count] = torch.eye(count)
        heads.out[head, :count, out : out + count] = torch.eye(count)
    _write(encoder, heads)


def _write_painter(decoder: Decoder, cells: Cells) -> None:
    grid, groups = cells.grid, cells.groups
    width, size_of_code = decoder.decoder_embed.weight.shape
    place = size_of_code
    group = place + 2 * grid
    flag = group + groups
    slots = flag + 1
    patches, tokens = _places(decoder, cells.order, place, grid, groups)
    patches[0, flag] = 1
    tokens[torch.arange(len(tokens)), group + torch.arange(groups).repeat_interleave(grid**2)] = 1
    nn.init.zeros_(decoder.decoder_embed.weight)
    nn.init.zeros_(decoder.decoder_embed.bias)
    decoder.decoder_embed.weight[:size_of_code] = torch.eye(size_of_code)
    nn.init.zeros_(decoder.mask_token)
    _install(decoder, None, patches, tokens)
    heads = _empty(decoder, groups)
    scale = heads.query.shape[1] ** 0.5
    f_patch, f_token, f_class = (width / 2) ** 0.5, (width / 4) ** 0.5, width**0.5
    _compare_places(heads, place, grid, PLACE * scale / (2 * f_patch * f_token))
    heads.query_bias[:, 2 * grid] = OTHER
    missing = PLACE + 0.65 * OTHER  # more than a token of another kind or cell gets: nothing is told of this cell
    for head in range(groups):
        heads.key[head, 2 * grid, group + head] = scale / f_token
        heads.key[head, 2 * grid, flag] = missing / OTHER * scale / f_class
        heads.value[head, :size_of_code, :size_of_code] = torch.eye(size_of_code)
        slot = slots + head * size_of_code
        heads.out[head, :size_of_code, slot : slot + size_of_code] = torch.eye(size_of_code)
    _write(decoder, heads)
    nn.init.dirac_(decoder.conv_out.weight)
    nn.init.zeros_(decoder.conv_out.bias)


def _fit_painter(tokenizer: TiTok, images: Tensor) -> None:
    """Fit the last map to the states that fewer and more tokens lead to."""
    decoder, p = tokenizer.decoder, tokenizer.config.patch_size
    codes = tokenizer.quantize.codes(tokenizer.encode(images))
    pixels = rearrange(images / 2 + 0.5, "b c (h p) (w q) -> (b h w) (p q c)", p=p, q=p)
    kept = [count for count in KEPT if count <= codes.shape[1]]
    states = [
        inputs_of(decoder.ffn[0], lambda count=count: tokenizer.paint(codes[:, :count])).flatten(2).transpose(1, 2)
        for count in kept
    ]
    fit_by_least_squares(decoder.ffn[0], torch.cat(states).flatten(0, 1), pixels.repeat(len(kept), 1))


def _places(part: nn.Module, order: Tensor, place: int, grid: int, groups: int) -> tuple[Tensor, Tensor]:
    """Embeddings of class token and patches, and of tokens, that hold row and column as unit vectors."""
    width = part.positional_embedding.shape[1]
    rows, columns = torch.arange(grid**2) // grid, torch.arange(grid**2) % grid
    cells = torch.zeros(grid**2, width)
    cells[:, place : place + 2 * grid] = torch.cat([F.one_hot(rows, grid), F.one_hot(columns, grid)], 1).float()
    return F.pad(cells, (0, 0, 1, 0)), cells[order].repeat(groups, 1)


def _install(part: nn.Module, latents: Tensor | None, patches: Tensor, tokens: Tensor) -> None:
    part.positional_embedding.copy_(patches)
    part.latent_token_positional_embedding.copy_(tokens)
    nn.init.zeros_(part.class_embedding)
    if latents is not None:
        nn.init.zeros_(latents)


def _empty(part: nn.Module, groups: int) -> _Heads:
    width = part.positional_embedding.shape[1]
    size = width // groups
    shape = (groups, size, width)
    return _Heads(*(torch.zeros(shape) for _ in range(4)), torch.zeros(groups, size))


def _compare_places(heads: _Heads, place: int, grid: int, strength: float) -> None:
    heads.query[:, : 2 * grid, place : place + 2 * grid] = strength * torch.eye(2 * grid)
    heads.key[:, : 2 * grid, place : place + 2 * grid] = torch.eye(2 * grid)


def _write(part: nn.Module, heads: _Heads) -> None:
    """Install the first block's attention; all that follows begins with nothing to add."""
    block = part.transformer[0]
    block.attn.in_proj_weight.copy_(torch.cat([heads.query, heads.key, heads.value]).flatten(0, 1))
    nn.init.zeros_(block.attn.in_proj_bias)
    block.attn.in_proj_bias[: heads.query_bias.numel()] = heads.query_bias.flatten()
    block.attn.out_proj.weight.copy_(heads.out.flatten(0, 1).T)
    nn.init.zeros_(block.attn.out_proj.bias)
    for later in part.transformer[1:]:
        nn.init.zeros_(later.attn.out_proj.weight)
    for each in part.transformer:
        nn.init.zeros_(each.mlp.c_proj.weight)
        nn.init.zeros_(each.mlp.c_proj.bias)
