"""Put something on a transformers model and undo it without a trace: what compression, pruning and acceleration share.

An :class:`Attachment` is found on the model by its slot, hooks the model's modules, and may stand around ``generate``.
The model keeps its class, so it saves, pickles, copies and passes ``isinstance`` as what it is; a copy takes its own
copy of the attachment along, and a PEFT wrapper finds it where it is.

Why ``generate`` is an attribute of the model, as transformers itself sets it for custom decoding, and not the argument
``custom_generate``: that one is given call by call, and runs after pictures are encoded, limits are set and a cache is
made, which is too late for whoever changes the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import nn

from vistok.errors import VistokError

_ATTACHED = "_vistok_attached"


class Attachment:
    """Something that works on a model until :meth:`remove`, such as a compressor; also a context manager.

    Subclasses register their hooks with :meth:`before` and :meth:`after`, and may override :meth:`generate`.

    Args:
        model: a model of transformers, without its PEFT wrapper.

    Raises:
        VistokError: the slot is taken.
    """

    slot: ClassVar[str] = ""

    def __init__(self, model: nn.Module) -> None:
        if attached(model, self.slot) is not None:
            raise VistokError(f"this model has a {self.slot} already: remove() that first.")
        self.model = model
        self._handles: list[Any] = []
        state = vars(model)
        if _ATTACHED not in state:
            state[_ATTACHED] = {}
            state["generate"] = _Generate(model, state.get("generate"))
        state[_ATTACHED][self.slot] = self

    def generate(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs in the place of the model's ``generate``; ``plain`` is the one that it has without this attachment."""
        return plain(*args, **kwargs)

    def keywords(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of a ``generate`` call behind ``inputs`` and ``generation_config``, all by name."""
        names = list(inspect.signature(type(self.model).generate).parameters)[3:]
        return kwargs | dict(zip(names, args, strict=False))

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Registers ``hook(module, args, kwargs)`` to be called before each forward of a module."""
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any], always: bool = False) -> None:
        """Registers ``hook(module, args, output)`` to be called after each forward of a module; ``always`` also after
        one that raises an ``Exception``, with None as its output.
        """
        self._handles.append(module.register_forward_hook(hook, always_call=always))

    def remove(self) -> None:
        """Gives the model back as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if attached(self.model, self.slot) is not self:
            return
        state = vars(self.model)
        del state[_ATTACHED][self.slot]
        if not state[_ATTACHED]:
            del state[_ATTACHED]
            earlier = state.pop("generate").earlier
            if earlier is not None:
                state["generate"] = earlier

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class _Generate:
    """``model.generate`` with the attachments around it, the latest outermost."""

    def __init__(self, model: nn.Module, earlier: Callable[..., Any] | None) -> None:
        self.model = model
        self.earlier = earlier  # an attribute that the model had

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = getattr(type(self.model), "generate", None)  # a generator of this package has none of its own
        call = self.earlier or (None if own is None else partial(own, self.model))
        for attachment in vars(self.model)[_ATTACHED].values():
            call = partial(attachment.generate, call)
        return call(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.earlier or partial(type(self.model).generate, self.model))


def attached(model: nn.Module, slot: str) -> Any | None:
    """Returns what works on a model in a slot, or None; a wrapper of PEFT or ``torch.compile`` is looked through."""
    inner = unwrapped(getattr(model, "_orig_mod", model))
    return getattr(inner, "__dict__", {}).get(_ATTACHED, {}).get(slot)


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model inside its PEFT wrapper, or the model itself.

    Raises:
        VistokError: the model is compiled.
    """
    if hasattr(model, "_orig_mod"):
        raise VistokError("change the model first, then torch.compile it: a compiled model cannot be changed.")
    return model.get_base_model() if hasattr(model, "get_base_model") else model
