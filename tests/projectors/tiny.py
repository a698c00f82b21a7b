"""The real transformers classes at toy size with random weights, and inputs as their processors would make them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGE, PAD, VOCAB = 98, 0, 99
SIDE, PATCH = 24, 4  # 6x6 patches
GRID = SIDE // PATCH
PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72]]
LENGTHS = ((4, 3), (2, 6))  # words before and after the pictures of each row


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


def _vision(config_class, **more):
    return config_class(hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, **more)


def _clip():
    from transformers import CLIPVisionConfig

    return _vision(CLIPVisionConfig, image_size=SIDE, patch_size=PATCH, initializer_factor=4.0)


def _siglip():
    from transformers import SiglipVisionConfig

    return _vision(SiglipVisionConfig, image_size=SIDE, patch_size=PATCH, vision_use_head=False)


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
        vision_config=_clip(), text_config=_text(LlamaConfig), image_token_index=IMAGE, image_seq_length=GRID**2
    )
    return _built(LlavaForConditionalGeneration, config, attention)


def llava_next(attention: str = "sdpa"):
    from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=_text(LlamaConfig),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=GRID**2,
    )
    return _built(LlavaNextForConditionalGeneration, config, attention)


def internvl(attention: str = "sdpa"):
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    patches = {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    vision = _vision(InternVLVisionConfig, **patches, use_qk_norm=True)
    config = InternVLConfig(
        vision_config=vision,
        text_config=_text(Qwen2Config),
        image_token_id=IMAGE,
        image_seq_length=GRID**2 // 4,
        tie_word_embeddings=False,
    )
    return _built(InternVLForConditionalGeneration, config, attention)


QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 97, "vision_start_token_id": 96, "vision_end_token_id": 95}
QWEN_TOWER = {"depth": 5, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4}
QWEN_TOWER |= {"out_hidden_size": 48}
QWEN_ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2]}


def qwen2_vl(attention: str = "sdpa"):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        vision_config={"depth": 5, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 4},
        text_config=_text(dict, rope_parameters=dict(QWEN_ROPE)),
        **QWEN_IDS,
    )
    return _built(Qwen2VLForConditionalGeneration, config, attention)


def qwen2_5_vl(attention: str = "sdpa"):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config=QWEN_TOWER | {"window_size": 16, "fullatt_block_indexes": [2, 4]},
        text_config=_text(dict, rope_parameters=dict(QWEN_ROPE)),
        **QWEN_IDS,
    )
    return _built(Qwen2_5_VLForConditionalGeneration, config, attention)


def qwen3_vl(attention: str = "sdpa"):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        vision_config=QWEN_TOWER | {"deepstack_visual_indexes": [1, 3], "num_position_embeddings": 64},
        text_config=_text(dict, head_dim=12, rope_parameters=dict(QWEN_ROPE)),
        **QWEN_IDS,
    )
    return _built(Qwen3VLForConditionalGeneration, config, attention)


def llava_onevision(attention: str = "sdpa"):
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

    config = LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=_text(Qwen2Config),
        image_token_index=IMAGE,
        video_token_index=97,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
        tie_word_embeddings=False,
    )
    return _built(LlavaOnevisionForConditionalGeneration, config, attention)


def gemma3(attention: str = "sdpa"):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        vision_config=_siglip(),
        text_config=_text(dict, head_dim=12, sliding_window=16, sliding_window_pattern=2),
        mm_tokens_per_image=9,
        image_token_index=IMAGE,
        boi_token_index=96,
        eoi_token_index=95,
    )
    model = _built(Gemma3ForConditionalGeneration, config, attention)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.5)  # zeros until trained
    return model


def paligemma(attention: str = "sdpa"):
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    text = _text(dict, head_dim=12, model_type="gemma")
    config = PaliGemmaConfig(vision_config=_siglip(), text_config=text, image_token_index=IMAGE, projection_dim=48)
    return _built(PaliGemmaForConditionalGeneration, config, attention)


def _idefics3(config_class, model_class, vision_class, attention):
    from transformers import LlamaConfig

    vision = _vision(vision_class, image_size=SIDE, patch_size=PATCH)
    config = config_class(
        vision_config=vision, text_config=_text(LlamaConfig), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
    )
    return _built(model_class, config, attention)


def idefics3(attention: str = "sdpa"):
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration
    from transformers.models.idefics3 import Idefics3VisionConfig

    return _idefics3(Idefics3Config, Idefics3ForConditionalGeneration, Idefics3VisionConfig, attention)


def smolvlm(attention: str = "sdpa"):
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm import SmolVLMVisionConfig

    return _idefics3(SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMVisionConfig, attention)


def mistral3(attention: str = "sdpa"):
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    vision = _vision(PixtralVisionConfig, image_size=2 * SIDE, patch_size=PATCH)
    text = _text(MistralConfig, head_dim=12, sliding_window=None)
    config = Mistral3Config(
        vision_config=vision, text_config=text, image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-1
    )
    return _built(Mistral3ForConditionalGeneration, config, attention)


def _cohere2(**more):
    return _text(dict, model_type="cohere2", sliding_window=16, **more)


def aya_vision(attention: str = "sdpa"):
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration

    config = AyaVisionConfig(vision_config=_siglip(), text_config=_cohere2(), image_token_index=IMAGE)
    return _built(AyaVisionForConditionalGeneration, config, attention)


def cohere2_vision(attention: str = "sdpa"):
    from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration

    config = Cohere2VisionConfig(
        vision_config=_siglip(), text_config=_cohere2(), image_token_id=IMAGE, alignment_intermediate_size=64
    )
    return _built(Cohere2VisionForConditionalGeneration, config, attention)


def glm4v(attention: str = "sdpa"):
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    config = Glm4vConfig(
        vision_config=QWEN_TOWER | {"image_size": SIDE},
        text_config=_text(dict, rope_parameters=dict(QWEN_ROPE)),
        image_token_id=IMAGE,
        video_token_id=97,
        image_start_token_id=96,
        image_end_token_id=95,
        video_start_token_id=94,
        video_end_token_id=93,
    )
    return _built(Glm4vForConditionalGeneration, config, attention)


def lfm2_vl(attention: str = "sdpa"):
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

    vision = _vision(Siglip2VisionConfig, patch_size=PATCH, num_patches=GRID**2, vision_use_head=False)
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    text = _text(dict, model_type="lfm2", layer_types=kinds, block_auto_adjust_ff_dim=False)
    config = Lfm2VlConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, projector_hidden_size=64)
    return _built(Lfm2VlForConditionalGeneration, config, attention)


def perception_lm(attention: str = "sdpa"):
    from transformers import LlamaConfig, PerceptionLMConfig, PerceptionLMForConditionalGeneration, TimmWrapperConfig

    tower = {"img_size": [SIDE, SIDE], "patch_size": PATCH, "embed_dim": 32, "depth": 5, "num_heads": 4}
    tower |= {"global_pool": "", "ref_feat_shape": [GRID, GRID], "use_post_transformer_norm": False}
    vision = TimmWrapperConfig(architecture="vit_pe_core_large_patch14_336", model_args=tower)
    config = PerceptionLMConfig(
        vision_config=vision,
        text_config=_text(LlamaConfig),
        image_token_id=IMAGE,
        video_token_id=97,
        projector_pooling_ratio=2,
    )
    return _built(PerceptionLMForConditionalGeneration, config, attention)


def fast_vlm(attention: str = "sdpa"):
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, Qwen2Config, TimmWrapperConfig

    tower = {"layers": [1, 1, 1, 1], "embed_dims": [32, 32, 32, 32], "mlp_ratios": [1, 1, 1, 1]}
    vision = TimmWrapperConfig(architecture="fastvit_mci0", hidden_size=64, model_args=tower)
    config = FastVlmConfig(vision_config=vision, text_config=_text(Qwen2Config), image_token_index=IMAGE)
    model = _built(FastVlmForConditionalGeneration, config, attention)
    for parameter in model.model.vision_tower.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)  # by timm all places look alike
    return model


def prompts(rows: list[list[int]], lengths: Sequence[tuple[int, int]], left: bool = True) -> dict[str, Tensor]:
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


def _tiled(counts, tokens, lengths, left, seed, side=SIDE):
    """A batch whose pictures, or tiles of pictures, have as many tokens each and stand one after the other."""
    inputs = prompts([[tokens] * n for n in counts], lengths, left)
    return inputs | {"pixel_values": pixels(sum(counts), 3, side, side, seed=seed)}


def llava_inputs(pictures=(1, 2), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`llava`, with this many pictures in each row."""
    return _tiled(pictures, GRID**2, lengths, left, seed)


