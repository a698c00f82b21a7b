"""The toy models of :mod:`tests.projectors.tiny` saved with real processors, as a user's folder would be."""

from __future__ import annotations

from pathlib import Path

from tests.projectors import tiny

SIZE = {"height": tiny.SIDE, "width": tiny.SIDE}


def _tokenizer(**special: str):
    """Words and special tokens, the last four at the ids that the toy configurations name."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = ["<fake_token_around_image>", "<end_of_utterance>", "<end>", "<start>", "<video>", "<image>"]
    words = ["<pad>", "<s>", "<unk>", *(f"w{i}" for i in range(3, tiny.IMAGE + 1 - len(named))), *named]
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


CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start> <image> <end> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def _qwen(processor_class, video_class):
    from transformers import Qwen2VLImageProcessor

    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    sizes = {"patch_size": 4, "merge_size": 2}
    images = Qwen2VLImageProcessor(**sizes, min_pixels=256, max_pixels=4096)
    return processor_class(images, tokenizer, video_class(**sizes), chat_template=CHAT)


def _qwen2_vl():
    from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor

    return _qwen(Qwen2VLProcessor, Qwen2VLVideoProcessor)


def _qwen2_5_vl():
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    return _qwen(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)


def _qwen3_vl():
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    return _qwen(Qwen3VLProcessor, Qwen3VLVideoProcessor)


def _llava_onevision():
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    images = LlavaOnevisionImageProcessor(size=SIZE, image_grid_pinpoints=tiny.PINPOINTS)
    videos = LlavaOnevisionVideoProcessor(size=SIZE)
    more = {"num_image_tokens": tiny.GRID**2, "vision_feature_select_strategy": "full"}
    return LlavaOnevisionProcessor(images, _tokenizer(), videos, vision_aspect_ratio="anyres_max_2", **more)


def _gemma3():
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    tokenizer = _tokenizer(boi_token="<start>", eoi_token="<end>", image_token="<image>")
    chat = CHAT.replace("<start> <image> <end>", "<start>")
    return Gemma3Processor(Gemma3ImageProcessor(size=SIZE), tokenizer, chat_template=chat, image_seq_length=9)


def _idefics3():
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    side = {"longest_edge": tiny.SIDE}
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * tiny.SIDE}, max_image_size=side)
    chat = CHAT.replace("<start> <image> <end>", "<image>")
    return Idefics3Processor(images, _tokenizer(), image_seq_len=tiny.GRID**2 // 4, chat_template=chat)


def _mistral3():
    from transformers import PixtralImageProcessor, PixtralProcessor

    images = PixtralImageProcessor(size={"longest_edge": 2 * tiny.SIDE}, patch_size=tiny.PATCH)
    words = {"image_token": "<image>", "image_break_token": "<start>", "image_end_token": "<end>"}
    chat = CHAT.replace("<start> <image> <end>", "<image>")
    return PixtralProcessor(images, _tokenizer(), tiny.PATCH, 2, chat_template=chat, **words)


def _tiles(**special: str):
    """The parts of processors that cut square tiles as GOT-OCR 2 does, with the whole picture last."""
    from transformers import GotOcr2ImageProcessor

    return GotOcr2ImageProcessor(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=6), _tokenizer(**special)


def _aya_vision():
    from transformers import AyaVisionProcessor

    words = {"image_token": "<fake_token_around_image>", "img_patch_token": "<image>"}
    words |= {"start_of_img_token": "<start>", "end_of_img_token": "<end>"}
    chat = CHAT.replace("<start> <image> <end>", "<fake_token_around_image>")
    sizes = {"patch_size": tiny.PATCH, "img_size": tiny.SIDE, "downsample_factor": 2}
    return AyaVisionProcessor(*_tiles(), **sizes, **words, chat_template=chat)


def _cohere2_vision():
    from transformers import Cohere2VisionImageProcessor, Cohere2VisionProcessor

    words = {"boi_token": "<start>", "eoi_token": "<end>", "image_token": "<image>", "img_line_break_token": "w3"}
    images = Cohere2VisionImageProcessor(size=SIZE, patch_size=tiny.GRID // 2, max_patches=6)
    chat = CHAT.replace("<start> <image> <end>", "<image>")
    return Cohere2VisionProcessor(images, _tokenizer(**words), chat_template=chat)


def _glm4v():
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    sizes = {"patch_size": tiny.PATCH, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}}
    images, videos = Glm4vImageProcessor(**sizes), Glm4vVideoProcessor(**sizes)
    return Glm4vProcessor(images, tokenizer, videos, chat_template=CHAT)


def _lfm2_vl():
    from transformers import Lfm2VlImageProcessor, Lfm2VlProcessor

    words = {"image_token": "<image>", "image_start_token": "<start>", "image_end_token": "<end>"}
    sizes = {"encoder_patch_size": tiny.PATCH, "tile_size": tiny.SIDE, "max_tiles": 6}
    images = Lfm2VlImageProcessor(**sizes, min_image_tokens=4, max_image_tokens=16)
    chat = CHAT.replace("<start> <image> <end>", "<image>")
    return Lfm2VlProcessor(images, _tokenizer(**words, image_thumbnail_token="w3"), chat_template=chat)


def _perception_lm():
    from transformers import PerceptionLMImageProcessor, PerceptionLMProcessor, PerceptionLMVideoProcessor

    tokenizer = _tokenizer(image_token="<image>", video_token="<video>")
    images = PerceptionLMImageProcessor(tile_size=tiny.SIDE, max_num_tiles=6)
    chat = CHAT.replace("<start> <image> <end>", "<image>")
    parts = PerceptionLMVideoProcessor(size=SIZE), images, tokenizer
    return PerceptionLMProcessor(*parts, patch_size=tiny.PATCH, chat_template=chat)


def _fast_vlm():
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = 128  # of tiny.fast_vlm's pictures, of which a token covers 32 x 32
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    chat = CHAT.replace("<start> <image> <end>", "<image>")
    return LlavaProcessor(images, _tokenizer(), 32, "full", chat_template=chat)


PROCESSORS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "mistral3": _mistral3,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "glm4v": _glm4v,
    "lfm2_vl": _lfm2_vl,
    "perception_lm": _perception_lm,
    "fast_vlm": _fast_vlm,
}


def save(name: str, folder: Path) -> Path:
    """Write the model of a family and its processor, and return the folder."""
    getattr(tiny, name)().save_pretrained(folder)
    PROCESSORS[name]().save_pretrained(folder)
    return folder
