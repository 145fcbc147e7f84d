"""The exceptions that reach a user.

Each carries one message that names the place (file, row, column or setting), what was expected, and the remedy.
Programming errors stay ordinary Python exceptions and do not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class GstError(Exception):
    """Base of every error meant for a user: bad input, missing artifact, mismatched hardware, failed engine."""


class ScenarioError(GstError):
    """A scenario file or an override is unknown, of the wrong type, or impossible."""


class WorkloadError(GstError):
    """Prompts, token lengths or an arrival schedule cannot be built from what was given."""


class ContractError(GstError):
    """A table or document breaks the artifact contract (see docs/contract.md). `rows` are the first offending rows,
    where a table has them."""

    def __init__(self, message: str, rows: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class ArtifactError(GstError):
    """An artifact directory is missing, incomplete, altered, or already taken."""


class EngineError(GstError):
    """The engine is not installed, does not match the scenario, or failed while measuring."""


class ProfileError(GstError):
    """A Vidur profiling bundle is missing, incomplete, or made for something else."""


class SimulationError(GstError):
    """The workload cannot be simulated under the scenario's settings."""


class ResultsError(GstError):
    """A file of another program is not what it was said to be, or does not state what a run needs."""


class ComparisonError(GstError):
    """Two runs cannot be compared honestly."""


class EnvironmentVariableError(GstError):
    """A `GST_*` environment variable holds what it cannot."""


class NotificationError(GstError):
    """A message could not be delivered to the address an environment variable names."""


class ReportServerError(GstError):
    """Reports cannot be served at the address an environment variable names."""


class ScenariosFailedError(GstError):
    """Some scenarios of a run over many failed; the results of the others stay."""
