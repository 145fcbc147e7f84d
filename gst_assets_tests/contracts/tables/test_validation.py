"""Every contract table: what is valid survives the disk unchanged; each invariant, broken alone, is named with its
place."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gst_assets.contracts import csv_files, tables
from gst_assets.contracts.tables import Table, read_table, validate, write_table
from gst_assets.errors import ContractError
from gst_assets_tests.contracts.frames import all_tables, frames, limits, sample_frame

by_table = pytest.mark.parametrize("model", all_tables(), ids=lambda model: model.__name__)


@by_table
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_valid_frame_survives_the_disk_and_its_bytes_are_stable(model: type[Table], data: st.DataObject) -> None:
    """Few frames of each table: reader and writer are the same for all."""
    frame = data.draw(frames(model))
    with tempfile.TemporaryDirectory() as folder:
        path = write_table(model, frame, Path(folder))
        first = path.read_bytes()
        read = read_table(model, path)
        pd.testing.assert_frame_equal(read, frame)
        csv_files.write_csv(read, path)
        assert path.read_bytes() == first
        # A lone \r is the one thing that pandas' writer leaves unquoted; see `csv_files.write_csv`.
        if b"\r" not in first:
            assert first == _pandas_bytes(frame)
    assert b"\r\n" not in first.split(b"\n", 1)[0]
    assert first.endswith(b"\n")


def _pandas_bytes(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


@by_table
@pytest.mark.parametrize("missing", [False, True], ids=["filled", "with_missing_values"])
def test_written_by_columns_the_bytes_are_those_of_pandas_own_writer(
    model: type[Table], missing: bool, tmp_path: Path
) -> None:
    """Plain text and integers of every contract table; floats are left to pandas."""
    types = {**model.column_types()[0], **model.column_types()[1]}
    frame = sample_frame(model)[[name for name, kind in types.items() if kind != csv_files.FLOAT]]
    if missing:
        for position, name in enumerate(one for one, kind in types.items() if kind == csv_files.INTEGER):
            frame.loc[position % len(frame), name] = pd.NA
    path = tmp_path / model.file_name()
    by_columns = csv_files._columns_of(frame) is not None
    assert by_columns == (len(frame.columns) > 1)
    if by_columns:
        csv_files.write_csv(frame, path)
        assert path.read_bytes() == _pandas_bytes(frame)


@by_table
def test_columns_may_stand_in_any_order_and_unknown_ones_are_kept(model: type[Table], tmp_path: Path) -> None:
    frame = sample_frame(model)
    foreign = [f"0{row}.50" for row in range(len(frame))]
    path = tmp_path / model.file_name()
    csv_files.write_csv(frame[frame.columns[::-1]].assign(foreign=foreign), path)
    read = read_table(model, path)
    assert list(read.columns) == [*frame.columns, "foreign"]
    assert read["foreign"].tolist() == foreign
    pd.testing.assert_frame_equal(read[list(frame.columns)], frame)


@by_table
def test_optional_columns_may_be_absent_and_required_ones_not(model: type[Table], tmp_path: Path) -> None:
    frame = sample_frame(model)
    required, optional = model.column_types()
    path = tmp_path / model.file_name()
    csv_files.write_csv(frame.drop(columns=list(optional)), path)
    assert list(read_table(model, path).columns) == list(required)
    for name in required:
        csv_files.write_csv(frame.drop(columns=name), path)
        with pytest.raises(ContractError) as reading:
            read_table(model, path)
        assert str(path) in str(reading.value) and f"column {name} missing" in str(reading.value)
    with pytest.raises(ContractError, match=f"column {name} missing"):
        validate(model, frame.drop(columns=name), path)


@pytest.mark.slow
@by_table
def test_no_required_column_may_be_absent_where_a_table_is_written(model: type[Table]) -> None:
    """That the last may not is held by the test above, which the quick run has too."""
    frame = sample_frame(model)
    for name in model.column_types()[0]:
        with pytest.raises(ContractError, match=f"^here: .*column {name} missing"):
            validate(model, frame.drop(columns=name), "here")


@by_table
def test_a_table_without_rows(model: type[Table], tmp_path: Path) -> None:
    empty = sample_frame(model)[:0]
    path = tmp_path / model.file_name()
    csv_files.write_csv(empty, path)
    if issubclass(model, tables.FilledTable):
        for attempt in (lambda: read_table(model, path), lambda: validate(model, empty, path)):
            with pytest.raises(ContractError, match="found 0 rows, but there must be at least one row"):
                attempt()
    else:
        pd.testing.assert_frame_equal(read_table(model, path), empty)


_FIRST = object()  # stands for the column's first value


def _column_violations() -> list[Any]:
    """Each rule that a column holds alone, broken once: (model, column, wrong value, what the message must say, whether
    it is read from a file too). That is done once for each sort of mistake in a table: readers and writers have their
    rules from one place, and differ in how they name it. Further columns of the same sort are left to the full suite:
    these cases come from the models' own rules, which the same code applies to all of them."""
    cases, read = [], set()
    for model in all_tables():
        required, optional = model.column_types()
        for name, kind in {**required, **optional}.items():
            rule, column = limits(model, name), model.to_schema().columns[name]
            wrong: list[tuple[str, Any, str]] = []
            if "min" in rule:
                wrong.append(("too_low", rule["min"] - 1, f"expected at least {rule['min']}"))
            if "above" in rule:
                wrong.append(("too_low", rule["above"], f"expected more than {rule['above']}"))
            if "max" in rule:
                wrong.append(("too_high", rule["max"] + 1, f"expected at most {rule['max']}"))
            if "values" in rule:
                wrong.append(("not_allowed", "other", f"expected one of {rule['values'][0]}"))
            if "min_length" in rule:
                wrong.append(("empty", "", "expected text of at least 1 character"))
            if kind == csv_files.FLOAT:
                wrong.append(("infinite", np.inf, "expected at most" if "max" in rule else "finite"))
            if not column.nullable and kind in (csv_files.INTEGER, csv_files.FLOAT):
                missing = pd.NA if kind == csv_files.INTEGER else np.nan
                wrong.append(("missing", missing, "found no value, expected a value in every row"))
            if column.unique:
                wrong.append(("twice", _FIRST, "expected no value twice"))
            for what, value, says in wrong:
                sort = (model, what, kind)
                again = [pytest.mark.slow] if sort in read else []
                case = f"{model.__name__}-{name}-{what}"
                cases.append(pytest.param(model, name, value, says, sort not in read, id=case, marks=again))
                read.add(sort)
    return cases


