"""Valid frames of every contract table: drawn by hypothesis, or one small fixed frame. No test stands here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from gst_assets.contracts import csv_files, tables
from gst_assets.contracts.tables import Table

INT64_MAX = 2**63 - 1
AWKWARD_TEXT = (
    "NA",
    "null",
    "nan",
    "1.0",
    " x ",
    "a,b",
    'q"q',
    '"',
    "a\nb",
    "a\rb",
    "a\r\nb",
    "é中\U0001f600",
    "\x00",
    "#",
    "=1",
)


@cache
def all_tables() -> list[type[Table]]:
    """Every table of the contract: all models that name a file."""
    found: list[type[Table]] = []
    waiting = [Table]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if str(model.to_schema().name).endswith(".csv"):
            found.append(model)
    return sorted(found, key=lambda model: model.__name__)


@cache
def limits(model: type[Table], name: str) -> dict[str, Any]:
    """What the column's own checks say: `min` (inclusive for integers), `above` (exclusive), `max` (inclusive),
    `values`, `min_length`."""
    found: dict[str, Any] = {}
    for check in model.to_schema().columns[name].checks:
        given = check.statistics
        match check.name:
            case "greater_than_or_equal_to":
                found["min"] = given["min_value"]
            case "greater_than":
                found["above"] = given["min_value"]
            case "less_than_or_equal_to":
                found["max"] = given["max_value"]
            case "isin":
                found["values"] = list(given["allowed_values"])
            case "str_length":
                found["min_length"] = given["min_value"]
            case other:
                raise AssertionError(f"{model.__name__}.{name}: no strategy for check {other}")
    return found


def _values(model: type[Table], name: str, kind: str) -> st.SearchStrategy[Any]:
    column, rule = model.to_schema().columns[name], limits(model, name)
    if kind == csv_files.INTEGER:
        lowest = rule["above"] + 1 if "above" in rule else rule.get("min", -(2**63))
        assert "max" not in rule, f"{model.__name__}.{name}: no strategy for an integer with a highest value"
        one: st.SearchStrategy[Any] = st.integers(lowest, INT64_MAX) | st.integers(max(lowest, -9), 9)
        missing: Any = pd.NA
    elif kind == csv_files.FLOAT:
        lowest = rule.get("above", rule.get("min"))
        one = st.floats(lowest, rule.get("max"), allow_nan=False, allow_infinity=False, exclude_min="above" in rule)
        missing = np.nan
    elif kind == csv_files.BOOLEAN:
        return st.booleans()
    elif "values" in rule:
        return st.sampled_from(rule["values"])
    else:
        text = st.text(st.characters(exclude_categories=["Cs"]), min_size=rule.get("min_length", 0), max_size=6)
        return text | st.sampled_from(AWKWARD_TEXT)
    return one | st.just(missing) if column.nullable else one


@st.composite
def frames(draw: st.DrawFn, model: type[Table]) -> pd.DataFrame:
    """A valid frame of `model`, of 1 to 6 rows, with any of its optional columns."""
    required, optional = model.column_types()
    present = {name: kind for name, kind in optional.items() if draw(st.booleans())}
    size = draw(st.integers(1, 6))
    # Numbers that may stand once only are put in order afterwards.
    once = {
        name for name, kind in present.items() if kind == csv_files.STRING and model.to_schema().columns[name].unique
    }
    columns = {
        name: draw(st.lists(_values(model, name, kind), min_size=size, max_size=size, unique=name in once))
        for name, kind in {**required, **present}.items()
    }
    return _made_valid(model, columns, {**required, **present})


def sample_frame(model: type[Table]) -> pd.DataFrame:
    """One fixed valid frame of six rows with every column filled; the caller's own."""
    return _sample_frame(model).copy()


@cache
def _sample_frame(model: type[Table]) -> pd.DataFrame:
    required, optional = model.column_types()
    types = {**required, **optional}
    columns: dict[str, list[Any]] = {}
    for name, kind in types.items():
        rule = limits(model, name)
        if "values" in rule:
            columns[name] = [rule["values"][0]] * 6
        elif kind == csv_files.STRING:
            columns[name] = [f"{name}-{row}" for row in range(6)]
        elif kind == csv_files.BOOLEAN:
            columns[name] = [row % 2 == 0 for row in range(6)]
        else:
            columns[name] = [24 * row + 24 if kind == csv_files.INTEGER else row + 1.5 for row in range(6)]
        if "max" in rule:
            columns[name] = [rule["max"] * row / 6 for row in range(6)]
    return _made_valid(model, columns, types)


