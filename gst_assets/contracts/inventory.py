"""Which runs an artifact root holds, from their metadata files alone: what, when, how it ended. Reads no table.

Importable without pandas, so that a listing answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gst_assets.contracts.store import ArtifactStore, Kind, parse_object
from gst_assets.errors import ArtifactError

LISTED = (Kind.REAL_RUN, Kind.VIDUR_RUN, Kind.COMPARISON, Kind.CAPACITY, Kind.SWEEP)


@dataclass(frozen=True)
class Listed:
    """One run. What its metadata does not say is None, since foreign runs need to say little."""

    kind: Kind
    run_id: str
    scenario: str | None
    model: str | None
    hardware: str | None
    started_at: str | None
    overrides: tuple[str, ...]
    status: str

    @property
    def when(self) -> str:
        """For sorting: the moment of its start as text, empty where it is not stated."""
        return self.started_at or ""


def list_runs(store: ArtifactStore, kinds: Sequence[Kind] = LISTED, scenario: str | None = None) -> list[Listed]:
    """The complete runs of these kinds, newest first; of one scenario, if it is named.

    A run whose metadata cannot be read is listed with what is wrong as its status, under no scenario: it hides none of
    the others.

    Raises:
        ArtifactError: a folder of the root cannot be listed.
    """
    found = [_listed(store, kind, run_id) for kind in kinds for run_id in store.list(kind)]
    wanted = [one for one in found if scenario in (None, one.scenario)]
    return sorted(wanted, key=lambda one: (one.when, one.run_id), reverse=True)


def _listed(store: ArtifactStore, kind: Kind, run_id: str) -> Listed:
    try:
        file = store.open(kind, run_id, verify=False) / kind.meta_name
        meta = parse_object(file.read_bytes(), file)
    except (ArtifactError, OSError) as error:
        return Listed(kind, run_id, None, None, None, None, (), f"unreadable: {' '.join(str(error).split())}")
    params, hardware = _mapping(meta, "params"), _mapping(meta, "hardware")
    overrides = params.get("overrides")
    return Listed(
        kind,
        run_id,
        _text(params, "name"),
        _text(meta, "model"),
        _text(hardware, "hardware_id"),
        _text(meta, "started_at"),
        tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        _status(kind, meta),
    )


def _status(kind: Kind, meta: dict[str, Any]) -> str:
    if kind is Kind.COMPARISON:
        return _text(meta, "verdict") or "verdict not stated"
    if kind is Kind.REAL_RUN:
        errors = meta.get("num_errors")
        words = [f"{errors} requests failed"] if isinstance(errors, int) and errors else []
        words += ["degraded"] if meta.get("degraded") is True else []
        return ", ".join(words) or "complete"
    if kind is Kind.VIDUR_RUN:
        return f"complete ({_text(meta, 'variant') or 'variant not stated'})"
    return "complete"


def _mapping(meta: dict[str, Any], key: str) -> dict[str, Any]:
    value = meta.get(key)
    return value if isinstance(value, dict) else {}


def _text(meta: dict[str, Any], key: str) -> str | None:
    value = meta.get(key)
    return value if isinstance(value, str) else None
