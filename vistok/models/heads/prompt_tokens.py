"""Prompt tokens of parallel prompt decoding (PPD, arXiv 2405.18628): trained embeddings that read the text up to a
token and predict what follows the next one.

The published checkpoints are PEFT adapters: ``adapter_config.json``, and ``adapter_model.safetensors`` or ``.bin`` with
the one key ``prompt_embeddings`` [m e, H]. Their reader removes an entry of the config on disk; this one only reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.files import writable_folder, write_json
from vistok.models.heads.extra_rows import RowNetwork
from vistok.zoo.checkpoint import read_state_dict, write_state_dict
from vistok.zoo.pretrained import read_entries, saved_dtype
from vistok.zoo.registry import resolve

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
KEY = "prompt_embeddings"
ATTENTION = ("ensemble", "decoder", "encoder")
# Entries that say nothing about what the rows compute.
SILENT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
        *("num_attention_heads", "num_layers", "num_transformer_submodules", "task_type", "use_cache"),
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"),
    }
)


class PromptTokens(RowNetwork):
    """Embeddings of the rows.

    Args:
        embeddings: [m e, H], those of one prompt token behind one another.
        group: rows e of a prompt token.
        attention: who sees whom: a row sees the rows of its own number in its own and earlier groups (``ensemble``, as
            published), all earlier rows (``decoder``), or its own group (``encoder``).

    Raises:
        VistokError: unknown attention, or embeddings that are no whole groups.
    """

    arxiv: ClassVar[str] = "2405.18628"

    def __init__(self, embeddings: Tensor, group: int = 1, attention: str = "ensemble"):
        super().__init__()
        if attention not in ATTENTION:
            raise unknown_name("attention of prompt tokens", attention, list(ATTENTION))
        if embeddings.ndim != 2 or group < 1 or len(embeddings) % group or not len(embeddings):
            raise VistokError(
                f"prompt embeddings have the shape [tokens x {group}, width], not {list(embeddings.shape)}."
            )
        self.prompt_embeddings = nn.Parameter(embeddings.clone())
        self.ahead, self.group, self.attention = len(embeddings) // group, group, attention
        self.hidden_size = embeddings.shape[1]
        number = torch.arange(len(embeddings))
        token, copy = number // group, number % group
        sees = {
            "ensemble": (copy[:, None] == copy) & (token[:, None] >= token),
            "decoder": number[:, None] >= number,
            "encoder": token[:, None] == token,
        }
        self.register_buffer("sees", sees[attention], persistent=False)

    @staticmethod
    def initial(model: nn.Module, words: list[list[int]], group: int = 1, attention: str = "ensemble") -> PromptTokens:
        """Returns untrained ones: for each prompt token the mean embedding of a text, such as "Next 2 word"."""
        table = model.get_input_embeddings().weight.detach()
        means = torch.stack([table[torch.tensor(ids, device=table.device)].mean(0) for ids in words])
        return PromptTokens(means.repeat_interleave(group, 0).float(), group, attention)

    def states(self, attached: Tensor, which: Tensor) -> Tensor:
        """Returns the embeddings, whatever the token."""
        return self.prompt_embeddings[which].expand(len(attached), -1, -1)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> PromptTokens:
        """Loads an adapter strictly; its files stay as they are.

        Args:
            name: a folder, or an embedded one such as ``text-mini-ppd``.

        Raises:
            VistokError: no such adapter, entries that are not understood, or weights of another layout.
        """
        folder = resolve(name)
        config = read_entries(folder / CONFIG)
        group, count = config.pop("virtual_tokens_per_special_token", 1), config.pop("num_special_tokens", None)
        attention = _value(config.pop("vt_attention_type", "decoder"))
        virtual, width = config.pop("num_virtual_tokens", None), config.pop("token_dim", None)
        if (aggregation := _value(config.pop("aggregation_type", "mean"))) != "mean":
            raise VistokError(f"'{name}' aggregates its prompt tokens by {aggregation}; only the mean is supported.")
        if config.pop("num_exits", 1) != 1:
            raise VistokError(f"'{name}' averages the last layers (num_exits), which is not supported.")
        if asked := sorted(key for key, value in config.items() if key not in SILENT and value):
            raise VistokError(f"'{name}' has entries in {CONFIG} that are not supported: {', '.join(asked)}.")
        file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise VistokError(f"'{name}' has no {' or '.join(WEIGHTS)}: name a folder with prompt tokens.")
        state = read_state_dict(file)
        if set(state) != {KEY}:
            held = ", ".join(sorted(state)[:3]) or "nothing"
            raise VistokError(f"'{file}' is to hold the one key {KEY}, not {held}: name published prompt tokens.")
        found = cls(state[KEY].float(), group, attention)
        for what, stated, real in (
            ("num_special_tokens", count, found.ahead),
            ("num_virtual_tokens", virtual, len(state[KEY])),
            ("token_dim", width, found.hidden_size),
        ):
            if stated is not None and stated != real:
                raise VistokError(f"'{name}' says {what} {stated}, but its embeddings {list(state[KEY].shape)} {real}.")
        return found.eval()

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | str | None = None) -> None:
        """Writes the published layout; see ``Pretrained.save_pretrained``."""
        folder = writable_folder(folder)
        number_format = saved_dtype(dtype) or self.prompt_embeddings.dtype
        entries = {
            "num_special_tokens": self.ahead,
            "virtual_tokens_per_special_token": self.group,
            "num_virtual_tokens": self.ahead * self.group,
            "token_dim": self.hidden_size,
            "vt_attention_type": self.attention,
            "aggregation_type": "mean",
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
        }
        write_json(folder / CONFIG, entries)
        write_state_dict(folder / WEIGHTS[0], {KEY: self.prompt_embeddings.to(number_format)})


def _value(entry: Any) -> str:
    """An entry of the published enumerations, which are written by value or as ``Kind.VALUE``."""
    return str(entry).rpartition(".")[2].lower()
