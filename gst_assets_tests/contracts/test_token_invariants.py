"""The rules between the rows of a token table, against a reading of them row by row."""

from __future__ import annotations

from itertools import accumulate, groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.contracts import token_invariants as rules

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
requests = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=4)
"""For each request, the gaps between its tokens; the first of them places its first token."""


def table(gaps_of: list[list[int]], step: int = 2) -> Columns:
    """request_id, token_index, token_time_ns and token_latency_ns, made token by token; ids are `step` apart."""
    rows = [
        (step * number, index, time, time - times[index - 1] if index else 0)
        for number, gaps in enumerate(gaps_of)
        for times in [list(accumulate(gaps))]
        for index, time in enumerate(times)
    ]
    ids, index, times, latencies = np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy()
    return ids, index, times, latencies


def holds(columns: Columns) -> bool:
    ids, index, times, latencies = columns
    return rules.all_hold(ids, index, latencies, rules.latencies_ns(rules.begins_request(ids), times))


def holds_row_by_row(columns: Columns) -> bool:
    """The contract's words, in plain Python."""
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    if [row[0] for row in rows] != sorted(row[0] for row in rows):
        return False
    for _, group in groupby(rows, key=lambda row: row[0]):
        of_one = list(group)
        if [row[1] for row in of_one] != list(range(len(of_one))) or of_one[0][3] != 0:
            return False
        if any(two[2] < one[2] or two[3] != two[2] - one[2] for one, two in pairwise(of_one)):
            return False
    return True


@given(requests)
def test_columns_are_made_as_they_are_checked(gaps_of: list[list[int]]) -> None:
    ids, index, times, latencies = table(gaps_of)
    begins = rules.begins_request(ids)
    assert rules.indexes(begins).tolist() == index.tolist()
    assert rules.latencies_ns(begins, times).tolist() == latencies.tolist()
    assert begins.sum() == len(gaps_of) and holds((ids, index, times, latencies))


@given(requests.filter(bool), st.data())
def test_one_changed_number_is_judged_as_row_by_row(gaps_of: list[list[int]], data: st.DataObject) -> None:
    columns = table(gaps_of)
    column = columns[data.draw(st.integers(0, 3))]
    column[data.draw(st.integers(0, len(column) - 1))] += data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    assert holds(columns) == holds_row_by_row(columns)


@pytest.mark.parametrize(
    ("place", "row", "value"),
    [(0, 3, 0), (1, 0, 1), (1, 2, 3), (1, 3, 3), (2, 1, 0), (3, 0, 1), (3, 3, 4), (3, 1, 2)],
)
def test_each_rule_broken_alone(place: int, row: int, value: int) -> None:
    columns = table([[4, 1, 1], [9, 5]])
    assert holds(columns)
    columns[place][row] = value
    assert not holds(columns) and not holds_row_by_row(columns)


def test_requests_out_of_order_and_times_that_decrease_with_their_latencies() -> None:
    ids, index, times, latencies = table([[4, 1, 1], [9, 5]])
    unordered = (np.array([2, 2, 0, 0, 0]), np.array([0, 1, 0, 1, 2]), times, np.array([0, 1, 0, 3, 5]))
    back = (ids, index, np.array([4, 3, 6, 9, 14]), np.array([0, -1, 3, 0, 5]))
    assert times.tolist() == [4, 5, 6, 9, 14] and latencies.tolist() == [0, 1, 1, 0, 5]
    for columns in (unordered, back):
        assert not holds(columns) and not holds_row_by_row(columns)


def test_masks_name_the_rows() -> None:
    ids, index = np.array([0, 0, 0, 2, 2, 1]), np.array([0, 1, 3, 0, 0, 0])
    begins = rules.begins_request(ids)
    assert begins.tolist() == [True, False, False, True, False, True]
    assert rules.are_ordered(ids).tolist() == [True] * 5 + [False]
    assert rules.index_counts_on(begins, index).tolist() == [True, True, False, True, False, True]
    assert rules.latencies_ns(begins, np.array([5, 7, 6, 1, 1, 0])).tolist() == [0, 2, -1, 0, 0, 0]


def test_no_row_breaks_no_rule() -> None:
    none = np.empty(0, dtype=np.int64)
    assert holds((none, none, none, none)) and not len(rules.indexes(rules.begins_request(none)))
