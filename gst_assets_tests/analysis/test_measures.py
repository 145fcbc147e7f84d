from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats.mstats import mquantiles

from gst_assets.analysis.alignment import AlignedSide
from gst_assets.analysis.latencies import is_sufficient, percentile_ns, samples_ns

SIDE = AlignedSide(
    requests=pd.DataFrame({"request_id": [0, 1], "ttft_ns": [7, 9], "e2e_ns": [30, 9]}),
    tokens=pd.DataFrame(
        {
            "request_id": [0, 0, 0, 1],
            "token_index": [0, 1, 2, 0],
            "token_time_ns": [7, 17, 30, 12],
            "token_latency_ns": [0, 10, 13, 0],
        }
    ),
)


def test_samples_of_each_metric() -> None:
    assert samples_ns(SIDE, "ttft").tolist() == [7, 9]
    assert samples_ns(SIDE, "itl").tolist() == [10, 13], "index 0 never enters"
    assert samples_ns(SIDE, "e2e").tolist() == [30, 9]


def test_percentiles_by_hand() -> None:
    # Type 7 on 10, 20, 30, 40: position (n - 1) p, so P50 is half-way between 20 and 30 and P90 is at 2.7.
    samples = np.array([40, 10, 30, 20])
    assert percentile_ns(samples, 50).value_ns == 25
    assert percentile_ns(samples, 90).value_ns == pytest.approx(37)
    assert percentile_ns(samples, 99).num_samples == 4


def test_no_samples_is_nan_and_not_zero() -> None:
    found = percentile_ns(np.array([], dtype="int64"), 50)
    assert math.isnan(found.value_ns) and found.num_samples == 0


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=60), st.sampled_from([50, 90, 99]))
def test_percentiles_against_scipy(samples: list[int], percentile: int) -> None:
    expected = mquantiles(samples, [percentile / 100], alphap=1, betap=1)[0]
    assert percentile_ns(np.array(samples), percentile).value_ns == pytest.approx(expected)


@pytest.mark.parametrize(("percentile", "needed"), [(50, 20), (90, 100), (99, 1000)])
def test_ten_samples_beyond(percentile: int, needed: int) -> None:
    assert is_sufficient(needed, percentile)
    assert not is_sufficient(needed - 1, percentile)
