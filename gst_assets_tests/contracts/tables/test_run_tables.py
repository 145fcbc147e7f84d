"""What must hold between the tables of one run."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from gst_assets.contracts import tables
from gst_assets.errors import ContractError
from gst_assets_tests.contracts.frames import sample_frame


def _run() -> tuple[pd.DataFrame, pd.DataFrame]:
    requests = sample_frame(tables.RequestMetrics)[:3]
    requests["num_decode_tokens_actual"] = pd.array([1, 2, 3], dtype="Int64")
    first = requests["first_token_time_ns"]
    tokens = pd.DataFrame(
        [(r, i, first[r] + 10 * i, 10 * (i > 0)) for r in range(3) for i in range(r + 1)],
        columns=["request_id", "token_index", "token_time_ns", "token_latency_ns"],
    ).astype("Int64")
    return requests, tokens


def test_tables_of_one_run_agree() -> None:
    requests, tokens = _run()
    tables.check_run_tables(requests, tokens, "here")
    failed = requests.assign(num_decode_tokens_actual=pd.array([0] * 3, dtype="Int64"), first_token_time_ns=pd.NA)
    tables.check_run_tables(failed.astype({"first_token_time_ns": "Int64"}), tokens[:0], "here")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r, t: (r, t[:-1]), "here: request 2 has 2 rows in token_metrics.csv but num_decode_tokens_actual 3"),
        (lambda r, t: (r, t[t["request_id"] != 1]), "here: request 1 has 0 rows in token_metrics.csv but"),
        (lambda r, t: (r[:2], t), "here: token_metrics.csv has tokens of request 2, which request_metrics.csv does not list"),
        (lambda r, t: (r.assign(first_token_time_ns=r["first_token_time_ns"] + (r["request_id"] == 1)), t),
         "here: request 1 has first_token_time_ns 38 in request_metrics.csv but its token 0 is at 37"),
    ],
)  # fmt: skip
def test_tables_of_different_runs_are_refused(change: Any, says: str) -> None:
    with pytest.raises(ContractError) as error:
        tables.check_run_tables(*change(*_run()), "here")
    assert str(error.value).startswith(says)
