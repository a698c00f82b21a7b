"""What ``generate`` was given is understood, or refused by name: nothing is dropped in silence."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, MaxLengthCriteria, StoppingCriteria
from transformers.generation import EosTokenCriteria

import vistok
from tests.generate_options import NAMES, SILENT, agrees, becomes
from tests.generate_options import OPTIONS as EVERY
from tests.samplers.test_speculation import SMALL_TREE, ragged
from tests.samplers.tiny import prompt, tiny, tiny_head
from vistok.errors import VistokError
from vistok.samplers import Branching, DraftModel, EagleHead, PromptLookup, Speculation, TokenRecycling, generate
from vistok.samplers.arguments import check_arguments
from vistok.samplers.pearl import Pearl

OPTIONS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
REFUSED = {
    *("num_beams", "num_beam_groups", "constraints", "force_words_ids", "penalty_alpha", "dola_layers", "use_mtp"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "is_assistant", "prefill_chunk_size"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "token_healing", "stop_strings"),
}


def test_every_option_of_this_transformers_is_in_the_table():
    assert set(vars(GenerationConfig())) <= set(EVERY) | SILENT


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_heeded_or_refused(name):
    model = tiny()
    inputs = {"bos_token_id": {}, "forced_bos_token_id": {"input_ids": prompt(1, 1)}}.get(name, ragged())
    plain = becomes(lambda **options: model.generate(**inputs, **options), name)
    with vistok.accelerate(model, TokenRecycling(SMALL_TREE)):
        found = becomes(lambda **options: model.generate(**inputs, **options), name)
    assert isinstance(found, VistokError) == (name in REFUSED)
    assert agrees(found, plain), (found, plain)


class OwnEnds(EosTokenCriteria):
    """Ends at other tokens than it says."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 4 == 1


class WithEnds(StoppingCriteria):
    """Has end tokens, for which plain ``generate`` pads behind the end."""

    eos_token_id = torch.tensor([1])
    __call__ = OwnEnds.__call__


CALLS = {
    "one padded prompt": (
        {"input_ids": ragged()["input_ids"][:1], "attention_mask": ragged()["attention_mask"][:1]},
        {},
    ),
    "a later limit": (ragged(), {"stopping_criteria": [MaxLengthCriteria(19)]}),
    "a limit within the prompt": ({"input_ids": prompt()}, {"stopping_criteria": [MaxLengthCriteria(3)]}),
    "ends of one's own": (ragged(), {"stopping_criteria": [OwnEnds([5])]}),
    "ends that are no class of ends": (ragged(), {"stopping_criteria": [WithEnds()]}),
    "ends in place of ends": (
        ragged(),
        {"eos_token_id": [1, 2], "stopping_criteria": [EosTokenCriteria(list(range(3, 12)))], "pad_token_id": None},
    ),
    "copies with a rule for each row": (
        ragged(),
        {
            "num_return_sequences": 2,
            "do_sample": True,
            "top_k": 1,
            "prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) + row + i) % 23 for i in (1, 3)],
        },
    ),
    "guidance without a cache": (ragged(), {"guidance_scale": 1.5, "use_cache": False}),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_drafter_heeds_what_plain_generate_heeds(name):
    inputs, more = CALLS[name]
    options = OPTIONS | more
    plain = tiny().generate(**inputs, **options)
    draft = tiny(seed=1)
    for way in (
        Speculation(TokenRecycling(SMALL_TREE)),
        Speculation(DraftModel(draft, Branching((2, 1)))),
        Speculation(EagleHead(tiny_head())),
        Pearl(draft, 3, force=True),
    ):
        found = tiny().generate(**inputs, **options, custom_generate=way)
        assert torch.equal(found, plain), way


def test_a_model_that_is_sharded_over_processes_is_refused(monkeypatch):
    """There plain ``generate`` keeps processes in step without being asked."""
    for name, value in {"is_available": True, "is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    plain = tiny().generate(prompt(), **OPTIONS)
    assert torch.equal(generate(tiny(), prompt(), PromptLookup(), **OPTIONS).sequences, plain)
    monkeypatch.setattr("transformers.generation.utils.is_fsdp_managed_module", lambda model: True)
    with pytest.raises(VistokError, match="sharded"):
        generate(tiny(), prompt(), PromptLookup(), **OPTIONS)


def test_a_cache_that_saves_memory_is_refused_as_an_object_too():
    class Small(DynamicCache):
        pass

    offloaded = DynamicCache(config=tiny().config)
    offloaded.offloading = True
    for cache in (Small(config=tiny().config), offloaded):
        with pytest.raises(VistokError, match="would ignore this"):
            tiny().generate(prompt(), **OPTIONS, cache=cache, custom_generate=Speculation(PromptLookup()))


@pytest.mark.parametrize("kind", ["paged", "offloaded_static", "offloaded_hybrid_chunked"])
def test_kinds_of_a_cache_that_save_memory_are_refused(kind):
    with pytest.raises(VistokError, match=f"not {kind}: leave cache_implementation out"):
        check_arguments(GenerationConfig(cache_implementation=kind), {}, prompt(), {})


def test_a_paged_cache_is_refused_before_transformers_answers_itself():
    with pytest.raises(VistokError, match="not paged: leave cache_implementation out"):
        generate(tiny(), prompt(), PromptLookup(), **OPTIONS, cache_implementation="paged")


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"assistant_early_exit": 1}, "assistant_early_exit"),
        ({"assistant_model": tiny(seed=1)}, "assistant_model"),
        ({"inputs_embeds": torch.zeros(1, 7, 16, dtype=torch.float64)}, "inputs_embeds"),
        ({"position_ids": torch.arange(7)[None] + 3}, "position_ids"),
        ({"attention_mask": torch.ones(1, 4, dtype=torch.int64)}, r"attention mask is \[1, 4\]"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"cache_implementation": "quantized"}, "cache"),
        ({"synced_gpus": True}, "synced_gpus"),
    ],
)
def test_what_speculation_would_ignore_is_refused_by_name(options, culprit):
    with pytest.raises((VistokError, ImportError), match=culprit):
        tiny().generate(prompt(), **OPTIONS, **options, custom_generate=Speculation(PromptLookup()))


