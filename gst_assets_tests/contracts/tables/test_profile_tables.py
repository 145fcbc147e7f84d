"""What a bundle's tables take, beyond what holds of every table (`test_validation`)."""

from __future__ import annotations

import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.tables import validate
from gst_assets_tests.contracts.frames import sample_frame


@pytest.mark.parametrize("term", ["drain", "prepare_after_idle", "launch_after_idle"])
def test_terms_that_are_differences_may_be_negative(term: str) -> None:
    frame = sample_frame(tables.Overheads)
    frame.loc[4, ["term", "ns"]] = term, -5e4
    validate(tables.Overheads, frame, "overheads.csv")
