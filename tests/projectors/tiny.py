"""The real transformers classes at toy size with random weights, and inputs as their processors would make them."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE, PAD, VOCAB = 98, 0, 99
SIDE, PATCH = 24, 4  # 6x6 patches
GRID = SIDE // PATCH
PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72]]


def _text(config_class, **more):
    return config_class(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        **more,
    )


def _vision():
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_factor=4.0,
    )


def _built(model_class, config, attention: str):
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = model_class._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(4.0)  # attention and logits far from uniform
    model.generation_config.eos_token_id = None
    return model


def llava(attention: str = "sdpa"):
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=_vision(), text_config=_text(LlamaConfig), image_token_index=IMAGE, image_seq_length=GRID**2
    )
    return _built(LlavaForConditionalGeneration, config, attention)


def llava_next(attention: str = "sdpa"):
    from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=_vision(),
        text_config=_text(LlamaConfig),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=GRID**2,
    )
    return _built(LlavaNextForConditionalGeneration, config, attention)


def internvl(attention: str = "sdpa"):
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=[SIDE, SIDE],
        patch_size=[PATCH, PATCH],
        use_qk_norm=True,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=_text(Qwen2Config),
        image_token_id=IMAGE,
        image_seq_length=GRID**2 // 4,
        tie_word_embeddings=False,
    )
    return _built(InternVLForConditionalGeneration, config, attention)


def qwen2_vl(attention: str = "sdpa"):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        vision_config={"depth": 5, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 4},
        text_config=_text(dict, rope_parameters={"rope_type": "default", "mrope_section": [2, 2, 2]}),
        image_token_id=IMAGE,
        video_token_id=97,
        vision_start_token_id=96,
        vision_end_token_id=95,
    )
    return _built(Qwen2VLForConditionalGeneration, config, attention)


def prompts(rows: list[list[int]], lengths: list[tuple[int, int]], left: bool = True) -> dict[str, Tensor]:
    """Prompts of one row each: text, the placeholders of each of its pictures with one word between, text."""
    generator = torch.Generator().manual_seed(3)

    def words(n: int) -> list[int]:
        return torch.randint(3, 90, (n,), generator=generator).tolist()

    lines = []
    for pictures, (before, after) in zip(rows, lengths, strict=True):
        line = words(before)
        for count in pictures:
            line += [IMAGE] * count + words(1)
        lines.append(line + words(after))
    width = max(map(len, lines))
    ids, mask = torch.full((len(lines), width), PAD), torch.zeros(len(lines), width, dtype=torch.int64)
    for i, line in enumerate(lines):
        at = slice(width - len(line), width) if left else slice(0, len(line))
        ids[i, at], mask[i, at] = torch.tensor(line), 1
    return {"input_ids": ids, "attention_mask": mask}


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def llava_inputs(
    pictures: tuple[int, ...] = (1, 2), lengths=((4, 3), (2, 6)), left: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """A batch for :func:`llava`, with this many pictures in each row."""
    rows = [[GRID**2] * n for n in pictures]
    return prompts(rows, list(lengths), left) | {"pixel_values": pixels(sum(pictures), 3, SIDE, SIDE, seed=seed)}


def llava_next_inputs(
    sizes=((40, 40), (30, 70)), lengths=((4, 3), (2, 6)), left: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """A batch for :func:`llava_next`, with one picture of the given height and width in each row."""
    from transformers.image_processing_utils import select_best_resolution

    from vistok.models.families.plan import unpadded

    counts, views = [], []
    for size in sizes:
        height, width = (n // PATCH for n in select_best_resolution(size, PINPOINTS))
        top, bottom, left_, right = unpadded((height, width), size)
        counts.append([GRID**2 + (bottom - top) * (right - left_ + 1)])
        views.append(1 + height * width // GRID**2)
    padded = pixels(len(sizes), max(views), 3, SIDE, SIDE, seed=seed)
    return prompts(counts, list(lengths), left) | {"pixel_values": padded, "image_sizes": torch.tensor(sizes)}


def internvl_inputs(pictures=(1, 2), lengths=((4, 3), (2, 6)), left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`internvl`."""
    rows = [[GRID**2 // 4] * n for n in pictures]
    return prompts(rows, list(lengths), left) | {"pixel_values": pixels(sum(pictures), 3, SIDE, SIDE, seed=seed)}


def qwen2_vl_inputs(grids=((1, 4, 6), (1, 6, 4)), lengths=((4, 3), (2, 6)), left: bool = True) -> dict[str, Tensor]:
    """A batch for :func:`qwen2_vl`, with one picture in each row."""
    counts = [[t * h * w // 4] for t, h, w in grids]
    inputs = prompts(counts, list(lengths), left)
    return inputs | {
        "pixel_values": pixels(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }
