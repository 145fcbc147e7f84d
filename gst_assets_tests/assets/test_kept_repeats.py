"""An engine that dies, or a run that is cancelled, in a later repeat: the repeats before it are kept, and the error says
where."""

from __future__ import annotations

import glob
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.analysis.run_reading import load_run
from gst_assets.assets import real_runs
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.environment import LOCK_VARIABLE
from gst_assets.errors import EngineError, ProfileError
from gst_assets.resources import EngineResource
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload import build
from gst_assets_tests.engine.peer_process import peer_process


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here measures what another engine could disturb, so no turn is waited for."""
    monkeypatch.setenv(LOCK_VARIABLE, str(tmp_path / "lock"))


def scenario_of(base_url: str) -> Scenario:
    overrides = [
        "engine.backend=openai", f"engine.server.base_url='{base_url}'", "replay.repeats=3", "replay.warmup_requests=1",
        "replay.between_calibration=false", "workload.num_requests=12", "workload.num_decode_tokens=4",
        "workload.arrivals={kind: fixed_interval, interval_ns: 20000000}",
    ]  # fmt: skip
    return load_scenario("smoke", overrides)


TWO_REPEATS = 1 + 1 + 2 * 12
"""Completions that a server is asked for before the third repeat: a probe, the warm-up, and two repeats."""


def measured_and_killed(folder: Path, answered: int) -> tuple[ArtifactStore, EngineError]:
    """Measure on a server that is killed when it has answered so many completions; returns the store and the error."""
    store = ArtifactStore(folder / "artifacts")
    with peer_process(dies_after=answered) as base_url:
        scenario = scenario_of(base_url)
        (folder / "workload").mkdir()
        workload = build(scenario, folder / "workload")
        with pytest.raises(EngineError) as raised:
            real_runs.measure(store, scenario, workload, EngineResource(), lambda _: None)
    return store, raised.value


def test_the_repeats_before_the_death_are_kept_and_the_error_says_where(tmp_path: Path) -> None:
    store, error = measured_and_killed(tmp_path, TWO_REPEATS + 3)
    kept = store.list(Kind.REAL_RUN)
    assert [name[-2:] for name in kept] == ["r0", "r1", "r2"]
    runs = [load_run(store.open(Kind.REAL_RUN, name), "real") for name in kept]
    assert [int((run.requests["status"] == "ok").sum()) for run in runs[:2]] == [12, 12]
    assert runs[2].meta.degraded and runs[2].meta.num_errors >= 9
    for run in runs:
        assert str(run.directory) in str(error)
    assert "of 3 repeats of the scenario 2 could be finished" in str(
        error
    ) and "not the scenario's current runs" in str(error)
    assert store.current("smoke", "real_runs", "run_ids") is None
    assert not [path for path in (store.root / ".staging").iterdir() if path.is_dir()]


def test_a_run_that_is_cancelled_keeps_its_complete_repeats_and_says_how_to_compare_them(tmp_path: Path) -> None:
    """While the third repeat is played, and one is half written."""
    store = ArtifactStore(tmp_path / "artifacts")
    with peer_process(silent_after=TWO_REPEATS + 3) as base_url:
        scenario = scenario_of(base_url)
        (tmp_path / "workload").mkdir()
        workload = build(scenario, tmp_path / "workload")

        def log(told: str) -> None:
            if "repeat 3 of 3: playing" in told:
                (area,) = {path.parent for path in (store.root / ".staging").glob("*/*-r1")}
                (area / ".gst-staged-x" / "smoke-r2").mkdir(parents=True)
                (area / ".smoke-r2.17.abcd").mkdir()
                raise dg.DagsterExecutionInterruptedError

        with pytest.raises(dg.DagsterExecutionInterruptedError) as raised:
            real_runs.measure(store, scenario, workload, EngineResource(), log)
    kept = [load_run(store.open(Kind.REAL_RUN, name), "real") for name in store.list(Kind.REAL_RUN)]
    assert [run.meta.repeat_index for run in kept] == [0, 1]
    assert not any(run.meta.degraded or (run.requests["status"] != "ok").any() for run in kept)
    (note,) = raised.value.__notes__
    assert all(str(run.directory) in note for run in kept) and "not the scenario's current runs" in note
    pattern = note.partition("gst compare '")[2].partition("'")[0]
    assert sorted(glob.glob(pattern)) == [str(run.directory) for run in kept]  # noqa: PTH207
    assert store.current("smoke", "real_runs", "run_ids") is None
    assert not [path for path in (store.root / ".staging").iterdir() if path.is_dir()]


def test_a_failure_before_the_first_repeat_keeps_nothing(tmp_path: Path) -> None:
    store, error = measured_and_killed(tmp_path, 0)
    assert "Nothing was measured" in str(error) and "Kept" not in str(error)
    assert not (store.root / Kind.REAL_RUN.value).exists()


def test_what_is_no_valid_run_is_not_kept(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    (tmp_path / "runs" / "g-r0").mkdir(parents=True)
    (tmp_path / "runs" / "g-r0" / "run_meta.json").write_text("{}")
    with pytest.raises(ProfileError, match=r"^the engine died$"), real_runs.keeping(store, tmp_path / "runs"):
        raise ProfileError("the engine died")
