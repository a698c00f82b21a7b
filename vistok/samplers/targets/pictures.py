"""The target of text behind pictures: a multimodal model reads its prompt itself, and trees run on its text model.

The model's own prefill, compressed or not, fills a cache of transformers, whose rows are copied without their padding.
From there on only text follows: the family (``vistok.models.families``) says which part of the model decodes it, and at
which positions. Layers that dropped rows of the prompt (FastV) keep holes there that no row sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families import FAMILIES, family_of
from vistok.models.huggingface import cache_argument, given_cache
from vistok.models.pruned import Pruned, pruned_cache
from vistok.samplers.run import Scores
from vistok.samplers.targets.causal_lm import Prompt, TextTarget
from vistok.samplers.targets.features import states_entering
from vistok.samplers.tree import TokenTree


def reads_pictures(model: nn.Module) -> bool:
    """Whether a model is of a family whose prompts may hold pictures."""
    return getattr(model.config, "model_type", None) in FAMILIES


def text_of(model: nn.Module, prompt: Prompt) -> Prompt:
    """The prompts without the placeholders of pictures, for drafters that read words alone.

    A placeholder says nothing and stands there hundreds of times, so it would be the likeliest draft of all. The last
    token stays in any case.
    """
    ids, width = prompt.ids, prompt.ids.shape[1]
    places = torch.arange(width, device=ids.device)
    said = (ids != model.config.image_token_id) | (places == width - 1)
    said = said & (places >= width - prompt.count[:, None])
    if bool((said.sum(1) == prompt.count).all()):
        return prompt
    count = said.sum(1)
    order = said.int().sort(dim=1, stable=True).indices[:, -int(count.max()) :]
    kept = said.gather(1, order)
    return Prompt.of(ids.gather(1, order).masked_fill(~kept, 0), kept)


class PictureTarget(TextTarget):
    """A multimodal model that token trees are checked against.

    Args:
        model: of one of the families, loaded by transformers.
        prompt: what it continues, placeholders included.
        length, nodes, features, reader: see ``TextTarget``; the reader is not given placeholders.
        inputs: whatever else ``generate`` hands to the model's forward, such as pixels or encoded pictures.

    Raises:
        VistokError: trees cannot run on this model.
    """

    def __init__(
        self,
        model: nn.Module,
        prompt: Prompt,
        length: int,
        nodes: int = 1,
        features: bool | tuple[int, ...] = False,
        reader: Callable[[Tensor, Tensor], None] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ):
        super().__init__(model, prompt, length, nodes, features, reader)
        self.model, self.family, self.inputs = model, family_of(model), dict(inputs or {})
        self.holes: dict[int, Tensor] = {}

    def prefill(self) -> Scores:
        """Logits behind the prompt [B, 1, V]; features, where wanted, of all rows of ``Prompt.flush``, [B, L, D]."""
        logits, cache, found = self._run_prompt()
        self._keep(cache)
        whole = [self._flush(self._spread(part, pruned_cache(cache), layer)) for layer, part in found]
        hidden = torch.cat(whole, -1) if whole else None
        if self.reader is not None:
            said = self.prompt.flush != self.model.config.image_token_id
            self._read(hidden, said)
        return Scores(logits, hidden if self.features else None)

    def _run_prompt(self) -> tuple[Tensor, Any, list[tuple[int, Tensor]]]:
        """Logits behind the last tokens, the cache that the prompt filled, and features by the layer they are of."""
        from transformers import DynamicCache

        model, final = self.model, []
        backbone = self.family.backbone(model)
        inputs = {name: value for name, value in self.inputs.items() if name not in ("cache", "past_key_values")}
        inputs |= {"use_cache": True, cache_argument(model): DynamicCache()}  # whose layers keep every row
        arguments = model.prepare_inputs_for_generation(self.prompt.ids, is_first_iteration=True, **inputs)
        layers = self.features if isinstance(self.features, tuple) else ()
        handle = backbone.register_forward_hook(lambda module, args, output: final.append(output.last_hidden_state))
        try:
            with states_entering(backbone, layers) as found:
                output = model(**arguments, return_dict=True)
        finally:
            handle.remove()
        self.lm.forwards += 1
        wanted = [(layer, found[layer]) for layer in layers]
        if self.features is True or self.reader is not None:
            wanted = [(len(self.lm.rows.layers) - 1, final[-1])]
        return output.logits[:, -1:], given_cache(output), wanted

    def _keep(self, cache: Any) -> None:
        """Copy the rows of a cache without their padding, and note how far positions are ahead of them."""
        prompt, pruned = self.prompt, pruned_cache(cache)
        width = prompt.ids.shape[1]
        real = torch.arange(width, device=prompt.ids.device) < prompt.count[:, None]  # behind these stands what is new
        for index, layer in enumerate(cache.layers):
            keys, values = (self._spread_heads(part, pruned, index) for part in (layer.keys, layer.values))
            if keys.shape[2] != width:
                raise VistokError(
                    f"layer {index} of {type(self.model).__name__} keeps {keys.shape[2]} rows of a prompt of {width} "
                    "tokens, and what is not kept has no branches: decode it without speculation."
                )
            self.lm.rows.write(index, keys, values)
            stage = None if pruned is None else pruned.stage(index)
            if stage is not None:
                there = torch.zeros(prompt.ids.shape, dtype=torch.bool, device=keys.device)
                there = there.scatter(1, stage.columns, stage.present)
                self.holes[index] = real & ~self._flush(there[..., None])[..., 0]
        count = prompt.count
        self.lm.cache.advance(width if int(count.min()) == width else count)
        offset = self.family.position_offset(self.model)
        positions = self.inputs.get("position_ids")
        if self.family.position_axes == 1 and positions is not None:  # a compressor may let tokens keep their numbers
            offset = positions[:, -1:] + 1 - count[:, None]
        if not isinstance(offset, int):  # one a prompt, whose sequences (``num_return_sequences``) follow each other
            offset = offset.repeat_interleave(self.batch // len(offset), 0)
        self.lm.offset = offset

    def _spread(self, rows: Tensor, pruned: Pruned | None, layer: int) -> Tensor:
        """Rows of a layer [B, S', C] at their columns of the prompt, [B, S, C]; zeros where it has none."""
        stage = None if pruned is None else pruned.stage(layer)
        if stage is None:
            return rows
        whole = rows.new_zeros(len(rows), self.prompt.ids.shape[1], rows.shape[-1])
        rows, columns = rows * stage.present[..., None], stage.columns[..., None]
        return whole.scatter_add(1, columns.expand_as(rows), rows)  # padding adds zeros, wherever it points

    def _spread_heads(self, rows: Tensor, pruned: Pruned | None, layer: int) -> Tensor:
        """Keys or values [B, H, S', D] without their padding, at their columns of the prompt, [B, H, S, D]."""
        heads = rows.shape[1]
        return (
            self._flush(self._spread(rows.transpose(1, 2).flatten(2), pruned, layer))
            .unflatten(2, (heads, -1))
            .transpose(1, 2)
        )

    def _flush(self, rows: Tensor) -> Tensor:
        """Rows in the columns of the prompts [B, S, C], the real ones first."""
        width = rows.shape[1]
        if width != self.prompt.ids.shape[1]:
            return rows
        index = (torch.arange(width, device=rows.device) + width - self.prompt.count[:, None]) % width
        return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        """Logits behind each node."""
        with self._holes_hidden():
            return super().forward(tree, decided)

    @contextmanager
    def _holes_hidden(self) -> Iterator[None]:
        with ExitStack() as stack:
            for index, layer in enumerate(self.family.backbone(self.model).layers):
                if index in self.holes:
                    hide = _Hide(self.holes[index])
                    stack.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
            yield


class _Hide:
    """Takes the holes of a layer, bool [B, L], out of the mask that it is given."""

    def __init__(self, holes: Tensor):
        self.holes = holes

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        holes = self.holes[:, None, None, : mask.shape[-1]]
        holes = nn.functional.pad(holes, (0, mask.shape[-1] - holes.shape[-1]), value=False)
        hidden = mask & ~holes if mask.dtype == torch.bool else mask.masked_fill(holes, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": hidden}
