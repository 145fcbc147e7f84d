"""The history of a scenario: every completed comparison, read from the artifact directories, which are the only source
of truth. Of one that was pruned, what the history needs of it lies under `nights/`, and gives the same row.

Reading and ordering only; what the line means belongs to `change_points`. The same directories give the same bytes.
Nothing is cached between two readings: joined tables read so fast (docs/nightly.md) that a cache would not be worth its
risks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import (
    ComparisonMeta,
    HistoryMeta,
    NightMeta,
    StatedHardware,
    read_document,
    write_document,
)
from gst_assets.contracts.pointers import COMPARISON, pointers
from gst_assets.contracts.store import ArtifactStore, Kind, check_seal, directory_digests, pointer_folder
from gst_assets.contracts.tables import ComparisonHistory, LatencyErrors, LatencyHistory, Table, read_table, validate
from gst_assets.contracts.tables import write_table as write_contract_table
from gst_assets.errors import ArtifactError, ContractError, GstError
from gst_assets.input_files import JsonProblem, parse_json
from gst_assets.provenance import sha256_bytes

_NIGHT_META = "comparison.json"
"""A pruned comparison's own metadata document, in its directory under `nights/`."""
_ERRORS = f"tables/{LatencyErrors.file_name()}"
_NOT_PART_OF_THE_SUBJECT = {"architecture", "engine_version", "num_kv_blocks", "tensor_parallel_size"}
"""Engine settings that may differ between two nights of one subject. Architecture and tensor parallel degree are among
the scenario's settings, and were not always reported. A version is what a regression may come from, and the number of
KV blocks depends on the memory that was free at start; both are marked on the line instead."""


@dataclass(frozen=True)
class History:
    """`comparisons` is a `ComparisonHistory` in order of measurement, `latencies` a `LatencyHistory` in the same order.
    `gone`: comparisons that the history before, or a pointer set since, knows and that are no longer there."""

    scenario: str
    comparisons: pd.DataFrame
    latencies: pd.DataFrame
    gone: tuple[str, ...] = ()


def read_history(store: ArtifactStore, scenario: str) -> History:
    """Every complete comparison of `scenario` under the artifact root; the digest of each latency table is verified,
    and that of each metadata file where the history before or a pointer recorded it.

    Comparisons that cannot be read are passed over where their id names another scenario.

    Raises:
        ArtifactError: a comparison was altered or its latency table is missing, or all that were known are gone.
            ContractError: one breaks the contract. Each names the file or folder.
    """
    rows: list[dict[str, Any]] = []
    tables: list[_LatencyTable] = []
    # Nights last: what is pruned meanwhile is then in one of the lists.
    kinds = {name: kind for kind in (Kind.COMPARISON, Kind.NIGHT) for name in store.list(kind)}
    known = known_digests(store, scenario)
    gone = _gone(store, scenario, known, kinds)
    for comparison_id in sorted(kinds):
        kind = kinds[comparison_id]
        try:
            directory = store.open(kind, comparison_id, verify=kind is Kind.NIGHT)
            meta_path = directory / (_NIGHT_META if kind is Kind.NIGHT else kind.meta_name)
            data = meta_path.read_bytes()
            stored = _stored(data, meta_path)
        except (GstError, OSError):
            if comparison_id.startswith(f"{scenario}-") or comparison_id in known:  # a scenario's name has no dash
                raise
            continue
        if known.get(comparison_id):
            check_seal(data, known[comparison_id], meta_path)
        if _scenario_of(stored) == scenario:
            file = directory / (LatencyErrors.file_name() if kind is Kind.NIGHT else _ERRORS)
            tables.append(_LatencyTable(comparison_id, file, _verified(meta_path, stored, file)))
            rows.append(_row(meta_path, sha256_bytes(data)))
    comparisons = _ordered(rows)
    types = _types(LatencyHistory)
    frame = pd.concat(_read_errors(tables), ignore_index=True) if rows else pd.DataFrame(columns=list(types))
    position = {name: number for number, name in enumerate(comparisons["comparison_id"])}
    frame = frame[list(types)].sort_values(
        "comparison_id", key=lambda ids: ids.map(position), kind="stable", ignore_index=True
    )
    return History(scenario, comparisons, _typed(LatencyHistory, frame), gone)


def known_digests(store: ArtifactStore, scenario: str) -> dict[str, str]:
    """The sha256 of the metadata file of each comparison in the history written last, and of those that pointers set
    since name; empty where the pointer is of an earlier version, which recorded none.

    Raises:
        ArtifactError: history or pointers cannot be read.
    """
    known: dict[str, str] = {}
    if scenario in store.list(Kind.HISTORY):
        directory = store.open(Kind.HISTORY, scenario, verify=False)
        # A history that cannot be understood is only replaced by what the comparisons say.
        with suppress(ContractError):
            before = read_table(ComparisonHistory, directory / ComparisonHistory.file_name())
            known = dict(zip(before["comparison_id"], before["meta_sha256"], strict=True))
    for _, pointer in pointers(store, scenario, COMPARISON):
        comparison_id = pointer.comparison_id
        if comparison_id in known:
            break  # the history was made after it, and after all before it
        known[comparison_id] = pointer.sealed.get(f"{Kind.COMPARISON.value}/{comparison_id}", "")
    return known


