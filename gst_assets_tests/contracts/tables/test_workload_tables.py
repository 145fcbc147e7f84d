"""What a schedule of arrivals refuses, beyond what holds of every table (`test_validation`)."""

from __future__ import annotations

import pandas as pd
import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.tables import validate
from gst_assets.errors import ContractError


def test_an_overflowing_schedule_is_refused() -> None:
    gaps = pd.Series([2**62, 2**62, 1], dtype="Int64")
    frame = pd.DataFrame({"request_id": range(3), "inter_arrival_ns": gaps, "arrival_time_ns": gaps.cumsum()})
    with pytest.raises(ContractError, match="row 1, column arrival_time_ns: found -9223372036854775808"):
        validate(tables.TraceIntervals, frame.astype("Int64"), "here")