def internvl_inputs(pictures=(1, 2), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`internvl`."""
    return _tiled(pictures, GRID**2 // 4, lengths, left, seed)


def aya_vision_inputs(tiles=(1, 2), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`aya_vision`: tiles of all rows one after the other."""
    return _tiled(tiles, GRID**2 // 4, lengths, left, seed)


cohere2_vision_inputs = aya_vision_inputs


def fast_vlm_inputs(pictures=(1, 2), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`fast_vlm`: pictures whose sides its tower divides by 32."""
    return _tiled(pictures, 16, lengths, left, seed, side=128)


def gemma3_inputs(pictures=(1, 2), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`gemma3`, whose types say which tokens are pictures."""
    inputs = _tiled(pictures, 9, lengths, left, seed)
    return inputs | {"token_type_ids": (inputs["input_ids"] == IMAGE).int()}


def paligemma_inputs(pictures=(1, 2), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`paligemma`; all of the prompt is prefix."""
    inputs = _tiled(pictures, GRID**2, lengths, left, seed)
    return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


def _cropped(sizes, lengths, left, seed, tokens):
    """A batch with one picture of the given height and width in each row: a thumbnail, and crops of a canvas that have
    as many tokens as ``tokens`` says of its rows and columns."""
    from transformers.image_processing_utils import select_best_resolution

    from vistok.models.families.plan import unpadded

    counts, views = [], []
    for size in sizes:
        height, width = (n // PATCH for n in select_best_resolution(size, PINPOINTS))
        top, bottom, left_, right = unpadded((height, width), size)
        counts.append([GRID**2 + tokens(bottom - top, right - left_)])
        views.append(1 + height * width // GRID**2)
    padded = pixels(len(sizes), max(views), 3, SIDE, SIDE, seed=seed)
    return prompts(counts, lengths, left) | {"pixel_values": padded, "image_sizes": torch.tensor(sizes)}


def llava_next_inputs(
    sizes=((40, 40), (30, 70)), lengths=LENGTHS, left: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """A batch for :func:`llava_next`, with one picture of the given height and width in each row."""
    return _cropped(sizes, lengths, left, seed, lambda rows, cols: rows * (cols + 1))


def llava_onevision_inputs(
    sizes=((40, 40), (24, 24)), lengths=LENGTHS, left: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """A batch for :func:`llava_onevision`: a canvas that is shrunk, and one that is not."""

    def shrunk(rows: int, cols: int) -> int:
        ratio = (rows * cols / (2 * GRID**2)) ** 0.5
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
        return rows * (cols + 1)

    return _cropped(sizes, lengths, left, seed, shrunk)


def qwen2_vl_inputs(grids=((1, 4, 6), (1, 6, 4)), lengths=LENGTHS, left: bool = True) -> dict[str, Tensor]:
    """A batch for :func:`qwen2_vl`, with one picture in each row."""
    inputs = prompts([[t * h * w // 4] for t, h, w in grids], lengths, left)
    return inputs | {
        "pixel_values": pixels(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE).int(),
    }


qwen2_5_vl_inputs = qwen3_vl_inputs = glm4v_inputs = qwen2_vl_inputs


def _side_by_side(tiles, lengths, left, seed):
    """A batch whose rows hold their tiles side by side, a quarter of the patches of each as tokens."""
    inputs = prompts([[GRID**2 // 4] * n for n in tiles], lengths, left)
    return inputs | {"pixel_values": pixels(len(tiles), max(tiles), 3, SIDE, SIDE, seed=seed)}


def idefics3_inputs(tiles=(1, 3), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`idefics3`: tiles of a row side by side, those that are missing black."""
    inputs = _side_by_side(tiles, lengths, left, seed)
    for row, n in zip(inputs["pixel_values"], tiles, strict=True):
        row[n:] = 0.0
    return inputs | {"pixel_attention_mask": torch.ones(len(tiles), max(tiles), SIDE, SIDE, dtype=torch.int64)}


smolvlm_inputs = idefics3_inputs


def perception_lm_inputs(tiles=(1, 1), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`perception_lm`: tiles of a row side by side, as many in each."""
    return _side_by_side(tiles, lengths, left, seed)


def mistral3_inputs(sizes=((16, 24), (24, 16)), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`mistral3`, with one picture in each row and a break after each row of its tokens."""
    block = 2 * PATCH
    inputs = prompts([[w // block] * (h // block) for h, w in sizes], lengths, left)
    values = pixels(len(sizes), 3, 24, 24, seed=seed)
    return inputs | {"pixel_values": values, "image_sizes": torch.tensor(sizes)}


def lfm2_vl_inputs(shapes=((4, 6), (6, 2)), lengths=LENGTHS, left: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch for :func:`lfm2_vl`, with one picture of the given rows and columns of patches in each row."""
    inputs = prompts([[h * w // 4] for h, w in shapes], lengths, left)
    most = max(h * w for h, w in shapes)
    mask = torch.stack([(torch.arange(most) < h * w).long() for h, w in shapes])
    return inputs | {
        "pixel_values": pixels(len(shapes), most, 3 * PATCH**2, seed=seed),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor(shapes),
    }