def _gone(store: ArtifactStore, scenario: str, known: Mapping[str, str], found: Mapping[str, Kind]) -> tuple[str, ...]:
    """The known comparisons that are no longer there. All of them: a folder that was moved, or a disk that is not
    mounted, looks like one that never had any, and the history would be replaced by an empty one.

    Raises:
        ArtifactError
    """
    gone = tuple(sorted(known.keys() - found.keys()))
    if known and len(gone) == len(known):
        raise ArtifactError(
            f"{store}/{Kind.COMPARISON.value}: none of the {len(known)} comparisons of scenario {scenario} that were"
            f" there is there now ({gone[-1]}, for one). Mount or move them back. If they were removed on purpose,"
            f" remove {store}/{Kind.HISTORY.value}/{scenario} and {store}/{pointer_folder(scenario, COMPARISON.name)}"
            " as well, and materialize again."
        )
    return gone


def condense(store: ArtifactStore, comparison_id: str, seal: str | None) -> None:
    """Store what the history needs of a comparison under `nights/`, so that the comparison itself can be removed.
    `seal` as of `store.open`.

    Raises:
        ArtifactError: it was altered, or the root cannot be written.
    """
    directory = store.open(Kind.COMPARISON, comparison_id, verify=False, seal=seal)
    meta_path = directory / Kind.COMPARISON.meta_name
    data = meta_path.read_bytes()
    errors = _verified(meta_path, _stored(data, meta_path), directory / _ERRORS)
    with store.stage(Kind.NIGHT, comparison_id) as staging:
        (staging.path / _NIGHT_META).write_bytes(data)
        (staging.path / LatencyErrors.file_name()).write_bytes(errors)
        meta = NightMeta(comparison_id=comparison_id, sha256=staging.digests())
        write_document(meta, staging.path / Kind.NIGHT.meta_name)
        staging.commit(share=True)


def read_night(store: ArtifactStore, comparison_id: str) -> ComparisonMeta:
    """The metadata of a comparison that was condensed.

    Raises:
        ArtifactError, ContractError
    """
    return read_document(ComparisonMeta, store.open(Kind.NIGHT, comparison_id) / _NIGHT_META)


def write_history(history: History, directory: Path) -> HistoryMeta:
    """Write the tables and then the metadata document into `directory`, which exists and is empty.

    Raises:
        ContractError
    """
    write_contract_table(ComparisonHistory, history.comparisons, directory)
    write_contract_table(LatencyHistory, history.latencies, directory)
    meta = HistoryMeta(
        scenario=history.scenario,
        num_comparisons=len(history.comparisons),
        sha256=directory_digests(directory, Kind.HISTORY.meta_name),
    )
    write_document(meta, directory / Kind.HISTORY.meta_name)
    return meta


def load_history(directory: Path) -> tuple[History, HistoryMeta]:
    """A history directory, validated.

    Raises:
        ContractError
    """
    meta = read_document(HistoryMeta, directory / Kind.HISTORY.meta_name)
    tables = (read_table(model, directory / model.file_name()) for model in (ComparisonHistory, LatencyHistory))
    comparisons, latencies = tables
    return History(meta.scenario, comparisons, latencies), meta


def _stored(data: bytes, path: Path) -> dict[str, Any]:
    try:
        stored = parse_json(data.decode("utf-8"))
    except (JsonProblem, UnicodeDecodeError) as problem:
        raise ContractError(
            f"{path}: not valid JSON ({problem}). Remove {path.parent}, or restore it from a backup."
        ) from None
    if not isinstance(stored, dict):
        raise ContractError(f"{path}: expected a JSON object. Remove {path.parent}, or restore it from a backup.")
    return stored


def _scenario_of(stored: Mapping[str, Any]) -> object:
    asked = stored.get("hydra")
    return asked.get("config_name") if isinstance(asked, dict) else None


def _verified(meta_path: Path, stored: Mapping[str, Any], file: Path) -> bytes:
    """The bytes of a comparison's latency table `file`, which are those its metadata lists."""
    recorded = stored.get("sha256")
    wanted = recorded.get(_ERRORS) if isinstance(recorded, dict) else None
    if wanted is None:
        raise ArtifactError(f"{meta_path}: key sha256 does not list {_ERRORS}. Remove {meta_path.parent}.")
    data = file.read_bytes() if file.is_file() else None
    if data is None or sha256_bytes(data) != wanted:
        raise ArtifactError(
            f"{file}: missing, or changed after it was written, so the history is not reliable. Restore it, or remove"
            f" {meta_path.parent} to leave this comparison out."
        )
    return data


@dataclass(frozen=True)
class _LatencyTable:
    """`data` was read from `file`."""

    comparison_id: str
    file: Path
    data: bytes


