"""A plugin for lmms-eval: ``LMMS_EVAL_PLUGINS=vistok.eval.harnesses.lmms`` adds the model ``vistok_llava_hf`` to it."""