@pytest.mark.parametrize(("model", "column", "value", "says", "from_file"), _column_violations())
def test_a_wrong_value_is_named_with_file_place_and_column(
    model: type[Table], column: str, value: Any, says: str, from_file: bool, tmp_path: Path
) -> None:
    frame = sample_frame(model)
    row = int(
        np.flatnonzero(frame[column].notna())[-2]
    )  # rows with an empty field come before it where the column may hold one
    frame.loc[row, column] = frame.loc[0, column] if value is _FIRST else value
    path = tmp_path / model.file_name()
    with pytest.raises(ContractError) as writing:
        validate(model, frame, path)
    message = str(writing.value)
    assert message.startswith(f"{path}: row {row},") and column in message and says in message
    if not from_file:
        return
    csv_files.write_csv(frame, path)
    with pytest.raises(ContractError) as reading:
        read_table(model, path)
    message = str(reading.value)
    assert message.startswith(f"{path}: line {row + 2},") and column in message
    assert says in message or (value is np.inf and "is not a finite number" in message)


_TIMES = "first_token_time_ns, ttft_ns and completion_time_ns must be filled where status is ok"
_NA = pd.NA
# (check, model, {column: value for row 4}, what the message must say). Values are chosen so that no other rule breaks
# first.
_RELATIONS: list[tuple[str, type[Table], dict[str, Any], str]] = [
    ("ids_are_gap_free", tables.TraceLengths, {"request_id": 5}, "found request_id 5, but request_id must be 0..N-1"),
    ("ids_are_gap_free", tables.TraceLengths, {"request_id": 3}, "found request_id 3, but request_id must be 0..N-1"),
    ("ids_are_gap_free", tables.TraceIntervals, {"request_id": 7}, "found request_id 7, but request_id must be 0..N-1"),
    (
        "arrivals_are_the_cumulative_sum",
        tables.TraceIntervals,
        {"arrival_time_ns": 1},
        "found arrival_time_ns 1, inter_arrival_ns 20, but",
    ),
    (
        "arrivals_are_the_cumulative_sum",
        tables.TraceIntervals,
        {"inter_arrival_ns": 1},
        "but arrival_time_ns must equal cumsum",
    ),
    (
        "turns_are_chains",
        tables.TraceIntervals,
        {"previous_request_id": 5},
        "found previous_request_id 5, but",
    ),
    (
        "think_times_are_the_schedules",
        tables.TraceIntervals,
        {"think_time_ns": 5},
        "found think_time_ns 5, previous_request_id no value, but",
    ),
    (
        "turns_wait_for_answers",
        tables.RequestMetrics,
        {"workload_arrival_time_ns": 5},
        "found arrival_time_ns 30, previous_request_id no value, completion_time_ns",
    ),
    ("ids_are_gap_free", tables.RequestMetrics, {"request_id": 3}, "found request_id 3, but request_id must be 0..N-1"),
    (
        "ttft_is_consistent",
        tables.RequestMetrics,
        {"ttft_ns": 9},
        "but ttft_ns must equal first_token_time_ns - arrival_time_ns",
    ),
    (
        "ttft_is_consistent",
        tables.RequestMetrics,
        {"ttft_ns": _NA},
        "found ttft_ns no value, first_token_time_ns 60, arrival_time_ns 30",
    ),
    (
        "ttft_is_consistent",
        tables.RequestMetrics,
        {"first_token_time_ns": _NA},
        "but ttft_ns must equal first_token_time_ns",
    ),
    ("times_match_status", tables.RequestMetrics, {"status": "error"}, _TIMES),
    ("times_match_status", tables.RequestMetrics, {"num_decode_tokens_actual": 0}, _TIMES),
    ("times_match_status", tables.RequestMetrics, {"completion_time_ns": _NA}, _TIMES),
    ("times_match_status", tables.RequestMetrics, dict.fromkeys(tables.TIME_COLUMNS, _NA), _TIMES),
    (
        "not_more_tokens_than_asked",
        tables.RequestMetrics,
        {"num_decode_tokens_actual": 121},
        "found num_decode_tokens_actual 121, num_decode_tokens 120, but",
    ),
    (
        "not_more_cached_than_prompt",
        tables.RequestMetrics,
        {"num_cached_tokens": 121},
        "found num_cached_tokens 121, num_prefill_tokens",
    ),
    (
        "completes_after_first_token",
        tables.RequestMetrics,
        {"completion_time_ns": 1},
        "found completion_time_ns 1, first_token_time_ns 60, but",
    ),
    (
        "ordered_by_request",
        tables.TokenMetrics,
        {"request_id": 0},
        "found request_id 0, but rows must be ordered by request_id",
    ),
    (
        "indexes_are_gap_free",
        tables.TokenMetrics,
        {"token_index": 1},
        "found token_index 1, but token_index must count 0, 1, 2",
    ),
    (
        "times_do_not_decrease",
        tables.TokenMetrics,
        {"token_time_ns": 3},
        "found token_time_ns 3, but token_time_ns must not decrease",
    ),
    (
        "latency_is_the_difference",
        tables.TokenMetrics,
        {"token_latency_ns": 4},
        "found token_latency_ns 4, token_time_ns 120, token_index 2, but",
    ),
    (
        "ends_after_start",
        tables.Iterations,
        {"completion_time_ns": 4},
        "found completion_time_ns 4, scheduled_time_ns 120, but",
    ),
    (
        "kind_matches_columns",
        tables.AttentionProfile,
        {"time_stats.attn_prefill.median": np.nan},
        "a row with is_prefill True needs",
    ),
    (
        "kind_matches_columns",
        tables.AttentionProfile,
        {"time_stats.attn_decode.median": 1.0},
        "a row with is_prefill True needs",
    ),
    ("kind_matches_columns", tables.AttentionProfile, {"prefill_chunk_size": 0}, "a row with is_prefill True needs"),
    ("kind_matches_columns", tables.AttentionProfile, {"is_prefill": False}, "a row with is_prefill True needs"),
    (
        "points_are_unique",
        tables.AttentionProfile,
        {"batch_size": 3, "prefill_chunk_size": 72, "kv_cache_size": 72},
        "two rows describe the same point",
    ),
    (
        "mlp_is_there_or_not",
        tables.MlpProfile,
        {"time_stats.mlp_act.median": np.nan},
        "time_stats.mlp_act.median no value, time_stats.mlp_down_proj.median 5.5, but",
    ),
    (
        "gate_is_timed_once",
        tables.ExpertsProfile,
        {"time_stats.moe_router.median": np.nan},
        "found time_stats.moe_router.median no value, routing 'router', but",
    ),
    (
        "gate_is_timed_once",
        tables.ExpertsProfile,
        {"routing": "even"},
        "found time_stats.moe_router.median 5.5, routing 'even', but",
    ),
    (
        "stands_once",
        tables.ExpertsProfile,
        {"num_tokens": 3097},
        "found num_tokens 3097, routing 'router', but",
    ),
    (
        "distinct_is_possible",
        tables.ExpertsProfile,
        {"distinct_experts": 1000.0},
        "found distinct_experts 1000.0, n_expert_per_token 120, n_expert 120, but",
    ),
    (
        "distinct_is_possible",
        tables.ExpertsProfile,
        {"distinct_experts": 1.0},
        "found distinct_experts 1.0, n_expert_per_token 120, n_expert 120, but",
    ),
    (
        "stands_once",
        tables.ServedExperts,
        {"num_tokens": 3097},
        "found step_kind 'decode', num_tokens 3097, but",
    ),
    (
        "takes_time",
        tables.Overheads,
        {"ns": -0.5},
        "found ns -0.5, but ns must not be negative except for drain and the terms after idle",
    ),
    ("takes_time", tables.Overheads, {"ns": -0.5, "term": "delivery"}, "found ns -0.5, but ns must not be negative"),
    (
        "stands_once",
        tables.Overheads,
        {"position": 3_000_004.0},
        "found term 'form', step_kind 'decode', feature 'base', position 3000004.0, but",
    ),
    ("in_order", tables.HostSpeed, {"time_ns": 3}, "found time_ns 3, but time_ns must not decrease"),
    (
        "unjudged_has_a_reason",
        tables.CapacityProbes,
        {"verdict": "unjudged"},
        "but a verdict of `unjudged` needs a reason",
    ),
    (
        "counts_add_up",
        tables.AlignmentCounts,
        {"num_requests": 9},
        "but num_requests must equal num_compared + num_errors + num_no_token",
    ),
]


