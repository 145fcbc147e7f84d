"""Loading a run directory, real or simulated, with every check of the contract. Nothing is compared here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar, overload

import pandas as pd

from gst_assets.contracts.documents import RealRunMeta, RunMeta, VidurRunMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.contracts.tables import Iterations, RequestMetrics, TokenMetrics, check_run_tables, read_table
from gst_assets.errors import ArtifactError

RunKind = Literal["real", "vidur"]
M = TypeVar("M", RealRunMeta, VidurRunMeta)


@dataclass(frozen=True)
class Run(Generic[M]):
    """One complete run directory.

    `requests` and `tokens` are validated `RequestMetrics` and `TokenMetrics`; `iterations` is None where the run recorded none.
    """

    directory: Path
    meta: M
    requests: pd.DataFrame
    tokens: pd.DataFrame
    iterations: pd.DataFrame | None


RealRun = Run[RealRunMeta]
SimulatedRun = Run[VidurRunMeta]

_STORE_KIND = {"real": Kind.REAL_RUN, "vidur": Kind.VIDUR_RUN}
_IN_WORDS = {
    "real": "a real run",
    "vidur": "a simulation",
    "compare": "a comparison",
    "vidur_profile": "a profiling bundle",
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
    requests = read_table(RequestMetrics, directory / RequestMetrics.file_name())
    tokens = read_table(TokenMetrics, directory / TokenMetrics.file_name())
    check_run_tables(requests, tokens, directory)
    iterations = directory / Iterations.file_name()
    return Run(directory, meta, requests, tokens, read_table(Iterations, iterations) if iterations.is_file() else None)
