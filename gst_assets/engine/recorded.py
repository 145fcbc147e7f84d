"""Recorded real runs: run directories stored compactly, so that a measurement can be compared against without its
hardware.

`gst recorded pack RUN_DIR... --out DIR` packs runs; a scenario with `engine.backend: recorded` and
`engine.recorded: DIR` plays them back. `DIR/sha256sums.txt` lists the digest of each run's metadata. A recorded run
`DIR/<run_id>/` holds the files of the run directory, each CSV table as `<table>.csv.xz`, the table of tokens without
the column that follows from its others. Its run_meta.json lists the digests of the files as they were, so expanding
verifies every byte. Nothing is measured here, and no figure is computed.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gst_assets.contracts.documents import RealRunMeta, RunMeta, WorkloadMeta, read_document, stored_settings
from gst_assets.contracts.listing import NAME as LISTING
from gst_assets.contracts.listing import add_to_listing, check_listed, read_listing
from gst_assets.contracts.packed_files import MOST_BYTES, PACKED, PACKED_BEFORE, packed, packed_copy, unpacked
from gst_assets.contracts.store import Kind, complete_below, open_directory
from gst_assets.engine.settings_check import check_settings, in_yaml
from gst_assets.errors import ArtifactError, ContractError, EngineError, WorkloadError
from gst_assets.foreign_text import label
from gst_assets.input_files import InputKind, read_bytes
from gst_assets.provenance import sha256_bytes
from gst_assets.scenario import Model, Sampling, Scenario
from gst_assets.staging import staged_directory

BACKEND = "recorded"
_META = Kind.REAL_RUN.meta_name
_TABLE = ".csv"
_TOKENS = "token_metrics.csv"
_SETTINGS_SHOWN = 4
_PACK = "gst recorded pack RUN_DIR... --out DIR"
_RESTORE = "Restore it from version control, or pack the run again."


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run whose metadata was read; its tables are still packed and unverified."""

    directory: Path
    meta: RealRunMeta


def pack(run_directory: Path, out: Path) -> Path:
    """Pack a complete run directory as the recorded run `out/<run_id>/`, and list its metadata in `out/sha256sums.txt`;
    returns that path. Same input, same bytes.

    run_meta.json changes in one place: an absolute `workload_dir` means nothing on another machine and becomes
    `workloads/<workload_id>`, the workload's place under any artifact root.

    Raises:
        ArtifactError: incomplete or altered, not a real run, packed already, a folder of runs, `out` already has
            another run of that id, or a table of tokens from which expanding would not make the same bytes.
        ContractError: its metadata breaks the contract.
    """
    _check_is_one_run(run_directory)
    open_directory(run_directory, Kind.REAL_RUN, verify=False)
    run = _read(run_directory)  # before the digests: they say nothing of another kind of directory
    for name in run.meta.sha256:
        if copy := packed_copy(run_directory / name):
            raise ArtifactError(
                f"{run_directory}: already packed: it has {copy.name}. `gst recorded expand {run_directory} --out"
                " DIR` unpacks it."
            )
    open_directory(run_directory, Kind.REAL_RUN)
    with _staged(out, run.meta.run_id) as folder:
        for name in run.meta.sha256:
            data = (run_directory / name).read_bytes()
            if name == _TOKENS:
                data = _without_latencies(data, run_directory / name)
            if name.endswith(_TABLE):
                name, data = name + PACKED, packed(data)
            (folder / name).write_bytes(data)
        (folder / _META).write_bytes(_portable_meta(run))
    add_to_listing(out, [f"{run.meta.run_id}/{_META}"])
    return out / run.meta.run_id


def expand(recorded_directory: Path, out: Path) -> Path:
    """Write a recorded run as the complete run directory `out/<run_id>/`, every digest verified; returns that path.

    Raises:
        ArtifactError: a file missing, altered, or not packed (names it); a plain run, a folder of runs; or
            `out/<run_id>` exists.
        ContractError: its metadata breaks the contract.
    """
    _check_is_one_run(recorded_directory)
    run = _read(recorded_directory)
    tables = [recorded_directory / name for name in run.meta.sha256 if name.endswith(_TABLE)]
    if tables and all(
        table.is_file() and not _stored_path(recorded_directory, table.name).is_file() for table in tables
    ):
        raise ArtifactError(
            f"{recorded_directory}: this run is plain already: its tables are not packed. Use it as it is, or pack it"
            f" with `gst recorded pack {recorded_directory} --out DIR`."
        )
    with _staged(out, run.meta.run_id) as folder:
        for name, digest in run.meta.sha256.items():
            (folder / name).write_bytes(_verified(_stored_path(recorded_directory, name), name, digest))
        shutil.copyfile(recorded_directory / _META, folder / _META)
        open_directory(folder, Kind.REAL_RUN)
    return out / run.meta.run_id


