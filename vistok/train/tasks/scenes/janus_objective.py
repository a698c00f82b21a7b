"""What a small Janus learns: codes behind captions, and on the way what the caption says and what is being painted.

Of the nats of a picture's codes a caption decides one in fifty, so cross-entropy alone learns textures for thousands of
steps before it reads a word. ``SceneReader`` and ``colour_loss`` ask for what captions decide; they serve training
alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.train.tasks.scenes.reader import SceneReader, colour_loss

TERMS = ("now", "left", "next", "told", "colour")


class JanusObjective(nn.Module):
    """Cross-entropy of image codes given captions, some of which are taken away, and deep supervision by scenes.

    Args:
        janus: the transformers model.
        pad: the token that stands for a word that was taken away.
        kept: tokens that stay in a caption that was taken away.
        dropout: share of those captions.
        supervision: weights of ``colour_loss`` (``colour``) and of what ``SceneReader`` tells, by name.
        colours: what each code shows, see ``code_colours``.
    """

    def __init__(
        self,
        janus: nn.Module,
        pad: int,
        kept: tuple[int, ...],
        dropout: float,
        supervision: dict[str, float],
        colours: Tensor,
    ):
        super().__init__()
        self.janus, self.pad, self.dropout, self.supervision = janus, pad, dropout, supervision
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.register_buffer("colours", colours, persistent=False)
        if supervision:
            vision = janus.config.vision_config
            self.reader = SceneReader(janus.config.text_config.hidden_size, round(vision.num_image_tokens**0.5))

    def untold(self, input_ids: Tensor) -> Tensor:
        """Returns captions as the unconditional rows of guidance have them."""
        return torch.where(torch.isin(input_ids, self.kept), input_ids, self.pad)

    def states(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns states [B, n, d] of a middle layer and of the last, from which codes [B, n] behind captions come."""
        base = self.janus.model
        words = base.language_model.embed_tokens(input_ids)
        drawn = self.janus.prepare_embeddings_for_image_generation(tokens[:, :-1])
        told = base.language_model(
            inputs_embeds=torch.cat([words, drawn], 1),
            attention_mask=F.pad(attention_mask, (0, drawn.shape[1]), value=1),
            use_cache=False,
            output_hidden_states=True,
        )
        layers, first = told.hidden_states, words.shape[1] - 1
        return layers[len(layers) // 2][:, first:], told.last_hidden_state[:, first:]

    def logits(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor) -> Tensor:
        """Returns logits [B, n, K] of codes [B, n] behind captions [B, L]."""
        return self.janus.model.generation_head(self.states(input_ids, attention_mask, tokens)[1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, **scene: Tensor):
        """Returns the loss of B pictures and its parts; ``scene`` is what ``SceneReader`` is told of them."""
        told = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.training:
            told = torch.rand(len(input_ids), device=input_ids.device) >= self.dropout
            input_ids = torch.where(told[:, None], input_ids, self.untold(input_ids))
        middle, last = self.states(input_ids, attention_mask, tokens)
        logits = self.janus.model.generation_head(last).float()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        if not (scene and self.supervision):
            return loss, {}
        read = self.reader(middle[told], **{name: x[told] for name, x in scene.items()}) if told.any() else {}
        read["colour"] = colour_loss(logits, tokens, self.colours)
        metrics = {"codes": loss.detach(), **{name: x.detach() for name, x in read.items()}}
        return loss + sum(weight * read[name] for name, weight in self.supervision.items() if name in read), metrics