def _made_valid(model: type[Table], columns: dict[str, list[Any]], types: dict[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame({name: pd.Series(values, dtype=types[name]) for name, values in columns.items()})
    if model in _INVARIANTS:
        _INVARIANTS[model](frame)
    return frame.astype({name: kind for name, kind in types.items() if name in frame})


# Each puts the relations between columns in order that a column's own strategy cannot know, and leaves out a column
# that does not stand alone.


def _numbered(frame: pd.DataFrame) -> None:
    frame["request_id"] = range(len(frame))


def _intervals(frame: pd.DataFrame) -> None:
    _numbered(frame)
    frame["inter_arrival_ns"] = frame["inter_arrival_ns"] // len(frame)
    # A copy: in pandas 3.1 a cumulative sum shares its mask of missing values with what it sums.
    frame["arrival_time_ns"] = frame["inter_arrival_ns"].cumsum().copy()
    turns = {"previous_request_id", "think_time_ns"} & set(frame.columns)
    if len(turns) < 2:
        frame.drop(columns=list(turns), inplace=True)
        return
    waits = _second_of_two(frame)
    frame["previous_request_id"] = (frame["request_id"] - 1).where(waits, pd.NA)
    frame["think_time_ns"] = (frame["arrival_time_ns"] - frame["arrival_time_ns"].shift()).where(waits, pd.NA)


def _second_of_two(frame: pd.DataFrame) -> pd.Series:
    """Rows that wait for the one before them. The last two never do, so that what is broken there breaks no other."""
    rows = np.arange(len(frame))
    return frame["previous_request_id"].notna() & (rows % 2 == 1) & (rows < 4)


def _requests(frame: pd.DataFrame) -> None:
    _numbered(frame)
    frame["num_decode_tokens_actual"] = frame[["num_decode_tokens_actual", "num_decode_tokens"]].min(axis=1)
    if "num_cached_tokens" in frame:
        cached = frame[["num_cached_tokens", "num_prefill_tokens"]].min(axis=1)
        frame["num_cached_tokens"] = cached.where(frame["num_cached_tokens"].notna())
    has_token = (frame["status"] == "ok") & (frame["num_decode_tokens_actual"] > 0)
    frame["arrival_time_ns"] //= 4
    frame["ttft_ns"] = (frame["ttft_ns"].fillna(0) // 4).where(has_token)
    frame["first_token_time_ns"] = frame["arrival_time_ns"] + frame["ttft_ns"]
    if "completion_time_ns" in frame:
        after = frame["completion_time_ns"].fillna(0) // 4
        frame["completion_time_ns"] = (frame["first_token_time_ns"] + after).where(has_token)
    if "workload_arrival_time_ns" in frame:
        frame["workload_arrival_time_ns"] = frame["arrival_time_ns"]
    if "previous_request_id" in frame:
        if not {"workload_arrival_time_ns", "completion_time_ns"} <= set(frame.columns):
            frame.drop(columns="previous_request_id", inplace=True)
            return
        answered = frame["completion_time_ns"].shift().fillna(INT64_MAX) < 2**61
        waits = _second_of_two(frame) & answered
        frame["previous_request_id"] = (frame["request_id"] - 1).where(waits, pd.NA)
        due = (frame["completion_time_ns"].shift().where(waits, 0) + 7).where(waits, frame["arrival_time_ns"])
        late = due - frame["arrival_time_ns"]
        before = frame["workload_arrival_time_ns"].shift().where(waits, 0) + 7
        frame["workload_arrival_time_ns"] = before.where(waits, frame["arrival_time_ns"])
        for name in ("arrival_time_ns", "first_token_time_ns", "completion_time_ns"):
            frame[name] += late


def _tokens(frame: pd.DataFrame) -> None:
    frame["request_id"] = sorted(frame["request_id"] // 70)
    request = frame.groupby("request_id")
    frame["token_index"] = request.cumcount()
    frame["token_time_ns"] = request["token_time_ns"].cummax()
    frame["token_latency_ns"] = frame.groupby("request_id")["token_time_ns"].diff().fillna(0)


def _iterations(frame: pd.DataFrame) -> None:
    frame["completion_time_ns"] = frame[["completion_time_ns", "scheduled_time_ns"]].max(axis=1)


def _each_token_count_once(frame: pd.DataFrame) -> None:
    frame["num_tokens"] = frame["num_tokens"] % 1000 + 1 + 1000 * np.arange(len(frame))


def _mlp(frame: pd.DataFrame) -> None:
    _each_token_count_once(frame)
    columns = [f"time_stats.{name}.median" for name in ("mlp_up_proj", "mlp_act", "mlp_down_proj")]
    # Of one MLP in every row, or of none.
    frame[columns] = np.nan if frame.loc[0, columns].isna().any() else frame[columns].fillna(0.1)


def _experts(frame: pd.DataFrame) -> None:
    frame["num_tokens"] = frame["num_tokens"] % 1000 + 1 + 1000 * np.arange(len(frame))
    gate = "time_stats.moe_router.median"
    frame[gate] = frame[gate].fillna(0.1).where(frame["routing"] == "router")
    frame["n_expert_per_token"] = frame[["n_expert", "n_expert_per_token"]].min(axis=1)
    low, high = (frame[name].to_numpy(dtype="float64") for name in ("n_expert_per_token", "n_expert"))
    frame["distinct_experts"] = frame["distinct_experts"].clip(low, high)


def _served_experts(frame: pd.DataFrame) -> None:
    frame["num_tokens"] = frame["num_tokens"] % 1000 + 1 + 1000 * np.arange(len(frame))


def _attention(frame: pd.DataFrame) -> None:
    prefill = frame["is_prefill"]
    frame["batch_size"] = range(1, len(frame) + 1)
    frame["prefill_chunk_size"] = frame["prefill_chunk_size"].clip(lower=1).where(prefill, 0)
    for name, wanted in (("attn_prefill", prefill), ("attn_decode", ~prefill)):
        median = f"time_stats.{name}.median"
        frame[median] = frame[median].fillna(0.1).where(wanted)


def _comparisons(frame: pd.DataFrame) -> None:
    frame["comparison_id"] = [f"{text}{row}" for row, text in enumerate(frame["comparison_id"])]


def _host_speed(frame: pd.DataFrame) -> None:
    frame["time_ns"] = frame["time_ns"].cummax()


def _overheads(frame: pd.DataFrame) -> None:
    frame["position"] = frame["position"] % 1e6 // 1 + 1e6 * np.arange(len(frame))
    frame["ns"] = frame["ns"].where(
        frame["term"].isin(["drain", "prepare_after_idle", "launch_after_idle"]), frame["ns"].abs()
    )


def _alignment(frame: pd.DataFrame) -> None:
    parts = ["num_compared", "num_errors", "num_no_token"]
    frame[parts] = frame[parts] // 4
    frame["num_requests"] = frame[parts].sum(axis=1)


def _capacity_probes(frame: pd.DataFrame) -> None:
    unjudged = frame["verdict"] == "unjudged"
    frame["reason"] = frame["reason"].where(frame["reason"] != "", "why").where(unjudged, "")


_INVARIANTS: dict[type[Table], Callable[[pd.DataFrame], None]] = {
    tables.TraceLengths: _numbered,
    tables.TraceIntervals: _intervals,
    tables.RequestMetrics: _requests,
    tables.TokenMetrics: _tokens,
    tables.Iterations: _iterations,
    tables.MlpProfile: _mlp,
    tables.AllReduceProfile: _each_token_count_once,
    tables.AttentionProfile: _attention,
    tables.ExpertsProfile: _experts,
    tables.ServedExperts: _served_experts,
    tables.Overheads: _overheads,
    tables.HostSpeed: _host_speed,
    tables.ComparisonHistory: _comparisons,
    tables.AlignmentCounts: _alignment,
    tables.CapacityProbes: _capacity_probes,
}
