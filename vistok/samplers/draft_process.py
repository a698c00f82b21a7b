"""A draft model in a process of its own, for PEARL: Python's lock then never makes one model wait for the other.

The two processes speak over pipes: a message is its length, then its bytes. Texts travel as int64 and laws in the
floating-point type in which they were formed, so that no id passes through a float. The weights travel by a folder of
safetensors.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.params import SamplingParams

LENGTH = struct.Struct("<q")
FAILED, TYPES = b"!", {b"4": np.float32, b"8": np.float64}


def send(sink: BinaryIO, message: bytes) -> None:
    """Writes a message."""
    sink.write(LENGTH.pack(len(message)) + message)
    sink.flush()


def receive(source: BinaryIO) -> bytes | None:
    """Reads a message and returns it; None where the other side is gone."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    message = source.read(size)
    return message if len(message) == size else None


class DraftProcess:
    """A causal LM that another process runs, behind PEARL's ``Side``.

    Args:
        model: loaded by transformers; it stays as it is.

    Raises:
        VistokError: the process does not start.
    """

    def __init__(self, model: nn.Module):
        weight = model.get_input_embeddings().weight
        self._device = weight.device
        with tempfile.TemporaryDirectory(prefix="vistok-draft-") as folder:
            model.save_pretrained(folder)
            command = [sys.executable, "-m", "vistok.samplers.draft_process"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            weakref.finalize(self, _end, self._process)
            entries = {"folder": folder, "device": str(weight.device), "threads": torch.get_num_threads()}
            self._ask(json.dumps(entries).encode())

    def begin(self, params: SamplingParams, length: int, vocabulary: int) -> DraftProcess:
        """Returns itself, with an empty cache; see ``CachedSide``."""
        self._ask(json.dumps({"params": asdict(params), "length": length, "vocabulary": vocabulary}).encode())
        return self

    def laws(self, text: Tensor, rows: int) -> Tensor:
        """See ``Side.laws``."""
        ids = np.concatenate([[rows], text.cpu().numpy()]).astype("<i8")
        reply = self._ask(ids.tobytes())
        laws = np.frombuffer(reply[1:], TYPES[reply[:1]]).reshape(rows, -1)
        return torch.from_numpy(laws.copy()).to(self._device)

    def _ask(self, message: bytes) -> bytes:
        try:
            send(self._process.stdin, message)
            reply = receive(self._process.stdout)
        except (OSError, ValueError):
            reply = None
        if reply is None:
            raise VistokError(
                "the process of the draft model has ended: see what it wrote, or leave processes=True out of Pearl."
            )
        if reply[:1] == FAILED:
            raise VistokError(f"the process of the draft model failed: {reply[1:].decode()}")
        return reply

    def close(self) -> None:
        """Ends the process."""
        _end(self._process)


def _end(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        pipe.close()
    process.wait()


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answers messages until the other side is gone."""
    from transformers import AutoModelForCausalLM

    from vistok.samplers.parallel import CachedSide

    model: nn.Module | None = None
    side: Any = None
    while (message := receive(source)) is not None:
        try:
            if message[:1] != b"{":
                rows, *text = np.frombuffer(message, "<i8").tolist()
                laws = side.laws(torch.tensor(text, device=model.device), rows).cpu().contiguous().numpy()
                send(sink, str(laws.itemsize).encode() + laws.tobytes())
                continue
            entries = json.loads(message)
            if "folder" in entries:
                torch.set_num_threads(entries["threads"])
                model = AutoModelForCausalLM.from_pretrained(entries["folder"], local_files_only=True, dtype="auto")
                model = model.to(entries["device"]).eval()
            else:
                side = CachedSide(model, SamplingParams(**entries["params"]), entries["length"], entries["vocabulary"])
            send(sink, b"+")
        except Exception as error:  # whatever it is belongs to the process that asked
            send(sink, FAILED + f"{type(error).__name__}: {error}".encode())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and is for the process that asks
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between replies
    serve(sys.stdin.buffer, replies)
