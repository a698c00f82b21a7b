"""FlexTok: exact prefixes, collapsed registers, mixed lengths, strict loading; nothing that a file names is built."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from vistok.errors import VistokError
from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.flextok_config import PRESETS, FlexTokConfig, check_classes, from_published, parse_metadata
from vistok.tokenizers.flow import FlowSampling, NormalizedGuidance, classifier_free, noise_for

TINY = FlexTokConfig(
    (32, 2),
    (48, 2),
    head_dim=16,
    registers=8,
    levels=(8, 5, 5),
    latent_channels=3,
    latent_size=8,
    patch=4,
    time_features=32,
    vae=False,
)
TREE = {
    "vae": {"_target_": "flextok.vae_wrapper.StableDiffusionVAE", "latent_channels": 3},
    "encoder": {
        "_target_": "flextok.model.utils.wrappers.SequentialModuleDictWrapper",
        "module_dict": {"enc_transformer": {"_target_": "x.FlexTransformer", "head_dim": 16}},
    },
    "regularizer": {"_target_": "flextok.regularizers.quantize_fsq.FSQ", "levels": [8, 5, 5]},
}


def _model(config: FlexTokConfig = TINY) -> FlexTok:
    """Weights without the zeros of a training start, so that every path matters."""
    torch.manual_seed(0)
    model = FlexTok(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def _images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_encoding_a_prefix_gives_exactly_the_first_tokens():
    model = _model()
    tokens = model.encode(_images())
    assert tokens.shape == (3, 8) and tokens.max() < 200
    for length in range(1, 9):
        assert torch.equal(model.encode(_images(), length), tokens[:, :length])


def _naive_velocity(model: FlexTok, x, times, codes, keep: list[int], null: bool):
    """All registers kept in the sequence, the dropped ones overwritten, as the paper describes it."""
    parts = model.decoder.module_dict
    patches = parts["dec_noise_patch_emb"](x)
    patches = patches + parts["dec_patches_posemb_module"].posembs.flatten(2).transpose(1, 2)
    registers = parts["dec_from_latents"](codes) + parts["dec_registers_posemb_module"].posembs[0, 0].t()
    for row, k in enumerate(keep):
        registers[row, k:] = parts["dec_nested_dropout"].dropout_mask_token
    if null:
        registers[:] = parts["dec_latent_dropout"].nullcond
    sequence, time = torch.cat([patches, registers], 1), parts["dec_time_embedder"](times)
    group = torch.tensor([0] * patches.shape[1] + [1] * registers.shape[1])
    for block in parts["dec_transformer"].blocks:
        sequence = block(sequence, None, time, group)
    return parts["dec_to_patches"](sequence[:, : patches.shape[1]], time, model.config.grid)


@pytest.mark.parametrize("keep", [[1, 3, 8], [2, 2, 2], [8, 8, 8]])
@torch.no_grad()
def test_one_weighted_key_stands_for_all_dropped_registers(keep):
    model, x = _model(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([0.1, 0.5, 1.0])
    codes = model.regularizer.codes(model.encode(_images()))
    expected = _naive_velocity(model, x, times, codes, keep, null=False)
    torch.testing.assert_close(model.decoder(x, times, codes, torch.tensor(keep)), expected)
    torch.testing.assert_close(model.decoder(x, times, codes[:, : max(keep)], torch.tensor(keep)), expected)
    unconditional = _naive_velocity(model, x, times, codes, keep, null=True)
    null = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(model.decoder(x, times, codes[:, :0], null=null), unconditional)
    assert not torch.allclose(expected, unconditional)


def test_rows_of_different_lengths_decode_as_they_do_alone():
    model, sampling = _model(), FlowSampling(steps=3)
    tokens = model.encode(_images())
    noise = noise_for(3, (3, 8, 8), torch.Generator().manual_seed(3), torch.device("cpu"))
    lengths = torch.tensor([1, 8, 4])
    mixed = model.decode(tokens, lengths, sampling, noise=noise)
    for row, length in enumerate(lengths.tolist()):
        alone = model.decode(tokens[row : row + 1, :length], None, sampling, noise=noise[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_the_seed_makes_the_picture_whatever_the_batch():
    model, sampling = _model(), FlowSampling(steps=2)
    tokens = model.encode(_images())
    together = model.decode(tokens, 4, sampling, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    apart = [model.decode(tokens[row : row + 1], 4, sampling, generator) for row in range(3)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [0, 9])
def test_lengths_that_do_not_exist_are_refused(length):
    with pytest.raises(VistokError, match="decode"):
        _model().decode(torch.zeros(1, 8, dtype=torch.long), length)
    with pytest.raises(VistokError, match="decode"):
        _model().encode(_images(), length)


def test_without_guidance_the_unconditional_velocity_is_not_computed():
    def fail(*_):
        raise AssertionError

    noise = torch.randn(1, 2)
    assert torch.equal(FlowSampling(steps=4, scale=1.0).run(noise, lambda x, t: x * 0, fail), noise)
    with pytest.raises(VistokError, match="at least one step"):
        FlowSampling(steps=0)


def test_the_flow_reaches_the_data_of_its_true_velocity():
    data, noise = torch.randn(2, 5), torch.randn(2, 5)
    for sampling in (FlowSampling(5), FlowSampling(5, normalised=False)):
        out = sampling.run(noise, lambda x, t: noise - data, lambda x, t: noise - data)
        torch.testing.assert_close(out, data)


def test_normalised_guidance_is_bounded_and_orthogonal():
    conditional, unconditional = torch.randn(4, 3, 5, 5), 100 * torch.randn(4, 3, 5, 5)
    update = NormalizedGuidance(momentum=0.0)(conditional, unconditional, 2.0) - conditional
    assert (update.flatten(1).norm(dim=1) <= 2.5 + 1e-4).all()
    assert ((update * conditional).sum((1, 2, 3)).abs() < 1e-3).all()
    torch.testing.assert_close(classifier_free(conditional, unconditional, 1.0), conditional, atol=1e-4, rtol=1e-4)
    still = NormalizedGuidance()(conditional, conditional, 7.5)
    assert torch.equal(still, conditional)


def test_training_reaches_every_weight_and_repeats_with_its_seed():
    model = _model(dataclasses.replace(TINY, null_probability=0.5)).train()
    images = _images().repeat(4, 1, 1, 1)
    out = model(images, torch.Generator().manual_seed(0))
    assert out.target.shape == images.shape and out.indices.shape == (12, 8)
    out.loss.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None or not p.grad.abs().sum()] == []
    assert torch.equal(model(images, torch.Generator().manual_seed(0)).loss, out.loss)


def test_save_and_load_round_trip(tmp_path):
    model = _model()
    model.save_pretrained(tmp_path)
    again = FlexTok.from_pretrained(tmp_path)
    assert again.config == TINY and torch.equal(again.encode(_images()), model.encode(_images()))


@pytest.mark.parametrize("where", ["config", "header"])
def test_published_weights_tell_their_shape(tmp_path, where):
    model = _model()
    state = {
        key.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for key, v in model.state_dict().items()
    }
    state["decoder.module_dict.dec_repa_projector.proj.weight"] = torch.zeros(2, 2)
    metadata = {key: repr(value) for key, value in TREE.items()} if where == "header" else None
    save_file(state, tmp_path / "model.safetensors", metadata=metadata)
    if where == "config":
        (tmp_path / "config.json").write_text(json.dumps(TREE))
    with pytest.warns(UserWarning, match="non-commercial research only"):
        loaded = FlexTok.from_pretrained(tmp_path)
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(TINY) | {"vae": False}
    assert torch.equal(loaded.encode(_images()), model.encode(_images()))


def test_weights_that_do_not_fit_are_reported(tmp_path):
    state = _model().state_dict()
    state["encoder.module_dict.enc_other.weight"] = torch.zeros(1)
    del state["decoder.module_dict.dec_nested_dropout.dropout_mask_token"]
    save_file(state, tmp_path / "model.safetensors", metadata={key: json.dumps(value) for key, value in TREE.items()})
    with pytest.raises(VistokError, match=r"lacks .*dropout_mask_token and has the unexpected .*enc_other"):
        FlexTok.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "flextok.Unknown"])
def test_a_class_that_is_no_part_of_flextok_is_refused_before_anything_is_built(tmp_path, name):
    tree = json.loads(json.dumps(TREE))
    tree["encoder"]["module_dict"]["enc_transformer"]["blocks"] = [{"_target_": name, "command": "touch pwned"}]
    with pytest.raises(VistokError, match=f"names '{name}', which is no part of a published FlexTok"):
        check_classes(tree)
    save_file(_model().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(VistokError, match="nothing was built"):
        FlexTok.from_pretrained(tmp_path)


def test_header_literals_are_data_and_never_code():
    parsed = parse_metadata({"a": "{'x': (1, 2)}", "b": '{"y": true}', "c": "__import__('os').getcwd()"})
    assert parsed == {"a": {"x": (1, 2)}, "b": {"y": True}, "c": "__import__('os').getcwd()"}


def test_disagreeing_levels_and_foreign_weights_are_refused():
    shapes = {key: value.shape for key, value in _model().state_dict().items()}
    with pytest.raises(VistokError, match="2 FSQ levels, the weights 3 code channels"):
        from_published({**TREE, "regularizer": {"levels": [8, 8]}}, shapes)
    with pytest.raises(VistokError, match="not those of a FlexTok tokenizer"):
        from_published(TREE, {"a": torch.Size([1])})


def test_published_sizes():
    assert {name: (c.encoder, c.decoder, c.image_size, c.registers) for name, c in PRESETS.items()} == {
        "FlexTok-d12-d12": ((768, 12), (768, 12), 256, 256),
        "FlexTok-d18-d18": ((1152, 18), (1152, 18), 256, 256),
        "FlexTok-d18-d28": ((1152, 18), (1792, 28), 256, 256),
    }


@pytest.mark.slow  # importing diffusers takes seconds, on a busy machine tens of them
def test_the_autoencoder_keeps_the_published_keys_and_shapes(tmp_path):
    config = dataclasses.replace(TINY, latent_channels=4, latent_size=4, patch=2, vae=True, vae_widths=(32, 32))
    model = _model(config)
    assert {key.split(".")[2] for key in model.state_dict() if key.startswith("vae.vae.")} == {
        "encoder",
        "decoder",
        "quant_conv",
        "post_quant_conv",
    }
    tree = {**TREE, "vae": {"scaling_factor": 0.5}}
    assert from_published(tree, {k: v.shape for k, v in model.state_dict().items()}) == dataclasses.replace(
        config, vae_scaling=0.5
    )
    images = _images()
    tokens = model.encode(images)
    assert torch.equal(tokens, model.encode(images))  # the mode, not a draw
    assert model.decode(tokens, 2, FlowSampling(steps=1)).shape == images.shape


def test_a_kl_autoencoder_stands_in_for_the_vae():
    shape = {"channels": 32, "channel_mult": [1, 1], "res_blocks": 1, "z_channels": 3, "scaling_factor": 0.5}
    model = _model(dataclasses.replace(TINY, latent_size=4, patch=2, kl=shape))
    images = _images()
    assert model.config.image_size == images.shape[-1]
    posterior = model.vae.kl.posterior(images)
    assert torch.equal(model.maps(images), 0.5 * posterior.mean)
    drawn = [model.maps(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    noise = (drawn[0] / 0.5 - posterior.mean) / posterior.std
    assert noise.abs().max() < 5 and 0.8 < noise.std() < 1.2
    assert torch.equal(model.vae.decode(posterior.mean * 0.5), model.vae.kl.decode_latents(posterior.mean))
    assert model.decode(model.encode(images), 2, FlowSampling(steps=1)).shape == images.shape
