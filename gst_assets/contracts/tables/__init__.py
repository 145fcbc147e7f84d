"""One Pandera model per contract table, and the only functions that read and write them.

The models are the contract: columns, order, types, and every invariant that one table can show. Invariants between two
tables are `check_run_tables`. CSV bytes belong to `csv_files`; nothing here computes a result. After a change of
columns write their listing again: `python -m gst_assets.contracts.columns`.
"""

from gst_assets.contracts.tables.base import FilledTable, Int, Table
from gst_assets.contracts.tables.capacity_tables import CapacityProbes
from gst_assets.contracts.tables.comparison_tables import (
    AlignmentCounts,
    CachedTokens,
    CapacityErrors,
    ErrorCauses,
    ErrorGroups,
    GateChecks,
    LatencyErrors,
    PairedErrors,
    RateErrors,
    RepeatLatencies,
    RequestErrors,
    RunTotals,
    SettingsParity,
    StageErrors,
    StepCosts,
    StepErrors,
)
from gst_assets.contracts.tables.history_tables import (
    REGRESSION_VERDICTS,
    ChangePoints,
    ComparisonHistory,
    LatencyHistory,
    LineMarks,
    RegressionVerdicts,
)
from gst_assets.contracts.tables.profile_tables import (
    AllReduceProfile,
    AttentionProfile,
    CalibrationTraffic,
    ExpertsProfile,
    HostSpeed,
    MlpProfile,
    OperatorCoverage,
    Overheads,
    SelfFit,
    ServedExperts,
    UnmodelledOperators,
)
from gst_assets.contracts.tables.run_tables import (
    TIME_COLUMNS,
    Iterations,
    RequestMetrics,
    TokenMetrics,
    check_run_tables,
)
from gst_assets.contracts.tables.sweep_tables import SweepPoints
from gst_assets.contracts.tables.validation import (
    column_descriptions,
    read_table,
    validate,
    write_table,
    write_table_parts,
)
from gst_assets.contracts.tables.workload_tables import TraceIntervals, TraceLengths

__all__ = [
    "REGRESSION_VERDICTS",
    "TIME_COLUMNS",
    "AlignmentCounts",
    "AllReduceProfile",
    "AttentionProfile",
    "CachedTokens",
    "CalibrationTraffic",
    "CapacityErrors",
    "CapacityProbes",
    "ChangePoints",
    "ComparisonHistory",
    "ErrorCauses",
    "ErrorGroups",
    "ExpertsProfile",
    "FilledTable",
    "GateChecks",
    "HostSpeed",
    "Int",
    "Iterations",
    "LatencyErrors",
    "LatencyHistory",
    "LineMarks",
    "MlpProfile",
    "OperatorCoverage",
    "Overheads",
    "PairedErrors",
    "RateErrors",
    "RegressionVerdicts",
    "RepeatLatencies",
    "RequestErrors",
    "RequestMetrics",
    "RunTotals",
    "SelfFit",
    "ServedExperts",
    "SettingsParity",
    "StageErrors",
    "StepCosts",
    "StepErrors",
    "SweepPoints",
    "Table",
    "TokenMetrics",
    "TraceIntervals",
    "TraceLengths",
    "UnmodelledOperators",
    "check_run_tables",
    "column_descriptions",
    "read_table",
    "validate",
    "write_table",
    "write_table_parts",
]
