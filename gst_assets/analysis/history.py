"""The history of a scenario: every completed comparison, read from the artifact directories, which are the only source of truth.

Reading and ordering only; what the line means belongs to `change_points`. The same directories give the same bytes. Nothing is kept between two
readings: joined tables read so fast (docs/nightly.md) that a cache would not be worth its doubts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import ComparisonMeta, HistoryMeta, StatedHardware, read_document, write_document
from gst_assets.contracts.store import ArtifactStore, Kind, directory_digests
from gst_assets.contracts.tables import ComparisonHistory, LatencyErrors, LatencyHistory, Table, read_table, validate
from gst_assets.contracts.tables import write_table as write_contract_table
from gst_assets.errors import ArtifactError, ContractError, GstError
from gst_assets.provenance import sha256_bytes

_ERRORS = f"tables/{LatencyErrors.file_name()}"
_NOT_PART_OF_THE_SUBJECT = {"architecture", "engine_version", "num_kv_blocks"}
"""Engine settings that may differ between two nights of one subject. The architecture is among the scenario's settings, and was not always reported. A version is what a regression may come from, and the number of KV
blocks depends on the memory that was free at start; both are marked on the line instead."""


@dataclass(frozen=True)
class History:
    """`comparisons` is a `ComparisonHistory` in order of measurement, `latencies` a `LatencyHistory` in the same order."""

    scenario: str
    comparisons: pd.DataFrame
    latencies: pd.DataFrame


def read_history(store: ArtifactStore, scenario: str) -> History:
    """Every complete comparison of `scenario` under the artifact root, the digest of each latency table verified.

    Comparisons that cannot be read are passed over where their id names another scenario.

    Raises:
        ArtifactError: a comparison was altered or its latency table is missing, or all that were known are gone. ContractError: one breaks the
            contract. Each names the file or folder.
    """
    rows: list[dict[str, Any]] = []
    tables: list[tuple[Path, bytes]] = []
    found = store.list(Kind.COMPARISON)
    _check_still_there(store, scenario, found)
    for comparison_id in found:
        try:
            meta_path = store.open(Kind.COMPARISON, comparison_id, verify=False) / Kind.COMPARISON.meta_name
            data = meta_path.read_bytes()
            stored = _stored(data, meta_path)
        except (GstError, OSError):
            if comparison_id.startswith(f"{scenario}-"):  # a scenario's name has no dash
                raise
            continue
        if _scenario_of(stored) == scenario:
            tables.append((meta_path.parent, _verified(meta_path, stored)))
            rows.append(_row(meta_path, sha256_bytes(data)))
    comparisons = _ordered(rows)
    types = _types(LatencyHistory)
    frame = pd.concat(_read_errors(tables), ignore_index=True) if rows else pd.DataFrame(columns=list(types))
    position = {name: number for number, name in enumerate(comparisons["comparison_id"])}
    frame = frame[list(types)].sort_values(
        "comparison_id", key=lambda ids: ids.map(position), kind="stable", ignore_index=True
    )
    return History(scenario, comparisons, _typed(LatencyHistory, frame))


def _check_still_there(store: ArtifactStore, scenario: str, found: Sequence[str]) -> None:
    """The comparisons of the history written last, or else the newest one, are not all gone: a folder that was moved, or a disk that is not
    mounted, looks like one that never had any, and the history would be replaced by an empty one.

    Raises:
        ArtifactError
    """
    known: list[str] = []
    if scenario in store.list(Kind.HISTORY):
        directory = store.open(Kind.HISTORY, scenario, verify=False)
        # A history that cannot be understood is only replaced by what the comparisons say.
        with suppress(ContractError):
            known = read_table(ComparisonHistory, directory / ComparisonHistory.file_name())["comparison_id"].tolist()
    pointer = store.current(scenario, "comparison", "comparison_id")
    if not known and pointer is not None:
        known = [str(pointer["comparison_id"])]
    if known and not set(known) & set(found):
        raise ArtifactError(
            f"{store}/{Kind.COMPARISON.value}: none of the {len(known)} comparisons of scenario {scenario} that were there is there now "
            f"({known[-1]}, for one). Mount or move them back. If they were removed on purpose, remove {store}/{Kind.HISTORY.value}/{scenario} and "
            f"{store}/current/{scenario}/comparison.json as well, and materialize again."
        )


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
    return History(meta.scenario, *tables), meta


def _stored(data: bytes, path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(data)
    except ValueError as error:
        raise ContractError(
            f"{path}: not valid JSON ({error}). Remove {path.parent}, or restore it from a backup."
        ) from None
    if not isinstance(stored, dict):
        raise ContractError(f"{path}: expected a JSON object. Remove {path.parent}, or restore it from a backup.")
    return stored


def _scenario_of(stored: Mapping[str, Any]) -> object:
    asked = stored.get("hydra")
    return asked.get("config_name") if isinstance(asked, dict) else None


def _verified(meta_path: Path, stored: Mapping[str, Any]) -> bytes:
    """The bytes of a comparison's latency table, which are those its metadata lists."""
    file = meta_path.parent / _ERRORS
    recorded = stored.get("sha256")
    wanted = recorded.get(_ERRORS) if isinstance(recorded, dict) else None
    if wanted is None:
        raise ArtifactError(f"{meta_path}: key sha256 does not list {_ERRORS}. Remove {meta_path.parent}.")
    data = file.read_bytes() if file.is_file() else None
    if data is None or sha256_bytes(data) != wanted:
        raise ArtifactError(
            f"{file}: missing, or changed after it was written, so the history cannot be trusted. Restore it, or remove {meta_path.parent} "
            "to leave this comparison out."
        )
    return data


def _read_errors(tables: list[tuple[Path, bytes]]) -> list[pd.DataFrame]:
    """The latency tables of comparisons, with `comparison_id` in front.

    Tables of the usual form are read as one file: parsing and validating thousands of small ones costs a hundred times as much.

    Raises:
        ContractError: names the first file that breaks the contract, and its line.
    """
    header = (",".join(_types(LatencyErrors)) + "\n").encode()
    usual = [
        (path, data) for path, data in tables if data.startswith(header) and data.endswith(b"\n") and b'"' not in data
    ]
    others = {path for path, _ in tables} - {path for path, _ in usual}
    frames = [read_table(LatencyErrors, path / _ERRORS).assign(comparison_id=path.name) for path in sorted(others)]
    if not usual:
        return frames
    bodies = [data[len(header) :] for _, data in usual]
    with tempfile.TemporaryDirectory() as area:
        joined = Path(area) / LatencyErrors.file_name()
        joined.write_bytes(header + b"".join(bodies))
        try:
            frame = read_table(LatencyErrors, joined)
        except ContractError:
            for path, _ in usual:
                read_table(LatencyErrors, path / _ERRORS)
            raise
    names = np.repeat([path.name for path, _ in usual], [body.count(b"\n") for body in bodies])
    return [*frames, frame.assign(comparison_id=names)]


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
