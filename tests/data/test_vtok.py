"""The .vtok format: exact round trips, and no damaged, foreign or nonsensical file is read."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.tiles import Tiling
from vistok.data.vtok import TokenFile, bits_per_token, pack, read_vtok, unpack, write_vtok
from vistok.errors import VistokError

DIGEST = hashlib.sha256(b"weights").hexdigest()


def _file(count: int = 12, size: int = 1000, shape: tuple[int, ...] = (4, 4)) -> TokenFile:
    tokens = torch.randint(size, (count,), generator=torch.Generator().manual_seed(count))
    return TokenFile("vq-mini", DIGEST, size, shape, tokens)


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (4096, 12), (4097, 13), (64000, 16), (32768, 15)])
def test_bits_are_the_logarithm_rounded_up(size, bits):
    assert bits_per_token(size) == bits


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 2**31))
def test_tokens_survive_packing_at_exactly_their_bits(data, size):
    tokens = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40))
    bits = bits_per_token(size)
    packed = pack(torch.tensor(tokens), bits)
    assert len(packed) == -(-len(tokens) * bits // 8)
    assert unpack(packed, bits, len(tokens)).tolist() == tokens


@settings(max_examples=50, deadline=None)
@given(
    name=st.text(min_size=1, max_size=40).filter(lambda text: len(text.encode("utf-8", "ignore")) < 200),
    size=st.integers(1, 2**20),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    data=st.data(),
)
def test_files_survive_the_way_through_bytes(name, size, shape, data):
    room = torch.Size(shape).numel()
    tokens = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=room))
    name = name.encode("utf-8", "ignore").decode()
    written = TokenFile(name, DIGEST, size, tuple(shape), torch.tensor(tokens))
    read = TokenFile.from_bytes(written.to_bytes())
    assert (read.tokenizer, read.sha256, read.codebook_size, read.shape) == (name, DIGEST, size, tuple(shape))
    assert read.tokens.tolist() == tokens


def test_a_tokenizer_whose_folder_has_a_name_that_is_no_text_writes_files():
    name = os.fsdecode(b"caf\xe9")
    assert TokenFile.from_bytes(replace(_file(), tokenizer=name).to_bytes()).tokenizer == "caf?"


def test_the_layout_is_the_documented_one():
    content = TokenFile("ab", DIGEST, 4096, (256,), torch.tensor([0xABC, 0x123, 0xF]))
    body = b"VTOK" + bytes([1, 2]) + b"ab" + bytes.fromhex(DIGEST) + struct.pack("<IIBI", 4096, 3, 1, 256)
    body += bytes.fromhex("ABC12300F0")
    assert content.to_bytes() == body + hashlib.blake2b(body, digest_size=16).digest()


def test_write_and_read(tmp_path):
    path = tmp_path / "a.vtok"
    assert write_vtok(path, _file()) == path.stat().st_size
    assert torch.equal(read_vtok(path).tokens, _file().tokens)
    with pytest.raises(VistokError, match="cannot read"):
        read_vtok(tmp_path / "absent.vtok")


def test_every_truncation_and_every_changed_byte_is_found():
    data = _file().to_bytes()
    for length in range(len(data)):
        with pytest.raises(VistokError, match=r"truncated or was changed|is not a \.vtok file"):
            TokenFile.from_bytes(data[:length])
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x10
        with pytest.raises(VistokError, match=r"truncated or was changed|is not a \.vtok file"):
            TokenFile.from_bytes(bytes(changed))
    with pytest.raises(VistokError, match="truncated or was changed"):
        TokenFile.from_bytes(data + b"\0")


def _signed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=16).digest()


def test_what_has_a_right_checksum_but_makes_no_sense_is_refused():
    body = _file().to_bytes()[:-16]
    with pytest.raises(VistokError, match="of version 9, expected 1"):
        TokenFile.from_bytes(_signed(body[:4] + b"\x09" + body[5:]))
    with pytest.raises(VistokError, match="header that makes no sense"):
        TokenFile.from_bytes(_signed(body + b"\0"))
    with pytest.raises(VistokError, match="header that makes no sense"):
        TokenFile.from_bytes(_signed(body[:20]))
    at = 4 + 2 + len("vq-mini") + 32
    small = body[:at] + struct.pack("<I", 513) + body[at + 4 :]  # as many bits, fewer codes
    with pytest.raises(VistokError, match="outside the codebook of 513"):
        TokenFile.from_bytes(_signed(small))
    short = body[: at + 9] + struct.pack("<II", 2, 2) + body[at + 17 :]
    with pytest.raises(VistokError, match="hold 12 tokens, but the shape"):
        TokenFile.from_bytes(_signed(short))


@pytest.mark.parametrize("tokens", [[-1], [1000], [], [0] * 17])
def test_impossible_tokens_are_not_written(tokens):
    with pytest.raises(VistokError, match="hold"):
        TokenFile("vq-mini", DIGEST, 1000, (4, 4), torch.tensor(tokens, dtype=torch.long)).to_bytes()


def test_another_tokenizer_is_refused():
    _file().check_tokenizer("renamed", DIGEST)
    with pytest.raises(VistokError, match=r"was made by 'vq-mini' \(weights .*\), not by 'other'"):
        _file().check_tokenizer("other", "0" * 64)


@pytest.mark.parametrize(
    ("tokens", "size", "culprit"),
    [
        (torch.rand(4), 8, "float32"),
        (torch.zeros(2, 2, dtype=torch.long), 8, r"\[2, 2\]"),
        (torch.zeros(4, dtype=torch.long), 0, "of 0 codes"),
        (torch.zeros(4, dtype=torch.long), 2**32, "4294967296 codes"),
    ],
)
def test_what_is_no_row_of_indices_is_refused(tokens, size, culprit):
    with pytest.raises(VistokError, match=culprit):
        TokenFile("x", "ab" * 32, size, (4,), tokens).to_bytes()


def _tiled(count: int = 12) -> TokenFile:
    tiling = Tiling(40, 100, 32, 8)  # 2 x 4 tiles
    tokens = torch.randint(1000, (8 * count,), generator=torch.Generator().manual_seed(count))
    return TokenFile("one-d-piece-mini", DIGEST, 1000, (16,), tokens, tiling)


def test_tiles_survive_the_way_through_bytes():
    written = _tiled()
    read = TokenFile.from_bytes(written.to_bytes())
    assert read.tiling == written.tiling and read.parts == 8 and torch.equal(read.tokens, written.tokens)
    whole = TokenFile(written.tokenizer, DIGEST, 1000, (96,), written.tokens)
    assert len(written.to_bytes()) == len(whole.to_bytes()) + 16
    assert _file().to_bytes()[4] == 1 and written.to_bytes()[4] == 2, "pictures without tiles stay readable everywhere"


@pytest.mark.parametrize(
    "tiling",
    [Tiling(40, 64, 32, 0), Tiling(4_000_000_000, 4_000_000_000, 1, 0), Tiling(1, 1, 1, 0)],
    ids=["fewer", "no end of them", "one"],
)
def test_tokens_that_do_not_fill_the_tiles_are_refused(tiling):
    with pytest.raises(VistokError, match="tokens"):
        replace(_tiled(11), tiling=tiling).to_bytes()


def test_a_header_of_impossible_tiles_is_refused():
    body = bytearray(_tiled().to_bytes()[:-16])
    at = len(body) - 16 - (96 * 10 + 7) // 8
    body[at : at + 16] = struct.pack("<4I", 40, 100, 32, 31)
    with pytest.raises(VistokError, match="header"):
        TokenFile.from_bytes(bytes(body) + hashlib.blake2b(body, digest_size=16).digest())
