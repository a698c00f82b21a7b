"""Small vision networks: backbones, feature extractors and perceptual distances."""
