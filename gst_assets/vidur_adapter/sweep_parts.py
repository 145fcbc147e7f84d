"""How a sweep is cut into parts that any machine may simulate, and what finished parts found.

A part is a run of consecutive configurations. What it found is a directory of the artifact store, which is all that
machines share. So a sweep that was stopped goes on with what is left, and its rows do not depend on how it was cut.
What is simulated belongs to `sweep`; who runs the parts, to the caller.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from gst_assets.contracts.documents import SweepPartMeta, write_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError, SimulationError

_ROWS = "rows.jsonl"
_REQUESTS_A_PART = 250_000
_KEY_DIGITS = 8
_NAME = re.compile(r"(\d+)_of_(\d+)_(\d+)_to_(\d+)_([0-9a-f]+)")


@dataclass(frozen=True)
class Part:
    """Configurations `first` to `last`, both included; the `place`th, from 1, of `count` parts that are to be
    simulated. `key`: the first digits of that of `SweepParts`."""

    place: int
    count: int
    first: int
    last: int
    key: str

    @property
    def name(self) -> str:
        """All of it in letters, digits and underscores; names sort as parts do."""
        places, numbers = len(str(self.count)), len(str(self.last))
        return f"{self.place:0{places}}_of_{self.count}_{self.first:0{numbers}}_to_{self.last}_{self.key}"

    @classmethod
    def named(cls, name: str) -> Self:
        """The part of that `name`."""
        found = _NAME.fullmatch(name)
        assert found is not None, name
        return cls(int(found[1]), int(found[2]), int(found[3]), int(found[4]), found[5])


def cut(num_jobs: int, size: int, known: Collection[int], key: str) -> list[Part]:
    """The parts of `size` configurations of which something is not `known`; where nothing is left, the last one, so
    that somebody puts the sweep together."""
    ranges = [range(first, min(first + size, num_jobs)) for first in range(0, num_jobs, size)]
    left = [one for one in ranges if not all(number in known for number in one)] or ranges[-1:]
    return [Part(place, len(left), one[0], one[-1], key[:_KEY_DIGITS]) for place, one in enumerate(left, 1)]


def usual_size(num_requests: int) -> int:
    """Configurations in a part, of which each simulates `num_requests` requests in all, where parts are spread over
    machines: a few seconds of simulation, which is more than starting a step takes, and little to lose."""
    return max(1, _REQUESTS_A_PART // num_requests)


class SweepParts:
    """What the finished parts of one sweep found, in the artifact store. `key`, hexadecimal digits, stands for
    everything that decides the rows."""

    def __init__(self, store: ArtifactStore, key: str) -> None:
        self._store, self._key = store, key

    def rows(self) -> dict[int, Any]:
        """What was found of each configuration, by its number.

        Raises:
            ArtifactError: a part was altered, or is gone since it was listed.
        """
        found: dict[int, Any] = {}
        for name in self._names():
            lines = (self._store.open(Kind.SWEEP_PART, name) / _ROWS).read_text(encoding="utf-8").splitlines()
            found.update(json.loads(line) for line in lines)
        return found

    def complete(self, num_jobs: int) -> list[Any]:
        """What was found of each of the `num_jobs` configurations, in order.

        Raises:
            SimulationError: something is missing. ArtifactError: as `rows`.
        """
        found = self.rows()
        missing = [number for number in range(num_jobs) if number not in found]
        if missing:
            raise SimulationError(
                f"{self._store}: {Kind.SWEEP_PART.value}/{self._key}-*: nothing of configuration {missing[0]}"
                f" ({len(missing)} of {num_jobs} missing), though every part was simulated. Another run of the same"
                " sweep ended meanwhile and removed them. Materialize the sweep again."
            )
        return [found[number] for number in range(num_jobs)]

    def add(self, rows: Mapping[int, Any]) -> None:
        """Keep what was found; JSON gives it back to the bit.

        Raises:
            ArtifactError: the store cannot be written.
        """
        # A name of its own: two runs of one sweep that leave out other rows write other files.
        name = f"{self._key}-{min(rows)}-{max(rows)}-{secrets.token_hex(4)}"
        with self._store.stage(Kind.SWEEP_PART, name) as staging:
            lines = [json.dumps([number, row]) + "\n" for number, row in rows.items()]
            (staging.path / _ROWS).write_text("".join(lines), encoding="utf-8")
            meta = SweepPartMeta(sha256=staging.digests())
            write_document(meta, staging.path / Kind.SWEEP_PART.meta_name)
            staging.commit()

    def remove(self) -> None:
        """The sweep is complete. What another run of the same sweep removed meanwhile is gone as well.

        Raises:
            ArtifactError: one cannot be removed.
        """
        for name in self._names():
            try:
                self._store.remove(Kind.SWEEP_PART, name)
            except ArtifactError:
                if name in self._names():
                    raise

    def _names(self) -> list[str]:
        return [name for name in self._store.list(Kind.SWEEP_PART) if name.startswith(f"{self._key}-")]
