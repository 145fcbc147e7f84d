"""Which artifacts a scenario's pointers lead to: by settings, by what is still there, and unaltered."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gst_assets.contracts.pointers import (
    REAL_RUNS,
    SLOTS,
    Slot,
    first_difference,
    newest,
    newest_of_any,
    pointers,
    refer,
)
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import ArtifactError, WorkloadError
from gst_assets.scenario import Scenario, load_scenario

KEYS: dict[str, dict[str, Any]] = {
    "workload": {"workload_id": "wl", "source": None},
    "real_runs": {"run_ids": ["one"]},
    "vidur_runs": {"run_ids": {"kernels": "one"}, "seed_run_ids": {}},
    "comparison": {"comparison_id": "one"},
    "capacity": {"capacity_id": "one"},
}
PLAIN = load_scenario("smoke")
OTHER = load_scenario("smoke", ["workload.num_decode_tokens=5"])


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def make(store: ArtifactStore, name: str, asked: Scenario = PLAIN) -> Path:
    """A real run of that name, which the scenario points to."""
    with store.stage(Kind.REAL_RUN, name) as staging:
        (staging.path / "data.csv").write_text(name)
        (staging.path / "run_meta.json").write_text(json.dumps({"sha256": staging.digests(), "degraded": True}))
        final = staging.commit()
    refer(store, asked, REAL_RUNS, [(Kind.REAL_RUN, name)], run_ids=[name])
    return final


def found(store: ArtifactStore, asked: Scenario = PLAIN) -> str:
    return str(newest(store, asked, REAL_RUNS).pointer.run_ids[0])


def test_an_override_takes_nothing_over(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"no real run for scenario smoke\. Materialize real_request_metrics for"):
        found(store)
    make(store, "other", OTHER)
    with pytest.raises(WorkloadError, match=r"no real run for scenario smoke as it is asked for: .*num_decode_tokens = 5, but scenario smoke now asks for 32\. Materialize real_request_metrics again, with the same overrides"):  # fmt: skip
        found(store)
    assert newest_of_any(store, PLAIN, REAL_RUNS).pointer.run_ids == ["other"]
    make(store, "plain")
    make(store, "later", OTHER)
    assert (found(store), found(store, OTHER)) == ("plain", "later")
    # What does not decide what is measured is no difference.
    assert found(store, load_scenario("smoke", ["comparison.pass_band=0.01", "simulation.seed=9"])) == "plain"
    store.remove_pointer(next(store.pointers("smoke", "real_runs"))[0])
    with pytest.raises(WorkloadError, match=r"built with replay\.repeats = \d+, but scenario smoke now asks for 3"):
        found(store, load_scenario("smoke", ["replay.repeats=3"]))


def test_a_setting_that_did_not_exist_has_its_default() -> None:
    before = PLAIN.model_dump(mode="json")
    del before["profile"]["short_traffic_rates_per_s"]
    assert first_difference(before, PLAIN, ["profile"]) is None
    asked = load_scenario("smoke", ["profile.short_traffic_rates_per_s=[9]"])
    assert first_difference(before, asked, ["profile"]) == (
        "built with profile.short_traffic_rates_per_s = [], but scenario smoke now asks for [9.0]"
    )
    del before["profile"]["num_tokens"]  # has no default
    assert "profile.num_tokens = None" in str(first_difference(before, PLAIN, ["profile"]))


def test_what_was_removed_falls_back_to_the_one_before_and_is_told(store: ArtifactStore) -> None:
    for name in ("one", "two", "three"):
        make(store, name)
    store.remove(Kind.REAL_RUN, "three")
    assert found(store) == "two" and newest(store, PLAIN, REAL_RUNS).gone == ("real_runs/three",)
    shutil.move(store.root / "real_runs", store.root / "elsewhere")
    with pytest.raises(
        ArtifactError, match=r"real_runs/three: no longer there, nor is any other real run of scenario smoke .*Mount or"
    ):
        found(store)


def _verdict(meta: Path) -> None:
    meta.write_text(meta.read_text().replace("true", "false"))


def _whole(meta: Path) -> None:
    meta.write_text('{"sha256": {}}')


def _space(meta: Path) -> None:
    meta.write_text(meta.read_text() + " ")


@pytest.mark.parametrize("edit", [_verdict, _whole, _space])
def test_edited_metadata_is_refused_and_nothing_older_taken_for_it(
    store: ArtifactStore, edit: Callable[[Path], None]
) -> None:
    make(store, "one")
    meta = make(store, "two") / "run_meta.json"
    edit(meta)
    with pytest.raises(
        ArtifactError, match=rf"^{meta}: changed after it was written.*Restore it .*or remove {meta.parent} "
    ):
        newest(store, PLAIN, REAL_RUNS).open(store, Kind.REAL_RUN, "two")


def test_pointers_of_earlier_versions_are_taken_as_they_are(store: ArtifactStore) -> None:
    run = make(store, "old")
    shutil.rmtree(store.root / "current" / "smoke" / "real_runs")
    (store.root / "current" / "smoke" / "real_runs.json").write_text('{"run_ids": ["old"]}')
    assert newest(store, OTHER, REAL_RUNS).open(store, Kind.REAL_RUN, "old") == run


_WRONG: tuple[object, ...] = (
    None,
    1,
    1.5,
    True,
    "../x",
    "a/b",
    ".hidden",
    [],
    [1],
    ["../x"],
    {},
    {"a": 1},
    {"a": [1]},
    {"a": "b/c"},
)


@pytest.mark.parametrize(
    ("slot", "key"),
    [(slot, key) for slot in SLOTS for key in ("sealed", "params", *KEYS[slot.name])],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_pointer_with_a_value_of_another_kind_is_named(store: ArtifactStore, slot: Slot[Any], key: str) -> None:
    """Read as it should be, or refused in one message; nothing else."""
    refused = 0
    for wrong in (*_WRONG, {"real_runs/one": 1}, {"nonsense/one": "00"}, {"real_runs/../x": "00"}):
        store.set_current("smoke", slot.name, {**KEYS[slot.name], "sealed": {}, "params": None, key: wrong})
        (name, _), *_ = store.pointers("smoke", slot.name)
        try:
            (_, pointer), *_ = pointers(store, "smoke", slot)
        except ArtifactError as error:
            assert re.match(rf"{store}/{name}: key {key}\b.*Remove {store}/{name} and materialize", str(error))
            refused += 1
        else:
            assert getattr(pointer, key) == wrong
        store.remove_pointer(name)
    assert refused >= 9
