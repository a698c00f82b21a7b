"""What lmms-eval's plugin hook reads: names of models, each the module of this folder that has the class."""

AVAILABLE_MODELS = {"vistok_llava_hf": "VistokLlavaHf"}
