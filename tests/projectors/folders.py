"""The toy models of :mod:`tests.projectors.tiny` saved with real processors, as a user's folder would be."""

from __future__ import annotations

from pathlib import Path

from tests.projectors import tiny

SIZE = {"height": tiny.SIDE, "width": tiny.SIDE}


def _tokenizer(**special: str):
    """Words w3..w94 and four special tokens, at the ids that the toy configurations name."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = ["<end>", "<start>", "<video>", "<image>"]
    words = ["<pad>", "<s>", "<unk>", *(f"w{i}" for i in range(3, tiny.IMAGE - 3)), *named]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": named})
    return tokenizer


def _llava():
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(size={"shortest_edge": tiny.SIDE}, crop_size=SIZE)
    return LlavaProcessor(images, _tokenizer(), tiny.PATCH, "default", num_additional_image_tokens=1)


def _llava_next():
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(
        size={"shortest_edge": tiny.SIDE}, crop_size=SIZE, image_grid_pinpoints=tiny.PINPOINTS
    )
    return LlavaNextProcessor(images, _tokenizer(), tiny.PATCH, "default", num_additional_image_tokens=1)


def _internvl():
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tokenizer = _tokenizer(
        start_image_token="<start>", end_image_token="<end>", context_image_token="<image>", video_token="<video>"
    )
    images = GotOcr2ImageProcessor(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=6)
    videos = InternVLVideoProcessor(size=SIZE)
    return InternVLProcessor(images, tokenizer, videos, image_seq_length=tiny.GRID**2 // 4)


def _qwen2_vl():
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    sizes = {"patch_size": 4, "merge_size": 2}
    images = Qwen2VLImageProcessor(**sizes, min_pixels=256, max_pixels=4096)
    chat = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<start> <image> <end> {% else %}{{ c['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}"
    )
    return Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=chat)


PROCESSORS = {"llava": _llava, "llava_next": _llava_next, "internvl": _internvl, "qwen2_vl": _qwen2_vl}


def save(name: str, folder: Path) -> Path:
    """Write the model of a family and its processor, and return the folder."""
    getattr(tiny, name)().save_pretrained(folder)
    PROCESSORS[name]().save_pretrained(folder)
    return folder
