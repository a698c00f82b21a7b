"""Cards of published image tokenizers other than LlamaGen's. Nothing is fetched unless a user names the hub id."""

from __future__ import annotations

from vistok.zoo.model_card import ModelCard

WEIGHTS = "model.safetensors"
IMAGENET = "ImageNet-1k"
APACHE = "Apache-2.0"
# The sample licence of Apple and EPFL on the code; the weights' pages allow research only.
RESEARCH_ONLY = "non-commercial research only (Apple and EPFL)"


def _titok(name: str, preset: str, parameters: int, repo: str, rfid: float) -> ModelCard:
    return ModelCard(
        name=name,
        task="image-tokenizer",
        family="titok",
        parameters=parameters,
        files={WEIGHTS: None},
        source=f"yucornetto/{repo}",
        licence=APACHE,
        preset=preset,
        data=IMAGENET,
        metrics={"rFID": rfid},
        paper="2406.07550",
    )


def _one_d_piece(size: str, parameters: int, rfid: float) -> ModelCard:
    return ModelCard(
        name=f"one-d-piece-{size.lower()}-256",
        task="image-tokenizer",
        family="titok",
        parameters=parameters,
        files={WEIGHTS: None},
        source=f"turing-motors/One-D-Piece-{size}-256",
        licence=APACHE,
        preset=f"One-D-Piece-{size}-256",
        data=IMAGENET,
        metrics={"rFID": rfid},
        paper="2501.10064",
    )


def _flextok(size: str, data: str, parameters: int) -> ModelCard:
    repo = f"flextok_{size.replace('-', '_')}_{'in1k' if data == IMAGENET else 'dfn'}"
    return ModelCard(
        name=repo.replace("_", "-"),
        task="image-tokenizer",
        family="flextok",
        parameters=parameters,
        files={WEIGHTS: None},
        source=f"EPFL-VILAB/{repo}",
        licence=RESEARCH_ONLY,
        preset=f"FlexTok-{size}",
        data=data,
        paper="2502.13967",
    )


def _tokenflow(name: str, preset: str, parameters: int, file: str, metrics: dict[str, float]) -> ModelCard:
    return ModelCard(
        name=name,
        task="image-tokenizer",
        family="tokenflow",
        parameters=parameters,
        files={file: None},
        source="ByteFlow-AI/TokenFlow",
        licence=APACHE,
        preset=preset,
        metrics=metrics,
        paper="2412.03069",
    )


PUBLISHED: tuple[ModelCard, ...] = (
    ModelCard(
        name="maskgit-vqgan",
        task="image-tokenizer",
        family="maskgit_vqgan",
        parameters=54_515_587,
        files={"maskgit-vqgan-imagenet-f16-256.bin": None},
        source="fun-research/TiTok",
        licence=APACHE,
        preset="MaskGIT-VQGAN",
        data=IMAGENET,
        paper="2202.04200",
    ),
    _titok("titok-l-32", "TiTok-L-32", 641_054_735, "tokenizer_titok_l32_imagenet", 2.21),
    _titok("titok-b-64", "TiTok-B-64", 204_814_095, "tokenizer_titok_b64_imagenet", 1.70),
    _titok("titok-s-128", "TiTok-S-128", 83_674_639, "tokenizer_titok_s128_imagenet", 1.71),
    _titok("titok-bl-64-vq8k", "TiTok-BL-64-VQ8k", 390_016_148, "tokenizer_titok_bl64_vq8k_imagenet", 2.06),
    _titok("titok-bl-128-vq8k", "TiTok-BL-128-VQ8k", 390_179_988, "tokenizer_titok_bl128_vq8k_imagenet", 1.49),
    _titok("titok-sl-256-vq8k", "TiTok-SL-256-VQ8k", 330_260_884, "tokenizer_titok_sl256_vq8k_imagenet", 1.03),
    _titok("titok-ll-32-vae", "TiTok-LL-32-VAE", 606_879_604, "tokenizer_titok_ll32_vae_c16_imagenet", 1.61),
    _titok("titok-bl-64-vae", "TiTok-BL-64-VAE", 389_418_100, "tokenizer_titok_bl64_vae_c16_imagenet", 1.25),
    _titok("titok-bl-128-vae", "TiTok-BL-128-VAE", 389_581_940, "tokenizer_titok_bl128_vae_c16_imagenet", 0.84),
    _one_d_piece("S", 83_871_247, 1.48),
    _one_d_piece("B", 205_256_463, 1.11),
    _one_d_piece("L", 641_742_863, 1.08),
    _flextok("d12-d12", IMAGENET, 341_651_737),
    _flextok("d18-d18", IMAGENET, 949_734_553),
    _flextok("d18-d28", IMAGENET, 2_540_882_841),
    _flextok("d18-d28", "DFN", 2_540_882_841),
    ModelCard(
        name="seed-2",
        task="image-tokenizer",
        family="seed",
        parameters=1_149_998_528,
        files={"seed_quantizer.pt": None},
        source="AILab-CVC/seed-tokenizer-2",
        licence=APACHE,
        preset="SEED-2",
        paper="2307.08041",
    ),
    _tokenflow("tokenflow-clip-b", "TokenFlow-CLIP-B", 376_661_803, "tokenflow_clipb_32k_enhanced.pt", {}),
    _tokenflow("tokenflow-siglip", "TokenFlow-SigLIP", 554_009_963, "tokenflow_siglip_32k.pt", {"rFID at 384": 0.63}),
)
