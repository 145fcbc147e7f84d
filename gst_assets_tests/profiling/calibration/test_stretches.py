"""What was seen keeps its digest and survives its files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.profiling.calibration import (
    Round,
)
from gst_assets.workload.digest import workload_digest
from gst_assets_tests.profiling.calibration.made_rounds import (
    made_round,
)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.data())
def test_the_digest_depends_on_every_length_and_arrival(lengths: list[tuple[int, int]], data: st.DataObject) -> None:
    arrivals = data.draw(st.lists(st.integers(0, 10**12), min_size=len(lengths), max_size=len(lengths)))
    place = data.draw(st.integers(0, len(lengths) - 1))
    same = workload_digest(np.array(lengths), np.array(arrivals))
    assert same == workload_digest(lengths, arrivals)
    longer = [*lengths[:place], (lengths[place][0], lengths[place][1] + 1), *lengths[place + 1 :]]
    later = [*arrivals[:place], arrivals[place] + 1, *arrivals[place + 1 :]]
    assert len({same, workload_digest(longer, arrivals), workload_digest(lengths, later)}) == 3


def test_a_stretchs_digest_is_its_workloads_whenever_it_was_played() -> None:
    one = made_round(0).stretches[1]
    lengths = [(request.num_prefill_tokens, request.num_decode_tokens) for request in one.requests]
    begin = one.requests[0].arrival_time_ns
    arrivals = [request.arrival_time_ns - begin for request in one.requests]
    assert one.digest() == workload_digest(lengths, arrivals)
    later = [replace(request, arrival_time_ns=request.arrival_time_ns + 5) for request in one.requests]
    assert replace(one, requests=tuple(later)).digest() == one.digest()


def test_a_round_survives_text_and_array_to_the_last_bit() -> None:
    done = made_round(3)
    again = Round.of(done.as_text(), done.as_array())
    for one, other in zip(done.stretches, again.stretches, strict=True):
        assert (one.name, one.kind, one.requests) == (other.name, other.kind, other.requests)
        assert np.array_equal(one.steps, other.steps) and np.array_equal(one.watched, other.watched)
        assert one.digest() == other.digest()
