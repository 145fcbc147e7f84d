"""What holds of every contract table."""

from __future__ import annotations

from gst_assets.contracts import tables
from gst_assets_tests.contracts.frames import all_tables


def test_the_tables_that_must_have_rows() -> None:
    filled = {model.file_name() for model in all_tables() if issubclass(model, tables.FilledTable)}
    assert filled >= {"trace_lengths.csv", "trace_intervals.csv", "request_metrics.csv", "mlp.csv", "attention.csv"}
    assert "token_metrics.csv" not in filled  # a run whose every request failed has no token
