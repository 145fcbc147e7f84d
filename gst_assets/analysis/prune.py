"""Cleaning up an artifact root: of old comparisons only what the history needs stays, and the runs and workloads that
only they needed go.

What stays: of each scenario the newest comparisons and what they compared; what its newest pointers lead to, and the
newest ones without overrides; every run that was not compared yet; profiles, also those in progress, searches and
sweeps. What was removed can be made again only by measuring, so whatever cannot be understood stops it before anything
is removed. How things are removed belongs to `contracts.store`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gst_assets.analysis.history import condense, known_digests, read_night
from gst_assets.contracts.documents import ComparisonMeta, read_document
from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.pointers import SLOTS, Pointer, pointers, split
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError

Artifact = tuple[Kind, str]
_RUNS = (Kind.REAL_RUN, Kind.VIDUR_RUN)


@dataclass(frozen=True)
class Pruned:
    """What was removed (or would be) and what stayed. `condensed`: comparisons of which only the history's part is
    left; `removed`: runs and workloads; `pointers`: files of pointers to what was removed; `kept`: how many of each
    kind stay; `freed_bytes`: of this machine's disk."""

    condensed: list[str] = field(default_factory=list)
    removed: list[Artifact] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    kept: dict[Kind, int] = field(default_factory=dict)
    freed_bytes: int = 0


def prune(store: ArtifactStore, keep: int, *, dry_run: bool = False) -> Pruned:
    """Leave the `keep` newest comparisons of each scenario whole. With `dry_run` nothing is changed, and the same is
    returned.

    Raises:
        ArtifactError: `keep` is less than 1, or something was altered, or cannot be read or removed. ContractError: a
            document that is none.
    """
    if keep < 1:
        raise ArtifactError(f"keep {keep}: expected 1 or more, as the newest comparison of a scenario always stays.")
    comparisons = {name: _comparison(store, name) for name in store.list(Kind.COMPARISON)}
    needed = _needed_by_pointers(store, keep)
    staying = {name for kind, name in needed if kind is Kind.COMPARISON} | _newest(comparisons, keep)
    going = sorted(comparisons.keys() - staying)
    needed |= {one for name in comparisons.keys() & staying for one in _compared(comparisons[name])}
    # Those of earlier prunings too: one that was interrupted left their runs.
    pruned = [*(comparisons[name] for name in going), *(read_night(store, name) for name in store.list(Kind.NIGHT))]
    there = {kind: store.list(kind) for kind in (*_RUNS, Kind.WORKLOAD)}
    candidates = {one for meta in pruned for one in _compared(meta)} - needed
    removed = [(kind, name) for kind in _RUNS for name in there[kind] if (kind, name) in candidates]
    used = {_workload_of(store, kind, name) for kind in _RUNS for name in there[kind] if (kind, name) not in candidates}
    removed += [
        (Kind.WORKLOAD, name)
        for name in there[Kind.WORKLOAD]
        if (Kind.WORKLOAD, name) in candidates and name not in used
    ]
    result = Pruned(
        going,
        removed,
        _pointers_to(store, set(removed)),
        {kind: len(names) - sum(one is kind for one, _ in removed) for kind, names in there.items()}
        | {Kind.COMPARISON: len(comparisons) - len(going)},
        sum(_size(store.path(kind, name)) for kind, name in [*((Kind.COMPARISON, name) for name in going), *removed]),
    )
    if not dry_run:
        _remove(store, result, comparisons)
    return result


def _remove(store: ArtifactStore, chosen: Pruned, comparisons: Mapping[str, ComparisonMeta]) -> None:
    """Comparisons first, and each only once its night is there: whenever this ends, the history is the same."""
    scenarios = {comparisons[name].hydra.config_name for name in chosen.condensed}
    seals = {name: digest for scenario in scenarios for name, digest in known_digests(store, scenario).items()}
    for name in chosen.condensed:
        condense(store, name, seals.get(name) or None)
        store.remove(Kind.COMPARISON, name)
    for pointer in chosen.pointers:
        store.remove_pointer(pointer)
    for kind, name in chosen.removed:
        store.remove(kind, name)


def _comparison(store: ArtifactStore, name: str) -> ComparisonMeta:
    return read_document(ComparisonMeta, store.open(Kind.COMPARISON, name, verify=False) / Kind.COMPARISON.meta_name)


