"""Loading a run directory, real or simulated, with every check of the contract, and the calibration digests of a simulation's profile.
Nothing is compared here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar, overload

import numpy as np
import pandas as pd

from gst_assets.analysis.token_columns import read_tokens
from gst_assets.contracts.documents import MachineRecord, ProfileMeta, RealRunMeta, RunMeta, VidurRunMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.contracts.tables import (
    Iterations,
    Overheads,
    RequestMetrics,
    TokenMetrics,
    check_run_tables,
    read_table,
)
from gst_assets.errors import ArtifactError, ComparisonError

RunKind = Literal["real", "vidur"]
M = TypeVar("M", RealRunMeta, VidurRunMeta)


@dataclass(frozen=True)
class Run(Generic[M]):
    """One complete run directory.

    `requests` is a validated `RequestMetrics`; `tokens` holds the required columns of `TokenMetrics` as int64, validated too;
    `iterations` is None where the run recorded none. `latency_derived`: the token table had no `token_latency_ns`.
    """

    directory: Path
    meta: M
    requests: pd.DataFrame
    tokens: pd.DataFrame
    iterations: pd.DataFrame | None
    latency_derived: bool = False


RealRun = Run[RealRunMeta]
SimulatedRun = Run[VidurRunMeta]

_STORE_KIND = {"real": Kind.REAL_RUN, "vidur": Kind.VIDUR_RUN}
_IN_WORDS = {
    "real": "a real run",
    "vidur": "a simulation",
    "compare": "a comparison",
    "vidur_profile": "a profiling bundle",
    "capacity": "a search for capacity",
}


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
    return _load(directory, kind, RealRunMeta) if kind == "real" else _load(directory, kind, VidurRunMeta)


def _load(directory: Path, kind: RunKind, model: type[M]) -> Run[M]:
    store_kind = _STORE_KIND[kind]
    open_directory(directory, store_kind)
    meta_path = directory / store_kind.meta_name
    found = read_document(RunMeta, meta_path).run_type
    if found != kind:
        raise ArtifactError(
            f"{meta_path}: run_type is {found!r} ({_IN_WORDS[found]}), expected {_IN_WORDS[kind]} ({kind!r}). Point to the other directory."
        )
    meta = read_document(model, meta_path)
    for table in (RequestMetrics, TokenMetrics):
        if table.file_name() not in meta.sha256:
            raise ArtifactError(
                f"{meta_path}: key sha256 does not list {table.file_name()}, so nobody can tell whether it was changed. List its digest."
            )
    requests = read_table(RequestMetrics, directory / RequestMetrics.file_name())
    tokens, derived = read_tokens(directory / TokenMetrics.file_name())
    _check_tables_agree(requests, tokens, directory)
    # A file that the metadata does not list is none of this run's.
    listed = Iterations.file_name() in meta.sha256
    iterations = read_table(Iterations, directory / Iterations.file_name()) if listed else None
    return Run(directory, meta, requests, tokens, iterations, derived)


def _check_tables_agree(requests: pd.DataFrame, tokens: pd.DataFrame, directory: Path) -> None:
    """`check_run_tables`, told in one pass where the tables agree; where they do not, that check names the request.

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

    Reads the bundle `profile`, or without it the one that each simulation names. None where such a bundle is no longer there, or was
    measured again since: then nobody can tell whether a workload is held out.

    Raises:
        ComparisonError: `profile` is not the bundle that was simulated with.
        ContractError: no readable metadata document in `profile`.
    """
    found: set[str] = set()
    for sim in simulations:
        path = (profile or Path(sim.meta.profiling_root)) / Kind.PROFILE.meta_name
        if profile is None and not path.is_file():
            return None
        meta = read_document(ProfileMeta, path)
        changed = [name for name, digest in sim.meta.profile_sha256.items() if meta.sha256.get(name) != digest]
        if changed and profile is None:
            return None
        if changed:
            raise ComparisonError(
                f"{path}: {changed[0]} is not the file that {sim.directory} was simulated with. Point to the bundle it used."
            )
        if Overheads.file_name() in sim.meta.profile_sha256 and not meta.calibration_sha256:
            return None
        found |= set(meta.calibration_sha256.values())
    return found


def read_calibration_machine(simulation: SimulatedRun) -> list[MachineRecord | None]:
    """The machine in each calibration round of the simulation's profile; empty where that bundle is no longer there, or was measured again since, or
    did not record it.

    Raises:
        ContractError: the bundle's metadata document is not readable.
    """
    path = Path(simulation.meta.profiling_root) / Kind.PROFILE.meta_name
    if not path.is_file():
        return []
    meta = read_document(ProfileMeta, path)
    if any(meta.sha256.get(name) != digest for name, digest in simulation.meta.profile_sha256.items()):
        return []
    return meta.machine or []