@pytest.mark.parametrize(
    ("check", "model", "values", "says"),
    _RELATIONS,
    ids=[f"{model.__name__}-{check}-{'-'.join(values)}" for check, model, values, _ in _RELATIONS],
)
def test_a_broken_relation_is_named_with_its_place_and_values(
    check: str, model: type[Table], values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    frame = sample_frame(model)
    for name, value in values.items():
        frame.loc[4, name] = value
    path = tmp_path / model.file_name()
    rule = next(str(one.error) for one in model.to_schema().checks if one.name == check)
    with pytest.raises(ContractError) as writing:
        validate(model, frame, path)
    csv_files.write_csv(frame, path)
    with pytest.raises(ContractError) as reading:
        read_table(model, path)
    for error, place in ((writing, "row 4,"), (reading, "line 6,")):
        message = str(error.value)
        assert message.startswith(f"{path}: {place}"), message
        assert says in message and rule in message


def test_every_relation_of_every_table_is_broken_by_a_test() -> None:
    general = {"numbers_are_finite", "has_rows"}
    stated = {(check.name, model) for model in all_tables() for check in model.to_schema().checks}
    broken = {(check, model) for check, model, _, _ in _RELATIONS}
    assert {(name, model) for name, model in stated if name not in general} == broken


def test_the_line_is_counted_in_the_file_where_text_spans_lines(tmp_path: Path) -> None:
    frame = sample_frame(tables.RequestMetrics)
    frame.loc[1, "error_msg"] = "three\nlines\nlong"
    frame.loc[4, "num_prefill_tokens"] = -1
    path = tmp_path / "request_metrics.csv"
    csv_files.write_csv(frame, path)
    with pytest.raises(ContractError, match="line 8, column num_prefill_tokens: found -1"):
        read_table(tables.RequestMetrics, path)


def test_the_row_is_a_position_whatever_the_index_of_the_frame() -> None:
    frame = sample_frame(tables.TraceLengths).set_axis([9, 9, 9, 2, 2, 2])
    frame.iloc[4, 2] = -1
    with pytest.raises(ContractError, match=r"^here: row 4, column num_prefill_tokens: found -1"):
        validate(tables.TraceLengths, frame, "here")


def test_the_cause_is_told_before_what_follows_from_it() -> None:
    frame = sample_frame(tables.TraceIntervals)
    frame.loc[2, "inter_arrival_ns"] = pd.NA
    with pytest.raises(ContractError, match="row 2, column inter_arrival_ns: found no value"):
        validate(tables.TraceIntervals, frame, "here")
    with pytest.raises(ContractError, match=r"column request_id: found float64 values, expected Int64"):
        validate(tables.TraceIntervals, sample_frame(tables.TraceIntervals).astype({"request_id": "float64"}), "here")
    doubled = pd.concat([frame, frame[["request_id"]]], axis=1)
    with pytest.raises(ContractError, match="column request_id occurs more than once"):
        validate(tables.TraceIntervals, doubled, "here")


def test_an_invalid_frame_is_not_written(tmp_path: Path) -> None:
    frame = sample_frame(tables.TraceLengths)
    frame.loc[0, "request_id"] = 1
    with pytest.raises(ContractError):
        write_table(tables.TraceLengths, frame, tmp_path)
    assert list(tmp_path.iterdir()) == []