def list_recorded(root: Path) -> list[RecordedRun]:
    """The recorded runs directly under `root`, in the order in which they were measured; at least one.

    Raises:
        ArtifactError: none there, a directory that is not a complete recorded run, or one that is listed and gone.
            ContractError: metadata that breaks the contract.
    """
    folders = [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []
    runs = [_read(folder) for folder in folders if folder.is_dir()]
    if not runs:
        raise ArtifactError(
            f"{root}: no recorded runs there, expected directories named by run id. Correct engine.recorded, or record"
            f" with `{_PACK}`."
        )
    listed = {name.partition("/")[0] for name in read_listing(root) or ()}
    gone = sorted(listed - {folder.name for folder in folders})
    if gone:
        raise ArtifactError(f"{root / gone[0]}: listed in {root / LISTING}, but not there. {_RESTORE}")
    return sorted(runs, key=lambda run: (run.meta.started_at, run.meta.repeat_index))


def chosen_runs(runs: Sequence[RecordedRun], scenario: Scenario, workload: WorkloadMeta | None) -> list[RecordedRun]:
    """The first `replay.repeats` of the recorded runs, each of which is of the scenario's hardware, model and engine,
    and of its workload. `workload` is that of the scenario; None: not made yet, so not compared.

    Raises:
        WorkloadError: another workload (names both, and the settings that differ).
        EngineError: other hardware, model or settings, or fewer runs than repeats asked for.
        ContractError: a run whose recorded scenario cannot be read.
    """
    repeats = scenario.replay.repeats
    if len(runs) < repeats:
        raise EngineError(
            f"{runs[0].directory.parent}: {len(runs)} runs are recorded, but replay.repeats asks for {repeats}. Set"
            f" replay.repeats={len(runs)}, or record more."
        )
    for run in runs[:repeats]:
        if workload is not None:
            _check_workload(run, workload, scenario)
        _check_origin(run, scenario)
    return list(runs[:repeats])


# --- what a recorded run must match -----------------------------------------------------------------------------------


def _check_workload(run: RecordedRun, workload: WorkloadMeta, scenario: Scenario) -> None:
    if run.meta.workload_sha256 != workload.sha256:
        names = sorted(run.meta.workload_sha256.keys() | workload.sha256.keys())
        differ = [name for name in names if run.meta.workload_sha256.get(name) != workload.sha256.get(name)]
        raise WorkloadError(
            f"{run.directory}: recorded with workload {run.meta.workload_id}, but the scenario's workload is"
            f" {workload.workload_id} ({', '.join(differ)} differ). {_settings_of_workload(run, scenario)}, or record"
            " this workload."
        )


def _settings_of_workload(run: RecordedRun, scenario: Scenario) -> str:
    """What to undo, in words: the settings from which another workload follows, with both values."""
    differing = differing_workload_settings(run, scenario)
    if differing is None:
        return "Undo the workload settings that differ from the recorded run's"
    if not differing:
        return "None of its settings does, so a file that it is made from has changed: restore that"
    told = [f"{name}={in_yaml(asked)} (recorded with {in_yaml(found)})" for name, (found, asked) in differing.items()]
    more = f" and {len(told) - _SETTINGS_SHOWN} more" if len(told) > _SETTINGS_SHOWN else ""
    return f"Undo {', '.join(told[:_SETTINGS_SHOWN])}{more}"


def differing_workload_settings(run: RecordedRun, scenario: Scenario) -> dict[str, tuple[Any, Any]] | None:
    """Settings from which another workload may follow, as the run was recorded with and as the scenario asks; None
    where an earlier version recorded it, with settings that this one has not."""
    asked = {"workload": scenario.workload, "model": scenario.model}
    try:
        measured = {
            name: stored_settings(run.meta.params, type(section), name, path=run.directory / _META, remedy=_RESTORE)
            for name, section in asked.items()
        }
    except ContractError:
        return None
    ours, theirs = (
        _leaves("workload", sections["workload"].model_dump(mode="json"))
        | {f"model.{name}": getattr(sections["model"], name) for name in ("tokenizer", "fold_token_ids")}
        for sections in (measured, asked)
    )
    names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    return {name: (ours.get(name), theirs.get(name)) for name in names}


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """Settings of a section without further ones in them, by their whole name."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, inner in value.items() for key, leaf in _leaves(f"{name}.{part}", inner).items()}


def _check_origin(run: RecordedRun, scenario: Scenario) -> None:
    meta, wanted, found = run.directory / _META, scenario.hardware, run.meta.hardware
    remedy = "Correct the scenario, or point engine.recorded to runs of its own."
    if found.hardware_id != wanted.hardware_id or (wanted.device_name or "") not in found.device_name:
        named = f" named like {wanted.device_name!r}" if wanted.device_name else ""
        raise EngineError(
            f"{meta}: measured on {found.device_name!r} (hardware_id {found.hardware_id}), but the scenario asks for"
            f" hardware_id {wanted.hardware_id}{named}. {remedy}"
        )
    # The workload's digests already answer for the tokenizer.
    sections: list[tuple[str, BaseModel, BaseModel]] = [
        ("model", scenario.model, stored_settings(run.meta.params, Model, "model", path=meta, remedy=_RESTORE)),
        (
            "engine.sampling",
            scenario.engine.sampling,
            stored_settings(run.meta.params, Sampling, "engine", "sampling", path=meta, remedy=_RESTORE),
        ),
    ]
    for section, asked, measured in sections:
        if differ := [
            f"params.{section}.{name} is {in_yaml(ours)}, but the scenario asks for {in_yaml(theirs)}"
            for name, ours, theirs in _differing(measured, asked)
        ]:
            raise EngineError(f"{meta}: {'; '.join(differ)}. {remedy}")
    try:
        check_settings(scenario, run.meta.engine_settings, is_recorded=True)
    except EngineError as error:
        raise EngineError(f"{meta}: {error}") from None


def _differing(measured: BaseModel, asked: BaseModel) -> list[tuple[str, Any, Any]]:
    """The first setting that differs, with both values; of one with fields of its own, such as a model's geometry, each
    field that differs. Empty if none does."""
    for key, value in asked:
        found = getattr(measured, key)
        if key == "tokenizer" or found == value:
            continue
        if not isinstance(value, BaseModel):
            return [(key, found, value)]
        return [(f"{key}.{name}", getattr(found, name), part) for name, part in value if getattr(found, name) != part]
    return []


# --- the table of tokens ----------------------------------------------------------------------------------------------

_LATENCY = b"token_latency_ns"
_BEFORE_LATENCY = [b"request_id", b"token_index", b"token_time_ns"]


def _without_latencies(table: bytes, path: Path) -> bytes:
    """A table of tokens, read from `path`, without the column `token_latency_ns`, which follows from the two before it.
    No compressor finds that out: packed, the column would be two fifths of the table.

    Raises:
        ArtifactError: `_with_latencies` would not make the same bytes of it.
    """
    header = table.partition(b"\n")[0].split(b",")
    if header[:4] != [*_BEFORE_LATENCY, _LATENCY]:
        raise ArtifactError(
            f"{path}: cannot be packed: its columns are {_told(header)}, expected those of the contract in their order"
            f" ({_told([*_BEFORE_LATENCY, _LATENCY])}, ...). Write the table in that order."
        )
    short = io.BytesIO()
    for line in io.BytesIO(table):
        body = line.removesuffix(b"\n")
        fields = body.split(b",", 4)
        short.write(b",".join(fields[:3] + fields[4:]) + line[len(body) :])
    again = "Correct the table, or record the run again."
    restored = _with_latencies(short.getvalue(), path, again)
    if restored != table:
        lines = zip(io.BytesIO(table), io.BytesIO(restored), strict=True)
        number, (found, expected) = next((number, two) for number, two in enumerate(lines, 1) if two[0] != two[1])
        raise ArtifactError(
            f"{path}: cannot be packed: line {number} is {_told([found])}, expected {_told([expected])}: a latency is 0"
            f" at token_index 0, else the time since the token of the line before. {again}"
        )
    return short.getvalue()


def _with_latencies(short: bytes, path: Path, remedy: str) -> bytes:
    """The table of which `_without_latencies` made `short`.

    Raises:
        ArtifactError: none can be; names the line of `path` and ends with `remedy`.
    """
    whole, previous_ns = io.BytesIO(), 0
    for number, line in enumerate(io.BytesIO(short), start=1):
        body = line.removesuffix(b"\n")
        fields = body.split(b",", 3)
        try:
            latency, previous_ns = (_LATENCY, 0) if number == 1 else _latency(fields, previous_ns)
        except (IndexError, ValueError):  # too few fields, or no numbers
            raise ArtifactError(
                f"{path}: line {number} is {_told([line])}, expected a request, an index and a time in ns. {remedy}"
            ) from None
        whole.write(b",".join([*fields[:3], latency, *fields[3:]]) + line[len(body) :])
    return whole.getvalue()


def _latency(fields: Sequence[bytes], previous_ns: int) -> tuple[bytes, int]:
    """The latency of a token's line, and the token's time."""
    index, time_ns = int(fields[1]), int(fields[2])
    return b"%d" % (time_ns - previous_ns if index else 0), time_ns


def _told(fields: Sequence[bytes]) -> str:
    return label(b",".join(fields)[:200].decode("utf-8", "replace"))


# --- files ------------------------------------------------------------------------------------------------------------


def _check_is_one_run(directory: Path) -> None:
    if (directory / _META).exists() or not (below := complete_below(directory, Kind.REAL_RUN)):
        return
    levels = "/*" * len(below[0].relative_to(directory).parts)  # the slash at the end leaves out the listing
    raise ArtifactError(
        f"{directory}: has no {_META}, but {len(below)} directories below it do: a folder of runs, not a run. Name the"
        f" runs in it, e.g. {directory}{levels}/."
    )


def _read(directory: Path) -> RecordedRun:
    """The metadata of a run directory, packed or not.

    Raises:
        ArtifactError, ContractError
    """
    path = directory / _META
    if not path.is_file():
        raise ArtifactError(f"{directory}: {_META} missing, so this is no complete recorded run. {_RESTORE}")
    check_listed(directory.parent, f"{directory.name}/{_META}", path.read_bytes(), _RESTORE)
    run_type = read_document(RunMeta, path).run_type
    if run_type != "real":
        raise ArtifactError(f"{path}: run_type is {run_type!r}, expected 'real'. Only real runs are recorded.")
    meta = read_document(RealRunMeta, path)
    if directory.resolve().name != meta.run_id:
        raise ArtifactError(
            f"{path}: run_id is {meta.run_id!r}, expected the directory's name. Rename the directory to its run id."
        )
    for name in meta.sha256:
        if Path(name).name != name or name == _META:
            raise ArtifactError(f"{path}: key sha256: {name!r} is not a file of a run directory. {_RESTORE}")
    return RecordedRun(directory, meta)


def _stored_path(directory: Path, name: str) -> Path:
    if not name.endswith(_TABLE):
        return directory / name
    path, before = directory / (name + PACKED), directory / (name + PACKED_BEFORE)
    return before if before.is_file() and not path.exists() else path


def _verified(path: Path, name: str, digest: str) -> bytes:
    """What one recorded file was in the run directory, which has the recorded digest."""
    kind = InputKind(
        ArtifactError,
        missing=f"missing, but {_META} lists {name}. {_RESTORE}",
        expected=f"{name} of a recorded run",
        remedy=_RESTORE,
        most_bytes=MOST_BYTES,
    )
    content = read_bytes(path, kind)
    if path.name != name:
        content = unpacked(content, path, _RESTORE)
    if path.name == _TOKENS + PACKED:
        content = _with_latencies(content, path, _RESTORE)
    if sha256_bytes(content) != digest:
        raise ArtifactError(f"{path}: its content differs from the digest of {name} in {_META}: altered. {_RESTORE}")
    return content


def _portable_meta(run: RecordedRun) -> bytes:
    data = (run.directory / _META).read_bytes()
    if not Path(run.meta.workload_dir).is_absolute():
        return data
    values = json.loads(data)
    values["workload_dir"] = f"{Kind.WORKLOAD.value}/{run.meta.workload_id}"
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def _staged(out: Path, run_id: str) -> Iterator[Path]:
    """A folder next to `out/run_id` that becomes it when the block ends well, and is removed otherwise."""
    final = out / run_id
    try:
        with staged_directory(final) as folder:
            yield folder
    except OSError as error:
        if final.exists():
            raise ArtifactError(
                f"{final}: already exists. Recorded runs are never overwritten; remove it first."
            ) from None
        raise ArtifactError(f"{final}: cannot be written ({error.strerror}). Check the folder and the disk.") from None
