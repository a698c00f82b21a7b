"""What lmms-eval's plugin hook reads: names of models, each the module of this folder that has the class."""

AVAILABLE_MODELS = {
    "vistok_llava_hf": "VistokLlavaHf",
    "vistok_qwen2_5_vl": "VistokQwen2_5_VL",
    "vistok_qwen3_vl": "VistokQwen3_VL",
}