def test_arguments_of_other_decoding_modes_are_refused_by_the_shorthand_too():
    for name in ("assistant_model", "assistant_tokenizer"):
        with pytest.raises(VistokError, match=name):
            generate(tiny(), prompt(), PromptLookup(), **OPTIONS, **{name: tiny(seed=1)})


@pytest.mark.parametrize("name", ["pixel_values", "image_sizes", "image_grid_thw", "token_type_ids", "anything"])
def test_inputs_that_the_model_would_read_are_refused(name, monkeypatch):
    monkeypatch.setattr(type(tiny()), "_validate_model_kwargs", lambda self, kwargs: None)
    with pytest.raises(VistokError, match=f"ignore {name}: leave it out"):
        tiny().generate(prompt(), **OPTIONS, **{name: torch.ones(1, 7)}, custom_generate=Speculation(PromptLookup()))
    plain = tiny().generate(prompt(), **OPTIONS)
    found = tiny().generate(prompt(), **OPTIONS, **{name: None}, custom_generate=Speculation(PromptLookup()))
    assert torch.equal(found, plain)


def test_what_changes_nothing_is_taken():
    plain = tiny().generate(prompt(), **OPTIONS)
    for options in (
        {"attention_mask": torch.ones(1, 7, dtype=torch.int64)},
        {"position_ids": torch.arange(7)[None]},
        {"use_cache": False},
        {"cache": DynamicCache(config=tiny().config)},
        {"cache_implementation": "static"},
        {"num_beams": 1, "penalty_alpha": 0.0},
        {"streamer": None, "assistant_model": None},
    ):
        assert torch.equal(generate(tiny(), prompt(), PromptLookup(), **OPTIONS, **options).sequences, plain), options


def test_a_filled_cache_is_refused():
    cache = DynamicCache(config=tiny().config)
    tiny()(prompt()[:, :3], cache=cache)
    with pytest.raises(VistokError, match="past_key_values"):
        generate(tiny(), prompt(), PromptLookup(), **OPTIONS, cache=cache)


def test_a_temperature_of_zero_is_greedy():
    plain = tiny().generate(prompt(), **OPTIONS)
    sampling = OPTIONS | {"do_sample": True, "temperature": 0}
    assert torch.equal(generate(tiny(), prompt(), PromptLookup(), **sampling).sequences, plain)


def test_a_generation_config_counts_like_options():
    config = GenerationConfig(**OPTIONS, penalty_alpha=0.6, top_k=4)
    with pytest.raises(VistokError, match="penalty_alpha"):
        generate(tiny(), prompt(), PromptLookup(), generation_config=config)


def test_a_picture_is_read_and_its_model_still_speaks():
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vistok.zoo import resolve

    folder = resolve("llava-mini")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    picture, text = Image.new("RGB", (64, 64), "red"), "<image> what color?"
    for inputs in (
        processor(images=picture, text=text, return_tensors="pt"),
        processor.tokenizer("what color is the circle?", return_tensors="pt"),
    ):
        plain = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert torch.equal(generate(model, inputs, PromptLookup(), max_new_tokens=5, do_sample=False).sequences, plain)


def test_a_picture_of_a_family_that_nobody_described_is_refused_as_the_caller_named_it():
    """``generate`` encodes pictures itself and hands on what it made of them under another name."""
    from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=8),
        text_config=LlamaConfig(**sizes, vocab_size=23, eos_token_id=None, pad_token_id=0),
        image_token_index=22,
        vision_feature_layers=[-1, -2],
    )
    model = VipLlavaForConditionalGeneration(config).eval()
    inputs = {"input_ids": torch.tensor([[3, 22, 22, 22, 22, 4]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    with pytest.raises(VistokError, match=r"ignore pixel_values: leave it out.*llava"):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, custom_generate=Speculation(PromptLookup()))


def test_a_model_whose_layers_keep_a_state_is_refused():
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Lfm2VlConfig(
        vision_config=sizes | {"model_type": "siglip2_vision_model", "patch_size": 4, "num_patches": 16},
        text_config=sizes
        | {"model_type": "lfm2", "num_key_value_heads": 2, "vocab_size": 23, "layer_types": ["conv", "full_attention"]},
        image_token_id=22,
    )
    model = Lfm2VlForConditionalGeneration(config).eval()
    with pytest.raises(VistokError, match="layers of the kind conv"):
        generate(model, prompt(), PromptLookup(), **OPTIONS)
