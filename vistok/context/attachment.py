"""``vistok.context.apply``: let a decoder of transformers keep and read its cache by a policy, and undo it.

The text model's attention is exchanged for the policy's through transformers' own registry of attention functions, and
its cache for one over the package's :class:`~vistok.ops.KVCache`. Padding never reaches a policy: sequences come to it
flush left, so batches of different lengths need nothing more.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vistok.context.cache import ContextCache
from vistok.context.forward import Blocked, Call
from vistok.context.interface import Fill, Full, Policy, Report
from vistok.context.rotary import Rotary
from vistok.context.support import attentions, check_model
from vistok.errors import VistokError
from vistok.models.attach import Attachment, attached, unwrapped
from vistok.models.huggingface import cache_argument, generate_option, given_cache
from vistok.samplers.targets.support import HALF_TOLERANCE, TOLERANCE
from vistok.samplers.targets.tree_cache import TreeCache

ATTENTION = "vistok_context"  # name of the attention among transformers'
_HOME = "_vistok_context"
TRIAL = 6  # tokens that tell whether a model's attention is the usual one
_tried: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
_UNREAD = ("softcap", "s_aux", "position_bias")  # what attention functions of some models get besides


class Context(Attachment):
    """A model at work under a policy, until :meth:`remove`; also a context manager.

    Attributes:
        policy: how the cache is kept and read.
        last: :class:`~vistok.context.interface.Report` of the last prompt and what followed it.
    """

    slot = "context policy"

    def __init__(self, model: nn.Module, policy: Policy) -> None:
        if attached(model, self.slot) is None:  # or the error that it is taken comes first
            policy.prepare(model)
        self.policy, self.last = policy, Report()
        self.decoder = model.get_decoder()
        self.config = self.decoder.config
        self.layers = self.config.num_hidden_layers
        self._names = tuple(inspect.signature(type(self.decoder).forward).parameters)[1:]
        self._call: Call | None = None
        self._given: Call | None = None  # for the next forward
        self._rotary: Rotary | None = None
        super().__init__(model)
        self._earlier = self.config._attn_implementation
        self._modules = attentions(self.decoder)
        self.before(self.decoder, self._before_forward)
        self.after(self.decoder, self._after_forward, always=True)
        self._switch(on=True)

    def remove(self) -> None:
        if attached(self.model, self.slot) is self:
            self._switch(on=False)
        super().remove()

    @property
    def rotary(self) -> Rotary:
        """Returns how keys of the model turn.

        Raises:
            VistokError: they cannot be turned.
        """
        if self._rotary is None:
            with self.paused():
                self._rotary = Rotary.of(self.model)
        return self._rotary

    @torch.no_grad()
    def fill(self, cache: ContextCache, sequence: int, ids: Tensor, rows: Tensor, length: int) -> None:
        """Runs tokens [T] into given rows of a sequence of a cache, int64 [T]; see ``Fill``."""
        call = Call(None, len(rows), None)
        call.step = Fill(cache.rows, sequence, rows, length)
        self._given = call
        try:
            self.decoder(input_ids=ids[None], position_ids=rows[None], use_cache=False)
        finally:
            self._given = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, the model works without the policy."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def _switch(self, on: bool) -> None:
        self._break_off()
        self._on = on
        if on:
            _register()
        self.config._attn_implementation_internal = ATTENTION if on else self._earlier
        for module in self._modules:
            if on:
                vars(module)[_HOME] = self
            else:
                vars(module).pop(_HOME, None)

    def generate(
        self,
        plain: Callable[..., Any],
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        kwargs = self.keywords(args, kwargs)
        kind, used = (
            generate_option(self.model, name, kwargs, generation_config)
            for name in ("cache_implementation", "use_cache")
        )
        if kind not in (None, "dynamic"):
            raise VistokError(f"{self.policy.name} keeps a cache of its own: leave out cache_implementation='{kind}'.")
        if used is False:
            raise VistokError(f"{self.policy.name} is about the cache: leave out use_cache=False.")
        kwargs.pop("cache_implementation", None)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and not bool(mask[:, -1].all()):
            raise VistokError("prompts must be padded on the left: set tokenizer.padding_side = 'left'.")
        if given_cache(kwargs) is None and kwargs.get("custom_generate") is None:  # which may have a cache of its own
            kwargs[cache_argument(self.model)] = ContextCache(self.layers, self.policy)
        try:
            return plain(inputs, generation_config, **kwargs)
        finally:
            self._break_off()

    def _before_forward(
        self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        self._break_off()
        if not self._on:
            return None
        if self._given is not None:
            self._call, self._given = self._given, None
            return None
        kwargs = dict(zip(self._names, args, strict=False)) | kwargs
        given = kwargs.get("inputs_embeds")
        given = kwargs["input_ids"] if given is None else given
        if kwargs.get("output_attentions"):
            raise VistokError(f"{self.policy.name} forms no whole attention maps: leave out output_attentions.")
        cache, mask = given_cache(kwargs), kwargs.get("attention_mask")
        batch, new = given.shape[:2]
        if isinstance(cache, TreeCache):
            self._call = self._draft_call(cache, mask, new)
            return (), kwargs
        if cache is None and (_wants_cache(kwargs, self.config) or not self.policy.trains):
            cache = ContextCache(self.layers, self.policy)
            if _wants_cache(kwargs, self.config):
                kwargs[cache_argument(decoder)] = cache
        elif cache is not None:
            self._check_cache(cache)
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise VistokError(f"{self.policy.name} needs the attention mask as [batch, tokens], or none.")
        if cache is None or cache.columns == 0:
            self.last = Report()
        columns = 0 if cache is None else cache.columns
        places = kwargs.get("position_ids")
        if places is None:
            places = columns + torch.arange(new, device=given.device)[None]
        self._call = Call(cache, new, self._counts(mask, cache, batch, new), positions=places)
        # The mask is spoken for; models would make one of the cache's width of it.
        return (), kwargs | {"attention_mask": None}

    def _draft_call(self, cache: TreeCache, mask: Any, new: int) -> Call:
        if not self.policy.drafts:
            raise VistokError(
                f"drafts cannot be checked under {self.policy.name}: speculate under vistok.context.TidalDecode, or "
                "remove() the policy."
            )
        if cache.used == 0:
            self.last = Report()
        seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
        return Call(None, new, None, drafts=seen)

    def _check_cache(self, cache: Any) -> None:
        if not isinstance(cache, ContextCache):
            raise VistokError(
                f"{self.policy.name} keeps a cache of its own, and a {type(cache).__name__} was given: leave it out, "
                "or give the one that an earlier call under the policy returned."
            )
        if cache.policy.name != self.policy.name:
            raise VistokError(
                f"this cache was filled under {cache.policy.name} and the model is under {self.policy.name}: "
                "begin anew."
            )
        cache.check()

    def _counts(self, mask: Tensor | None, cache: ContextCache | None, batch: int, new: int) -> Tensor | None:
        """Returns which new tokens are real, bool [B, T]; None if all are."""
        if mask is None:
            return None
        columns = 0 if cache is None else cache.columns
        if mask.shape != (batch, columns + new):
            raise VistokError(
                f"the attention mask is {list(mask.shape)}, but {columns} tokens are cached and {new} are new for each "
                f"of {batch} sequences: give it as [{batch}, {columns + new}]."
            )
        mask = mask.bool()
        if columns and not torch.equal(mask[:, :columns].sum(1), cache.step_tokens(batch, mask.device)):
            raise VistokError("the attention mask hides cached tokens that it showed before: give it unchanged.")
        real = mask[:, columns:]
        return None if bool(real.all()) else real

    def _break_off(self) -> None:
        """Undoes a forward that has begun and did not end: an exception may have come from anywhere, or a key."""
        call, self._call = self._call, None
        if call is not None:
            call.undo()

    def _after_forward(self, decoder: nn.Module, args: tuple, output: Any) -> None:
        if output is None:
            self._break_off()
        call, self._call = self._call, None
        if call is None:
            return
        if call.step is None:
            raise VistokError(f"{type(self.model).__name__} computes its attention itself: no policy can change it.")
        report, step = self.last, call.step
        added = torch.tensor(call.new) if step.counts is None else step.counts
        if call.cache is not None:
            before = call.cache.step_tokens(call.batch, step.cache.lengths.device)
            call.cache.tokens = before + added.to(before)
            call.cache.columns += call.new
            report.tokens, report.kept = call.cache.tokens.tolist(), step.cache.lengths.tolist()
        if step.decoding:
            report.steps += 1
            longest = max(report.tokens) if call.cache is not None else call.drafts.shape[-1]
            report.full += 2 * self.layers * longest

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Returns the attention of one layer, [B, T, Hq, D] of [B, H, T, D]."""
        call = self._call
        if k.shape[3] != v.shape[3]:
            raise VistokError(
                f"{type(self.model).__name__} has values narrower than keys, which no policy keeps: call the model "
                "without one, or take another model."
            )
        policy = self.policy if call.cache is None else call.cache.policy
        if call.step is None:
            call.begin(q, k, self.last)
        step = call.step
        if step.cache is not None:
            step.cache.restore(step.start)
        if call.cache is None or (policy.learns and self.model.training):
            out = policy.attend(step, module.layer_idx, call.flush(q), call.flush(k), call.flush(v), scale)
            return call.back(out).transpose(1, 2).contiguous()  # as transformers' own, of which JetMoe takes views
        with torch.no_grad():
            out = policy.attend(step, module.layer_idx, call.flush(q), call.flush(k), call.flush(v), scale)
            out = call.back(out).transpose(1, 2).contiguous()
        return Blocked.apply(out, q) if q.requires_grad and torch.is_grad_enabled() else out


