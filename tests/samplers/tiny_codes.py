"""Tiny random image generators of transformers, with laws far from uniform, and calls that ask them for pictures."""

from __future__ import annotations

import functools

import torch

K, SIDE = 9, 3  # codes, and codes of a row of Janus and Anole
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EMU3 = [
    "<|extra_200|>",
    "<|extra_201|>",
    "<|image end|>",
    "<|image start|>",
    "<|image token|>",
    "*",
    "2",
    "4",
    "<image>",
]
DEFAULTS = {"temperature": None, "top_k": None, "top_p": None}


def _finish(model, scale=3.0):
    model = model.eval().requires_grad_(False).double()
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "vqmodel" not in name and "vision" not in name:
            weight.mul_(scale)
    for key, value in DEFAULTS.items():
        setattr(model.generation_config, key, value)
    return model


@functools.cache
def janus(attention="sdpa"):
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
    )

    torch.manual_seed(0)
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_ratio": 1.0, "depth": 1}
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=20, initializer_range=0.3, **TEXT),
        vision_config=JanusVisionConfig(
            image_size=SIDE * 2, patch_size=2, num_image_tokens=SIDE**2, projection_dim=16, **vision
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=4,
            num_embeddings=K,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=16,
            image_token_embed_dim=16,
            initializer_range=0.3,
        ),
        image_token_id=4,
        attn_implementation=attention,
    )
    model = _finish(JanusForConditionalGeneration(config))
    for weight in (model.model.generation_embeddings.weight, model.model.generation_head.vision_head.weight):
        weight.normal_(std=0.8)
    for part in (*model.model.generation_aligner.parameters(), *model.model.generation_head.proj_out.parameters()):
        part.normal_(std=0.5)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    model.generation_config.generation_kwargs = {"boi_token_id": 3}
    return model


@functools.cache
def emu3(attention="sdpa"):
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAEConfig

    torch.manual_seed(1)
    words = {f"<|visual token {code:06d}|>": 20 + code for code in range(K)}
    words |= {name: 5 + i for i, name in enumerate(EMU3)}
    config = Emu3Config(
        text_config=Emu3TextConfig(
            vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, **TEXT
        ),
        vq_config=Emu3VQVAEConfig(
            codebook_size=K,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            attn_resolutions=[],
            hidden_size=32,
            temporal_downsample_factor=1,
        ),
        vocabulary_map=words,
        attn_implementation=attention,
    )
    model = _finish(Emu3ForConditionalGeneration(config))
    for name, value in {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}.items():
        setattr(model.generation_config, name, value)
    return model


@functools.cache
def chameleon(attention="sdpa"):
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

    torch.manual_seed(2)
    letters = "ABCDEFGHIJ"
    order = [3, 0, 6, 8, 1, 5, 2, 7, 4]  # ids are not in the order of the codes
    words = {f"IMGIMG{letters[code]}Z": 4 + place for place, code in enumerate(order)} | {"<image>": 25}
    words |= {"<racm3:break>": 20, "<eoss>": 19}  # begin and end of a picture
    config = ChameleonConfig(
        vocab_size=30,
        pad_token_id=0,
        initializer_range=0.3,
        vq_config=ChameleonVQVAEConfig(
            embed_dim=4,
            num_embeddings=K,
            latent_channels=4,
            resolution=SIDE * 2,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
        ),
        vocabulary_map=words,
        attn_implementation=attention,
        **TEXT,
    )
    model = _finish(ChameleonForConditionalGeneration(config))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return model


MODELS = {"janus": janus, "emu3": emu3, "chameleon": chameleon}
HEIGHT, WIDTH = 2, 4  # of Emu3's pictures


def emu3_allowed(words):
    """As transformers' documentation writes it."""
    visual = [token for name, token in words.items() if "visual token" in name]

    def allowed(batch, ids):
        offset = len(ids) - int((ids == words["<|image token|>"]).nonzero()[0, 0])
        if offset % (WIDTH + 1) == 0:
            return (words["<|extra_200|>"],)
        behind = offset - (WIDTH + 1) * HEIGHT
        return {1: (words["<|extra_201|>"],), 2: (words["<|image end|>"],), 3: (2,)}.get(behind, visual)

    return allowed


def lines_allowed(codes, width, end, prompt):
    """Codes with a token behind each row."""

    def allowed(batch, ids):
        return (end,) if (len(ids) - prompt + 1) % (width + 1) == 0 else codes

    return allowed


def call(kind, guidance=3.0, batch=2, **options):
    """Arguments of ``generate`` for two pictures of prompts of different lengths."""
    ids = torch.tensor([[1, 10, 11, 12, 13, 14], [0, 0, 1, 15, 16, 17]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    more = {"guidance_scale": guidance} if guidance is not None else {}
    if kind == "janus":
        ids[:, -1] = 3
        more["generation_mode"] = "image"
    elif kind == "emu3":
        words = emu3().config.vocabulary_map
        opening = torch.tensor([words[name] for name in ("<|image start|>", "2", "*", "4", "<|image token|>")])
        ids, mask = torch.cat([ids, opening.expand(2, -1)], 1), torch.cat([mask, torch.ones(2, 5, dtype=int)], 1)
        more |= {"prefix_allowed_tokens_fn": emu3_allowed(words), "max_new_tokens": 100}
        if guidance is not None:
            more |= {"negative_prompt_ids": torch.tensor([[1, 18], [0, 18]])}
            more |= {"negative_prompt_attention_mask": torch.tensor([[1, 1], [0, 1]])}
    else:
        codes = sorted(t for name, t in chameleon().config.vocabulary_map.items() if "IMGIMG" in name)
        more |= {"prefix_allowed_tokens_fn": lines_allowed(codes, 3, 19, ids.shape[1]), "max_new_tokens": 12}
        if guidance is not None:
            more["negative_prompt_ids"] = torch.tensor([[1, 18], [1, 18]])
    rows = slice(0, batch)
    more = {key: value[rows] if isinstance(value, torch.Tensor) else value for key, value in more.items()}
    return {"input_ids": ids[rows], "attention_mask": mask[rows]} | more | options
