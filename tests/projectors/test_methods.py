"""The methods on bare tensors and described pictures: what each must keep, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vistok.errors import VistokError
from vistok.models.families.attention import LayerAttention
from vistok.models.families.plan import crops_plan, single_view_plan, unpadded
from vistok.projectors import (
    COMPRESSORS,
    CDPruner,
    CorrelationGuided,
    Coverage,
    DivPrune,
    GlobalCom2,
    PruMerge,
    Random,
    TokenPacker,
    ToMe,
    Uniform,
    VisionZip,
    VtcCls,
    compressor_class,
)
from vistok.projectors.apply.layout import pack
from vistok.projectors.apply.shrink import shrink_prompts
from vistok.projectors.interface import LEADING, TRAILING, Canvas, ImageTokens, Kept
from vistok.projectors.methods.baselines import lattice
from vistok.projectors.methods.cdpruner import greedy_map
from vistok.projectors.methods.coverage import cell_of_patch
from vistok.projectors.methods.divprune import cosine_distance, max_min_order
from vistok.projectors.methods.prumerge import outlier_count
from vistok.projectors.methods.tome import merge_tokens

LAYERS, SIDE, WIDTH = 6, 8, 12


def picture(canvas: Canvas | None = None, seed: int = 0, side: int = SIDE) -> tuple[ImageTokens, object]:
    generator = torch.Generator().manual_seed(seed)
    views = 1 if canvas is None else 1 + canvas.rows * canvas.cols
    tokens = side * side
    plan = single_view_plan(tokens) if canvas is None else crops_plan((side, side), canvas)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    image = ImageTokens(
        hidden=random(views, tokens, WIDTH),
        grid=(side, side),
        project=torch.nn.Identity(),
        layers=LAYERS,
        valid=plan.valid(views, tokens),
        cls=random(views, 1, WIDTH),
        canvas=canvas,
        newline=torch.full((WIDTH,), 7.0),
        attention={i: LayerAttention(random(views, 1, 8), random(views, tokens + 1, 8), 2) for i in range(LAYERS)},
    )
    return image, plan


PADDED = Canvas(2, 2, *unpadded((2 * SIDE, 2 * SIDE), (500, 672)))
METHODS = [
    VtcCls(0.25),
    Coverage(0.25),
    VisionZip(0.25),
    DivPrune(0.25),
    PruMerge(0.25),
    ToMe(0.25),
    Uniform(0.25),
    Random(0.25),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("canvas", [None, PADDED], ids=["view", "crops"])
def test_budgets_are_met_within_the_picture(method, canvas):
    image, plan = picture(canvas)
    kept = method.select(image)
    for view, valid in zip(kept, image.valid, strict=True):
        assert len(view.index) == round(0.25 * int(valid.sum()))
        patches = view.index[view.index >= 0]
        assert valid[patches].all()
        assert patches.unique().numel() == patches.numel()
    packed = pack(image, plan, kept, method.newlines)
    assert packed.features.shape == (len(packed.index), WIDTH)
    assert (packed.offsets.diff() >= 0).all()


@given(rows=st.integers(1, 12), cols=st.integers(1, 12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_lattice_has_distinct_cells_of_the_grid(rows, cols, data):
    count = data.draw(st.integers(1, rows * cols))
    cells = lattice(rows, cols, count)
    assert cells.shape == (count,)
    assert int(cells.min()) >= 0 and int(cells.max()) < rows * cols
    assert (cells.diff() > 0).all()


def test_vtc_cls_keeps_what_cls_attends_to():
    image, _ = picture()
    wanted = torch.tensor([3, 17, 40])
    for layer in image.attention.values():
        layer.keys[0, wanted + 1] = 4 * layer.query[0, 0]
    assert VtcCls(3, start=1).select(image)[0].index.tolist() == wanted.tolist()


@pytest.mark.parametrize("text", [None, torch.zeros(0, WIDTH)], ids=["unknown", "empty"])
def test_cdpruner_without_a_question_says_so(text):
    """All tokens bear on it alike: the choice of a relevance of one."""
    image, _ = picture()
    image.text = text
    with pytest.warns(UserWarning, match="no text"):
        (kept,) = CDPruner(9).select(image)
    (order,) = greedy_map(image.features, torch.ones_like(image.valid, dtype=torch.float32), 9)
    assert kept.index.tolist() == order.sort().values.tolist()


def test_coverage_leaves_no_cell_empty():
    image, _ = picture()
    for layer in image.attention.values():
        layer.keys[0, 1:9] = 6 * layer.query[0, 0]  # all attention on the first row
    cell = cell_of_patch((SIDE, SIDE), 8)
    assert cell[VtcCls(16, start=1).select(image)[0].index].unique().numel() < 8
    assert cell[Coverage(16, start=1).select(image)[0].index].unique().numel() == int(cell.max()) + 1 == 8


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_max_min_order_is_the_greedy_of_the_paper(seed):
    """Against the definition, which looks at the whole distance matrix at each pick."""
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distance = cosine_distance(features)
    nearest = (distance + torch.eye(20) * 1e9).amin(1)
    picks = [int(nearest.argmax())]
    while len(picks) < 7:
        left = [i for i in range(20) if i not in picks]
        picks.append(max(left, key=lambda i: float(distance[i, picks].min())))
    assert max_min_order(distance[None], 7)[0].tolist() == picks


def test_prumerge_plus_adds_evenly_spaced_tokens():
    image, _ = picture(side=24)
    alone, plus = PruMerge().select(image)[0], PruMerge(plus=True).select(image)[0]
    assert set(alone.index.tolist()) < set(plus.index.tolist())
    number = outlier_count(image.attention[LAYERS - 1].full_width_attention()[0])
    stride = (24 * 24 // number) // 3
    assert set(range(0, 24 * 24, stride)) <= set(plus.index.tolist())
    with pytest.raises(VistokError, match="leave keep out"):
        PruMerge(keep=3, plus=True)


def test_merging_keeps_the_size_weighted_mean():
    x, size = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(1)), torch.ones(2, 16, 1)
    for _ in range(3):
        merged = merge_tokens(x, size, x, 4)
        torch.testing.assert_close((merged.x * merged.size).sum(1), (x * size).sum(1))
        assert merged.size.sum() == 32
        x, size = merged.x, merged.size


def test_blank_crops_of_a_document_keep_less():
    image, _ = picture()
    method = CorrelationGuided(similarity=0.9, duplicates=4)
    busy = len(method.select(image)[0].index)
    image.attention[LAYERS - 2].keys[0, 1:50] = torch.ones(8)
    assert len(method.select(image)[0].index) == busy - 49


def test_globalcom2_by_default_keeps_tokens_where_they_are():
    """In padded crops the released code moves tokens; ours keeps each at its own patch."""
    image, plan = picture(PADDED)
    kept = GlobalCom2(0.25).select(image)
    for view, valid in zip(kept, image.valid, strict=True):
        assert valid[view.index].all()
    packed = pack(image, plan, kept, "all")
    assert int((packed.index == -3).sum()) == PADDED.bottom - PADDED.top
    released = GlobalCom2(0.25, reference=True).select(image)
    assert len(released) == len(packed.features) + 2 * SIDE - (PADDED.bottom - PADDED.top)
    with pytest.raises(VistokError, match="share"):
        GlobalCom2(64)


def test_row_ends_follow_their_rows():
    image, plan = picture(PADDED)
    nothing = torch.empty(0, dtype=torch.int64)
    one = [Kept(torch.arange(64)), Kept(torch.tensor([63])), *[Kept(nothing)] * 3]
    counts = {policy: int((pack(image, plan, one, policy).index == -3).sum()) for policy in ("rows", "all", "none")}
    assert counts == {"rows": 1, "all": PADDED.bottom - PADDED.top, "none": 0}
    with pytest.raises(VistokError, match="padding"):
        pack(image, plan, [Kept(nothing), Kept(torch.tensor([0])), *[Kept(nothing)] * 3], "rows")


def test_tokens_of_no_place_stand_before_and_after():
    image, plan = picture()
    kept = [Kept(torch.tensor([TRAILING, 5, LEADING, 2]), torch.arange(4.0)[:, None].expand(-1, WIDTH))]
    packed = pack(image, plan, kept, "rows")
    assert packed.features[:, 0].tolist() == [2, 3, 1, 0]
    assert packed.index.tolist() == [LEADING, 2, 5, TRAILING]


def test_prompts_shrink_around_adjacent_pictures():
    ids = torch.tensor([[0, 5, 9, 9, 9, 9, 6], [9, 9, 7, 8, 5, 4, 3]])
    mask = (ids != 0).long()
    offsets = [torch.tensor([1.0]), torch.tensor([-0.5, 0.0]), torch.tensor([0.0, 1.0, 1.5])]
    shrunk = shrink_prompts(ids, mask, 9, [2, 2, 2], offsets, left=True)
    assert shrunk.mask.sum(1).tolist() == [5, 8]
    assert shrunk.columns[0, 3:].tolist() == [1, 3, 4, 4, 6]
    assert shrunk.columns[1].tolist() == [0, 1, 1, 2, 3, 4, 5, 6]
    assert shrunk.take(ids, 0)[0].tolist() == [0, 0, 0, 5, 9, 9, 9, 6]
    right = shrink_prompts(ids, mask, 9, [2, 2, 2], offsets, left=False)
    assert right.mask[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    with pytest.raises(VistokError, match="6 image placeholders"):
        shrink_prompts(ids, mask, 9, [2, 2], offsets[:2], left=True)
    with pytest.raises(VistokError, match="two prompts"):
        shrink_prompts(ids, mask, 9, [2, 3, 1], offsets, left=True)


def test_tokenpacker_loads_published_layout_strictly(tmp_path):
    module = TokenPacker(raw_grid=6, embed_dim=16, num_heads=1, hidden_size=20, scale_factor=2)
    state = module.state_dict()
    assert len(state) == 23
    file = tmp_path / "projector.safetensors"
    save_file({f"model.mm_projector.{k}": v.contiguous() for k, v in state.items()} | {"model.x": torch.ones(1)}, file)
    loaded = TokenPacker.from_checkpoint(file, scale_factor=2, raw_grid=6)
    x, fine = torch.randn(2, 36, 16), torch.randn(2, 36, 64)
    torch.testing.assert_close(loaded(x, fine), module(x, fine))
    state.pop("ln_q_1.bias")
    save_file({k: v.contiguous() for k, v in state.items()}, file)
    with pytest.raises(VistokError, match=r"ln_q_1\.bias"):
        TokenPacker.from_checkpoint(file, scale_factor=2, raw_grid=6)
    save_file({"linear.weight": torch.ones(1)}, file)
    with pytest.raises(VistokError, match="no TokenPacker"):
        TokenPacker.from_checkpoint(file, scale_factor=2)


@pytest.mark.parametrize("keep", [0, -3, 1.5, 0.0, True, "64", None])
def test_bad_budgets_are_refused(keep):
    with pytest.raises(VistokError, match="keep is"):
        VtcCls(keep)


def test_names():
    assert all(kind.name == name for name, kind in COMPRESSORS.items())
    with pytest.raises(VistokError, match="did you mean vtc-cls"):
        compressor_class("vtc_cls")
    with pytest.raises(VistokError, match="start=-2"):
        VtcCls(4, start=-1).needs(6)
