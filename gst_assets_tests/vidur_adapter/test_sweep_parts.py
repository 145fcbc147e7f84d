"""How a sweep is cut, and what is left of it when parts of several cuts are there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import SimulationError
from gst_assets.vidur_adapter.sweep_parts import Part, SweepParts, cut, usual_size

KEY = "0123456789abcdef"


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.data())
def test_parts_hold_all_that_is_left_once_and_their_names_say_all_of_them(
    num_jobs: int, size: int, data: st.DataObject
) -> None:
    known = data.draw(st.sets(st.integers(0, num_jobs - 1)))
    parts = cut(num_jobs, size, known, KEY)
    held = [number for part in parts for number in range(part.first, part.last + 1)]
    assert held == sorted(set(held)) and set(range(num_jobs)) - known <= set(held) <= set(range(num_jobs))
    assert all(part.last - part.first < size and part.count == len(parts) for part in parts)
    assert [part.place for part in parts] == [*range(1, len(parts) + 1)]
    assert len(parts) == 1 or not any(set(range(part.first, part.last + 1)) <= known for part in parts)
    names = [part.name for part in parts]
    assert [Part.named(name) for name in names] == parts and sorted(names) == names
    assert all(
        name.replace("_", "").isalnum() and KEY.startswith(part.key) for name, part in zip(names, parts, strict=True)
    )


def test_a_part_is_a_few_seconds_of_simulation_and_at_least_one_configuration() -> None:
    assert [usual_size(requests) for requests in (1_000, 100_000, 10**7)] == [250, 2, 1]


def test_parts_of_several_cuts_make_one_sweep_and_what_is_missing_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    parts, others = SweepParts(store, KEY), SweepParts(store, "fedcba9876543210")
    rows = {
        number: [{"rate_per_s": number / 3, "ttft_p99_ns": 0.1 + number, "goodput_per_s": None}] for number in range(5)
    }
    others.add({0: ["of another sweep"]})
    parts.add({number: rows[number] for number in (0, 1)})
    parts.add({number: rows[number] for number in (1, 3)})
    with pytest.raises(SimulationError, match=rf"sweep_parts/{KEY}-\*: nothing of configuration 2 \(2 of 5 missing\)"):
        parts.complete(5)
    parts.add({2: rows[2], 4: [rows[4][0] | {"itl_p99_ns": math.nan}]})
    found = parts.complete(5)
    assert found[:4] == [rows[number] for number in range(4)] and math.isnan(found[4][0]["itl_p99_ns"])
    parts.remove()
    assert parts.rows() == {} and others.rows() == {0: ["of another sweep"]}
    assert len(store.list(Kind.SWEEP_PART)) == 1


def test_what_another_run_of_the_sweep_removed_meanwhile_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = SweepParts(ArtifactStore(tmp_path), KEY)
    parts.add({0: [1]})
    parts.add({1: [2]})
    names = parts._names()
    SweepParts(ArtifactStore(tmp_path), KEY).remove()
    seen = iter([names])
    monkeypatch.setattr(SweepParts, "_names", lambda _: next(seen, []))
    parts.remove()