def _newest(comparisons: Mapping[str, ComparisonMeta], keep: int) -> set[str]:
    """The `keep` newest comparisons of each scenario."""
    by_scenario: dict[str, list[str]] = {}
    for name in sorted(comparisons, key=lambda name: (comparisons[name].started_at, name), reverse=True):
        by_scenario.setdefault(comparisons[name].hydra.config_name, []).append(name)
    return {name for names in by_scenario.values() for name in names[:keep]}


def _compared(meta: ComparisonMeta) -> set[Artifact]:
    """The runs that were compared, and their workload. Runs outside the root are of the same name as none in it."""
    real = {(Kind.REAL_RUN, Path(run).name) for run in meta.real_run_dirs}
    seeds = [run for runs in meta.seed_run_dirs.values() for run in runs]
    simulated = {(Kind.VIDUR_RUN, Path(run).name) for run in (*meta.sim_run_dirs.values(), *seeds)}
    # Runs of other programs may not state their workload.
    workload = {(Kind.WORKLOAD, meta.workload_id)} if meta.workload_id is not None else set()
    return {*real, *simulated, *workload}


def _needed_by_pointers(store: ArtifactStore, keep: int) -> set[Artifact]:
    """What the `keep` newest pointers of every slot lead to, and the newest that was set without overrides."""
    needed: set[Artifact] = set()
    for scenario in store.scenarios():
        for slot in SLOTS:
            found = [pointer for _, pointer in pointers(store, scenario, slot)]
            plain = [pointer for pointer in found if not (pointer.params or {}).get("overrides")]
            needed |= {one for pointer in (*found[:keep], *plain[:1]) for one in _named(pointer)}
    return needed


def _named(pointer: Pointer) -> set[Artifact]:
    """The artifacts that a pointer names; one of an earlier version has no seals, but the same ids."""
    values: dict[str, Any] = pointer.model_dump()
    named = {split(name) for name in pointer.sealed}
    if workload := values.get("workload_id"):
        named.add((Kind.WORKLOAD, workload))
    if comparison := values.get("comparison_id"):
        named.add((Kind.COMPARISON, comparison))
    runs = values.get("run_ids", [])
    if isinstance(runs, dict):
        named |= {(Kind.VIDUR_RUN, name) for name in runs.values()}
    else:
        named |= {(Kind.REAL_RUN, name) for name in runs}
    seeds: Iterable[list[str]] = values.get("seed_run_ids", {}).values()
    return named | {(Kind.VIDUR_RUN, name) for names in seeds for name in names}


def _pointers_to(store: ArtifactStore, removed: set[Artifact]) -> list[str]:
    """Files of the pointers to anything removed. Those to comparisons stay: they seal what is left of them."""
    return [
        name
        for scenario in store.scenarios()
        for slot in SLOTS
        for name, pointer in pointers(store, scenario, slot)
        if _named(pointer) & removed
    ]


def _workload_of(store: ArtifactStore, kind: Kind, name: str) -> str | None:
    """The workload of a run; None where it states none.

    Raises:
        ArtifactError: its metadata cannot be read.
    """
    path = store.open(kind, name, verify=False) / kind.meta_name
    try:
        told = json.loads(path.read_bytes())
        found = told.get("workload_id") if isinstance(told, dict) else None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). Restore or remove {path.parent} first.") from None
    return found if isinstance(found, str) else None


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def prune_command(keep: int, dry_run: bool) -> list[str]:
    """`gst prune`: prune the artifact root of the environment; returns what to print, line by line.

    Raises:
        ArtifactError, ContractError: as `prune`.
    """
    store = open_store()
    return described(prune(store, keep, dry_run=dry_run), store, dry_run=dry_run)


def described(pruned: Pruned, store: ArtifactStore, *, dry_run: bool) -> list[str]:
    """What went and what stayed, in words: every removed artifact, then the sums."""
    would = "would go" if dry_run else "gone"
    lines = [f"{would}: comparisons/{name}, except its night" for name in pruned.condensed]
    lines += [f"{would}: {kind.value}/{name}" for kind, name in pruned.removed]
    stayed = ", ".join(f"{count} {kind.value}" for kind, count in pruned.kept.items())
    lines.append(
        f"{store}: {len(pruned.condensed)} comparisons, {len(pruned.removed)} runs and workloads,"
        f" {len(pruned.pointers)} pointers {would}, {pruned.freed_bytes / 2**20:.1f} MiB; {stayed} stay, and every"
        " night of the history"
    )
    return lines