def _wants_cache(kwargs: dict[str, Any], config: Any) -> bool:
    used = kwargs.get("use_cache")
    return bool(getattr(config, "use_cache", True) if used is None else used)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """transformers' entry: an attention function."""
    context = vars(module).get(_HOME)
    if context is None or context._call is None:
        raise VistokError("a part of this model was called alone: call the model, or remove() its context policy.")
    if unread := [name for name in _UNREAD if options.get(name) is not None]:
        raise VistokError(f"{type(module).__name__} has {unread[0]} in its attention, which no policy computes.")
    if options.get("dropout"):
        raise VistokError("attention dropout is at work: set config.attention_dropout to 0, or call model.eval().")
    return context.attend(module, query, key, value, options.get("scaling")), None


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if ATTENTION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)


def active(model: nn.Module) -> Context | None:
    """Returns the context that keeps a model's cache at the moment; None if there is none."""
    return attached(model, Context.slot)


def apply(model: nn.Module, policy: Policy) -> Context:
    """Lets a decoder of transformers keep and read its cache by a policy.

    ``model.generate(...)`` and ``model(...)`` take what they always took; a cache that a call returned may be given to
    the next one.

    Args:
        model: a causal LM with full attention in all layers, or a multimodal model around one; also inside PEFT.
        policy: such as ``vistok.context.TidalDecode(top_k=256)``.

    Returns:
        A handle with ``remove()`` and ``last``; as a context manager it removes itself.

    Raises:
        VistokError: the policy cannot work on this model, or one is at work already.
    """
    model = unwrapped(model)
    if not isinstance(policy, Policy):
        raise VistokError(f"{policy!r} is no policy: pass one such as vistok.context.TidalDecode(top_k=256).")
    check_model(model)
    if active(model) is None and not model.training:  # dropout would be a difference too
        _check_attention(model)
    return Context(model, policy)


@torch.no_grad()
def _check_attention(model: nn.Module) -> None:
    """Raises VistokError if full attention over the package's cache gives a model other hidden states than its own."""
    if model not in _tried:
        decoder, device = model.get_decoder(), model.get_input_embeddings().weight.device
        ids = 1 + torch.arange(TRIAL, device=device)[None] % max(1, decoder.config.vocab_size - 1)
        with Context(model, Full()) as context:
            with context.paused():
                wanted = decoder(input_ids=ids, use_cache=False).last_hidden_state
            first = decoder(input_ids=ids[:, :-1], use_cache=True)
            cache = {cache_argument(decoder): given_cache(first)}
            last = decoder(input_ids=ids[:, -1:], use_cache=True, **cache).last_hidden_state
        found = torch.cat([first.last_hidden_state, last], 1)
        apart = float((found - wanted).abs().max() / wanted.float().std().clamp(min=1e-12))
        _tried[model] = apart <= TOLERANCE.get(wanted.dtype, HALF_TOLERANCE)
    if not _tried[model]:
        raise VistokError(
            f"{type(model).__name__} computes its attention in a way of its own: no policy can change it."
        )
