"""Loading a run directory, real or simulated, with every check of the contract, and the calibration digests of a
simulation's profile. Nothing is compared here.

A run of another program needs fewer columns than one of this project (docs/contract.md, Foreign runs). What it leaves
out stays unknown: `Run.unstated` lists it, and nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import pandas as pd
from pydantic import BaseModel

from gst_assets.analysis.token_columns import COLUMNS, read_tokens
from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import (
    RUN_TYPES_IN_WORDS,
    ProfileMeta,
    RealRunFacts,
    RealRunMeta,
    RunMeta,
    SimulationFacts,
    VidurRunMeta,
    read_document,
)
from gst_assets.contracts.packed_files import packed_copy
from gst_assets.contracts.store import Kind, recorded_digests
from gst_assets.contracts.tables import (
    Iterations,
    Overheads,
    RequestMetrics,
    TokenMetrics,
    check_run_tables,
    read_table,
    validate,
)
from gst_assets.errors import ArtifactError, ComparisonError
from gst_assets.foreign_text import labels
from gst_assets.provenance import sha256_file

RunKind = Literal["real", "vidur"]
M = TypeVar("M", bound=RealRunFacts | SimulationFacts, covariant=True)
D = TypeVar("D", bound=RunMeta)


@dataclass(frozen=True)
class Run(Generic[M]):
    """One complete run directory.

    `requests` is a validated `RequestMetrics`; `tokens` holds the required columns of `TokenMetrics` as int64,
    validated too, and is empty where the run knows no token times (not `has_tokens`): then `requests` has
    `completion_time_ns`. `iterations` is None where the run recorded none. `latency_derived`: the token table had no
    `token_latency_ns`. `has_status`: the request table states which requests failed; without it, none did.
    """

    directory: Path
    meta: M
    requests: pd.DataFrame
    tokens: pd.DataFrame
    iterations: pd.DataFrame | None
    latency_derived: bool = False
    has_tokens: bool = True
    has_status: bool = True

    @property
    def unstated(self) -> tuple[str, ...]:
        """What the run does not state, in words."""
        meta, found = self.meta, list(self.meta.imported.unstated) if self.meta.imported else []
        hardware = meta.hardware
        if hardware is None or not (hardware.hardware_id or hardware.device_name):
            found.append("hardware not stated")
        elif missing := [
            name for name in ("hardware_id", "device_name", "device_count") if getattr(hardware, name) is None
        ]:
            found.append(f"hardware: {' and '.join(missing)} not stated")
        if not meta.sha256:
            found.append("files not digested, so it cannot be checked whether they were changed")
        if meta.workload_id is None:
            found.append("workload not identified")
        if not self.has_status:
            found.append("status of the requests not stated: none is taken for failed")
        if not self.has_tokens:
            found.append("token times not stated: ITL not available")
        if not meta.env:
            found.append("environment not stated")
        if isinstance(meta, RealRunFacts):
            if meta.engine_settings is None:
                found.append("engine settings not stated")
            if meta.degraded is None:
                found.append("not stated whether the driver kept up")
        else:
            # An import may know the number of devices and nothing else.
            if not meta.simulated_settings.keys() - {"num_replicas", "tensor_parallel_size"}:
                but = ", but for replicas and tensor parallel degree" if meta.simulated_settings else ""
                found.append(f"simulated settings not stated{but}")
            if meta.num_preemptions is None:
                found.append("preemptions not stated")
        return tuple(dict.fromkeys(found))


RealRun = Run[RealRunFacts]
SimulatedRun = Run[SimulationFacts]
OwnRealRun = Run[RealRunMeta]
OwnSimulatedRun = Run[VidurRunMeta]


@overload
def load_run(directory: Path, kind: Literal["real"]) -> RealRun: ...


@overload
def load_run(directory: Path, kind: Literal["vidur"]) -> SimulatedRun: ...


def load_run(directory: Path, kind: RunKind) -> RealRun | SimulatedRun:
    """Load a run directory of the given kind; `kind` is the `run_type` that its run_meta.json must state.

    Raises:
        ArtifactError: directory missing, incomplete, altered, or of another kind.
        ContractError: a document or table that breaks the contract, or two tables that disagree.
    """
    return _load(directory, kind, RealRunFacts) if kind == "real" else _load(directory, kind, SimulationFacts)


@overload
def load_own_run(directory: Path, kind: Literal["real"]) -> OwnRealRun: ...


@overload
def load_own_run(directory: Path, kind: Literal["vidur"]) -> OwnSimulatedRun: ...


def load_own_run(directory: Path, kind: RunKind) -> OwnRealRun | OwnSimulatedRun:
    """Load a run directory of this project, which states everything that `RealRunMeta` or `VidurRunMeta` has; errors as
    `load_run`."""
    return _load(directory, kind, RealRunMeta) if kind == "real" else _load(directory, kind, VidurRunMeta)


def run_kind(directory: Path) -> RunKind:
    """Whether a directory holds a real run or a simulation, as its run_meta.json states.

    Raises:
        ArtifactError, ContractError: no run directory.
    """
    meta_path = _meta_path(directory)
    found = read_document(RunMeta, meta_path).run_type
    if found == "real" or found == "vidur":
        return found
    raise ArtifactError(
        f"{meta_path}: run_type is {found!r} ({RUN_TYPES_IN_WORDS[found]}), expected a real run ('real') or a"
        " simulation ('vidur')."
    )


def _meta_path(directory: Path) -> Path:
    path = directory / Kind.REAL_RUN.meta_name
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory. Correct the path.")
    if not path.is_file():
        raise ArtifactError(
            f"{directory}: {path.name} missing, so this is not a complete run and is not read. Point to a run directory"
            " (docs/contract.md), or make one of another program's results with gst import."
        )
    return path


def _load(directory: Path, kind: RunKind, model: type[M]) -> Run[M]:
    meta_path = _meta_path(directory)
    found = read_document(RunMeta, meta_path).run_type
    if found != kind:
        raise ArtifactError(
            f"{meta_path}: run_type is {found!r} ({RUN_TYPES_IN_WORDS[found]}), expected {RUN_TYPES_IN_WORDS[kind]}"
            f" ({kind!r}). Point to the other directory."
        )
    meta = _fit_to_show(read_document(model, meta_path))
    token_path = directory / TokenMetrics.file_name()
    _check_digests(directory, meta_path, meta.sha256, token_path)
    requests, has_status = _read_requests(directory / RequestMetrics.file_name())
    has_tokens = token_path.is_file()
    if has_tokens:
        tokens, derived = read_tokens(token_path)
        _check_tables_agree(requests, tokens, directory)
    else:
        if "completion_time_ns" not in requests:
            raise ArtifactError(
                f"{directory}: neither {token_path.name} nor the column completion_time_ns of"
                f" {RequestMetrics.file_name()}, so when requests ended is not known. Add one of them."
            )
        tokens, derived = pd.DataFrame({name: np.zeros(0, dtype=np.int64) for name in COLUMNS}), False
    path = directory / Iterations.file_name()
    # A file that the metadata does not list is none of this run's; one that digests nothing lists nothing.
    listed = path.name in meta.sha256 if meta.sha256 else path.is_file()
    iterations = read_table(Iterations, path) if listed else None
    return Run(directory, meta, requests, tokens, iterations, derived, has_tokens, has_status)


_SHOWN = (
    "run_id", "model", "backend", "variant", "predictor", "workload_id", "git_commit", "hardware", "env", "hydra",
    "engine_settings", "simulated_settings", "degraded_reasons", "imported",
)  # fmt: skip
"""What reports show of a metadata document, as whoever wrote it named it."""


def _fit_to_show(meta: D) -> D:
    """`meta` with its names as reports may show them; what is stored stays as it is. The one place where the text of
    others enters a comparison."""
    changed: dict[str, Any] = {}
    for name in _SHOWN:
        value = getattr(meta, name, None)
        plain = value.model_dump() if isinstance(value, BaseModel) else value
        if (shown := labels(plain)) != plain:
            changed[name] = type(value).model_validate(shown) if isinstance(value, BaseModel) else shown
    return meta.model_copy(update=changed) if changed else meta


def _check_digests(directory: Path, meta_path: Path, sha256: Mapping[str, str], token_path: Path) -> None:
    """Files are as their metadata says. A run that digests nothing is read, and this is stated (`Run.unstated`).

    Raises:
        ArtifactError: a listed file is missing or differs, or a table is not listed while others are.
    """
    if not sha256:
        return
    for name, digest in recorded_digests(meta_path.read_bytes(), meta_path).items():
        file = directory / name
        if copy := packed_copy(file):
            raise ArtifactError(
                f"{file}: missing, but {copy.name} lies there: a packed run. Unpack it first with `gst recorded"
                f" expand {directory} --out DIR`, and point to DIR/{directory.name}."
            )
        if not file.is_file():
            raise ArtifactError(f"{file}: missing, but {meta_path.name} lists it. Point to a complete copy of the run.")
        if sha256_file(file) != digest:
            raise ArtifactError(
                f"{file}: content differs from the digest in {meta_path.name}; it was changed after it was written."
                " Point to an unchanged copy."
            )
    for name in (RequestMetrics.file_name(), *([token_path.name] if token_path.is_file() else [])):
        if name not in sha256:
            raise ArtifactError(
                f"{meta_path}: key sha256 does not list {name}, so it cannot be checked whether it was changed. List"
                " its digest."
            )


def _read_requests(path: Path) -> tuple[pd.DataFrame, bool]:
    """The request table, and whether it states which requests failed. Without `status` no request is taken for failed.

    Raises:
        ContractError: names file, line and column.
    """
    required, optional = RequestMetrics.column_types()
    given = {name: kind for name, kind in required.items() if name != "status"}
    frame = csv_files.read_csv(path, given, optional={"status": required["status"], **optional})
    has_status = "status" in frame
    if not has_status:
        frame.insert(len(given), "status", pd.Series("ok", index=frame.index, dtype="str"))
    return validate(RequestMetrics, frame, path), has_status


def _check_tables_agree(requests: pd.DataFrame, tokens: pd.DataFrame, directory: Path) -> None:
    """`check_run_tables` in one pass where the tables agree; where they do not, that check names the request.

    Raises:
        ContractError: names the first request that disagrees.
    """
    # Request ids are 0..N-1 and token rows are ordered by request, both checked: counts and offsets say everything.
    ids = tokens["request_id"].to_numpy()
    expected = requests["num_decode_tokens_actual"].to_numpy(dtype="int64")
    if not len(ids) or ids[-1] < len(expected):
        counts = np.bincount(ids, minlength=len(expected))
        stated = requests["first_token_time_ns"]
        told = stated.notna().to_numpy()
        starts = (np.cumsum(counts) - counts)[told]
        first = stated.to_numpy(dtype="int64", na_value=0)[told]
        same_counts = np.array_equal(counts, expected) and bool((counts[told] > 0).all())
        if same_counts and np.array_equal(tokens["token_time_ns"].to_numpy()[starts], first):
            return
    check_run_tables(requests, tokens, directory)


def read_calibration_sha256(simulations: Sequence[SimulatedRun], profile: Path | None = None) -> set[str] | None:
    """Digests of the workloads that the simulations' profile was calibrated on.

    Reads the bundle `profile`, or without it the one that each simulation names. None where such a bundle is no longer
    there, or was measured again since: then it is not known whether a workload is held out.

    Raises:
        ComparisonError: `profile` is not the bundle that was simulated with.
        ContractError: no readable metadata document in `profile`.
    """
    found: set[str] = set()
    for sim in simulations:
        if profile is None and sim.meta.profiling_root is None:
            return None
        path = (profile or Path(sim.meta.profiling_root or "")) / Kind.PROFILE.meta_name
        if profile is None and not path.is_file():
            return None
        if profile is not None and not sim.meta.profile_sha256:
            return None
        meta = read_document(ProfileMeta, path)
        changed = [name for name, digest in sim.meta.profile_sha256.items() if meta.sha256.get(name) != digest]
        if changed and profile is None:
            return None
        if changed:
            raise ComparisonError(
                f"{path}: {changed[0]} is not the file that {sim.directory} was simulated with. Point to the bundle it"
                " used."
            )
        if Overheads.file_name() in sim.meta.profile_sha256 and not meta.calibration_sha256:
            return None
        found |= set(meta.calibration_sha256.values())
    return found


def read_profile(simulation: SimulatedRun) -> ProfileMeta | None:
    """The document of the bundle that was simulated with; None where that bundle is no longer there, or was measured
    again since.

    Raises:
        ContractError: the bundle's metadata document is not readable.
    """
    if simulation.meta.profiling_root is None or not simulation.meta.profile_sha256:
        return None
    path = Path(simulation.meta.profiling_root) / Kind.PROFILE.meta_name
    if not path.is_file():
        return None
    meta = read_document(ProfileMeta, path)
    if any(meta.sha256.get(name) != digest for name, digest in simulation.meta.profile_sha256.items()):
        return None
    return meta
