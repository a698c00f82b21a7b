"""Long jobs cut into shards: killed at any moment and started again, nothing is lost, doubled or torn.

A shard is one file, written under a temporary name and renamed; that it exists means that it is whole. Shard ``i``
belongs to process ``i % world``, and its content does not depend on the number of processes, so neither does the
result. The manifest says what the job is; a folder that holds another job is refused. It is written when there is a
first shard to write, so that a job that fails before leaves the folder to the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from vistok.errors import VistokError
from vistok.files import atomic_path

MANIFEST = "manifest.json"  # of a job's folder


class ShardedJob:
    """The folder of one resumable job.

    Args:
        folder: where its shards and manifest live; shared by all processes of the job.
        identity: everything that the content of the shards depends on, JSON-able.
        shards: how many there are.
        suffix: of the shard files.
        others: names of what else the job writes into its folder, or takes for done.

    Raises:
        VistokError: if the folder holds another job, or files of these names that no job is known of.
    """

    def __init__(self, folder: str | Path, identity: dict, shards: int, suffix: str, others: Iterable[str] = ()):
        self.folder, self.shards, self.suffix = Path(folder), shards, suffix
        self._manifest = json.dumps({**identity, "shards": shards}, indent=1, sort_keys=True)
        self._others = list(others)
        self._claimed = False
        self._check()

    def claim(self) -> None:
        """Writes the manifest, if it is not there: before the first shard, and before the ``others``.

        Raises:
            VistokError: as the constructor, of what has come into the folder since.
        """
        if self._claimed:
            return
        self._check()
        if not (self.folder / MANIFEST).exists():
            with atomic_path(self.folder / MANIFEST) as temporary:
                temporary.write_text(self._manifest)
        self._claimed = True

    def _check(self) -> None:
        manifest = self.folder / MANIFEST
        foreign = self._first_of(self._others)  # looked for before the manifest, which comes before all of them
        if manifest.exists():
            stored, wanted = _read(manifest), json.loads(self._manifest)
            if stored != wanted:
                raise VistokError(
                    f"'{self.folder}' holds another job (its {', '.join(sorted(_changed(stored, wanted)))} differ): "
                    "choose another folder or remove this one."
                )
        elif foreign is not None:
            raise VistokError(
                f"'{self.folder}' holds '{foreign}', and no manifest says what made it: choose another folder, or move "
                "it away."
            )

    def _first_of(self, others: Iterable[str]) -> str | None:
        """Name of a file in the folder that the job would replace or take for its own."""
        if not self.folder.is_dir():
            return None
        there = {path.name for path in self.folder.iterdir()}  # one look, however many shards
        names = chain((self.path(shard).name for shard in range(self.shards)), others)
        return next((name for name in names if name in there), None)

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}{self.suffix}"

    def pending(self, rank: int = 0, world: int = 1) -> list[int]:
        """Shards of this process that are not done yet."""
        return [shard for shard in range(rank, self.shards, world) if not self.path(shard).exists()]

    def settle(self, name: str, measure: Callable[[], Any]) -> Any:
        """Returns what is measured once for a job: by the process that comes first, for all others and every resume.

        Args:
            name: of the file beside the manifest that keeps it.
            measure: gives it, JSON-able.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            measured = measure()
            self.claim()
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=f".{name}", encoding="utf-8") as own:
                json.dump(measured, own)
                own.flush()
                with contextlib.suppress(FileExistsError):  # another process was first
                    os.link(own.name, path)
        return json.loads(path.read_text(encoding="utf-8"))

    def check_complete(self) -> None:
        """Raise VistokError if a shard is missing, e.g. because another process of the job died."""
        if missing := self.pending():
            raise VistokError(f"{len(missing)} of {self.shards} shards of '{self.folder}' are missing: run it again.")


def _changed(stored: dict, wanted: dict) -> Iterator[str]:
    """Names of the entries that differ; of groups of entries, those inside."""
    for name in {**stored, **wanted}:
        before, now = stored.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changed(before, now)
        elif before != now:
            yield name


def _read(manifest: Path) -> dict:
    try:
        stored = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VistokError(f"cannot read '{manifest}' ({error}): choose another folder or remove this one.") from error
    if not isinstance(stored, dict):
        raise VistokError(f"'{manifest}' is not the manifest of a job: choose another folder or remove this one.")
    return stored