def _read_errors(tables: list[_LatencyTable]) -> list[pd.DataFrame]:
    """The latency tables of comparisons, with `comparison_id` in front.

    Tables with the same columns are read as one file: parsing and validating thousands of small ones costs a hundred
    times as much.

    Raises:
        ContractError: names the first file that breaks the contract, and its line.
    """
    groups: dict[bytes, list[_LatencyTable]] = {}
    for table in tables:
        header = table.data[: table.data.find(b"\n") + 1]
        # A quoted field may hold a line break: such a table is read alone.
        is_usual = header and table.data.endswith(b"\n") and b'"' not in table.data
        groups.setdefault(header if is_usual else table.comparison_id.encode(), []).append(table)
    return [_read_joined(header, group) for header, group in groups.items()]


def _read_joined(header: bytes, tables: list[_LatencyTable]) -> pd.DataFrame:
    """Tables that begin with the same line `header`, or a single one."""
    if len(tables) == 1:
        return read_table(LatencyErrors, tables[0].file).assign(comparison_id=tables[0].comparison_id)
    bodies = [table.data[len(header) :] for table in tables]
    with tempfile.TemporaryDirectory() as area:
        joined = Path(area) / LatencyErrors.file_name()
        joined.write_bytes(header + b"".join(bodies))
        try:
            frame = read_table(LatencyErrors, joined)
        except ContractError:
            for table in tables:
                read_table(LatencyErrors, table.file)
            raise
    names = np.repeat([table.comparison_id for table in tables], [body.count(b"\n") for body in bodies])
    return frame.assign(comparison_id=names)


def _row(meta_path: Path, digest: str) -> dict[str, Any]:
    meta = read_document(ComparisonMeta, meta_path)
    measured, hardware = meta.measured, meta.hardware or StatedHardware()
    settings = measured.engine_settings if measured else None
    reported = settings.model_dump(mode="json", exclude=_NOT_PART_OF_THE_SUBJECT) if settings else {}
    sections = {name: meta.params.get(name) for name in ("model", "engine")}
    subject = {
        "hardware": [hardware.hardware_id, hardware.device_name, hardware.device_count],
        "workload": meta.workload_id,
        "reported": reported,
        **sections,
    }
    return {
        "comparison_id": meta_path.parent.name,
        "meta_sha256": digest,
        "measured_at": _utc(measured.measured_at) if measured else "",
        "compared_at": _utc(meta.started_at),
        "group_id": measured.group_id if measured else "",
        "subject": _digest(subject) if measured else "",
        "night": None,
        "workload_id": meta.workload_id or "",
        "model": meta.model,
        "hardware_id": hardware.hardware_id or "",
        "device_name": hardware.device_name or "",
        "device_count": hardware.device_count,
        "backend": settings.backend if settings else "",
        "engine_settings_sha256": _digest(reported) if settings else "",
        "engine_version": settings.engine_version if settings else "",
        "num_kv_blocks": settings.num_kv_blocks if settings else None,
        "driver": hardware.driver or "",
        "host_cpu": str(measured.env.get("cpu", "")) if measured else "",
        "torch_version": _package(measured.env, "torch") if measured else "",
        "vidur_version": _package(measured.sim_env, "vidur") if measured else "",
        "simulation_sha256": _digest({name: meta.params.get(name) for name in ("simulation", "profile")}),
        "profile_sha256": _digest(measured.profile_sha256) if measured else "",
        "git_commit": meta.git_commit or "",
        "headline_variant": meta.headline_variant,
        "verdict": meta.verdict,
        "num_marks": len(meta.marks),
        "num_repeats": len(meta.real_run_dirs),
    }


def _ordered(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """In order of measurement (of comparison where that was not recorded), nights counted."""
    order = sorted(
        rows, key=lambda row: (row["measured_at"] or row["compared_at"], row["compared_at"], row["comparison_id"])
    )
    newest = {(row["subject"], row["group_id"]): row["comparison_id"] for row in order if row["subject"]}
    count: dict[str, int] = {}
    counted = []
    for row in order:
        subject = row["subject"]
        night = None
        # Two comparisons of one measurement are one night: the newest stands for it, as it has the newest simulation.
        if subject and newest[subject, row["group_id"]] == row["comparison_id"]:
            night = count.get(subject, 0)
            count[subject] = night + 1
        counted.append({**row, "night": night})
    return _typed(ComparisonHistory, pd.DataFrame(counted, columns=list(_types(ComparisonHistory))))


def _types(model: type[Table]) -> dict[str, str]:
    required, _ = model.column_types()
    return required


def _typed(model: type[Table], frame: pd.DataFrame) -> pd.DataFrame:
    types = _types(model)
    return validate(model, frame.astype(types)[list(types)], model.file_name())


def _digest(value: object) -> str:
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())[:16]


def _package(env: Mapping[str, Any], name: str) -> str:
    packages = env.get("packages")
    return str(packages.get(name, "")) if isinstance(packages, dict) else ""


def _utc(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat()
