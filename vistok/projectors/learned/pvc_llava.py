"""PVC's tower as a vision model of transformers, so that a LLaVA can be built on it and saved, loaded and run as any.

The tower gives LLaVA's projector the packed tokens of four static frames; that projector is the connector's MLP.
Importing this module makes the model type known to transformers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vistok.projectors.learned.pvc import STATIC_FRAMES, ProgressiveEncoder, PvcEncoder

BLOCK = 4  # patches along a side that become one token


class PvcVisionConfig(PretrainedConfig):
    """Shape of the tower.

    Args:
        image_size, patch_size: of square pictures.
        width, num_attention_heads, num_hidden_layers, temporal_layers: as in ``ProgressiveEncoder``.
    """

    model_type = "vistok_pvc_vision"

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 8,
        width: int = 128,
        num_attention_heads: int = 4,
        num_hidden_layers: int = 4,
        temporal_layers: int = 2,
        **more: Any,
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.width = width
        self.num_attention_heads = num_attention_heads
        self.num_hidden_layers, self.temporal_layers = num_hidden_layers, temporal_layers
        more["hidden_size"] = width * BLOCK**2  # of the packed tokens, which LLaVA's projector takes
        super().__init__(**more)

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return STATIC_FRAMES * (self.image_size // self.patch_size // BLOCK) ** 2


class PvcVisionModel(PreTrainedModel):
    """Progressive encoder and adaptive compression, up to the projector."""

    config_class = PvcVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: PvcVisionConfig) -> None:
        super().__init__(config)
        encoder = ProgressiveEncoder(
            config.image_size,
            config.patch_size,
            config.width,
            config.num_attention_heads,
            config.num_hidden_layers,
            config.temporal_layers,
        )
        self.pvc = PvcEncoder(encoder, config.hidden_size, 1 / BLOCK)
        self.pvc.connector.mlp = nn.Identity()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The modules initialise themselves."""

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """Pictures [B, 3, H, W] to packed tokens [B, tokens, hidden_size], the only hidden state."""
        tokens = self.pvc(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(PvcVisionConfig.model_type, PvcVisionConfig, exist_ok=True)
AutoModel.register(PvcVisionConfig, PvcVisionModel, exist_ok=True)
