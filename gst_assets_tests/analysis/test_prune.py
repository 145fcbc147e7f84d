"""What pruning removes, and all that it leaves: what pointers, the history, and unfinished work need."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gst_assets import cli
from gst_assets.analysis.history import read_history, write_history
from gst_assets.analysis.prune import described, prune
from gst_assets.contracts.pointers import COMPARISON, REAL_RUNS, VIDUR_RUNS, refer
from gst_assets.contracts.store import ArtifactStore, Kind, directory_digests
from gst_assets.environment import ROOT_VARIABLE
from gst_assets.errors import ArtifactError, ContractError
from gst_assets.scenario import load_scenario
from gst_assets.testing.histories import noisy, write_night
from gst_assets_tests.contracts.faults import CRASHED, Faults, injected

PLAIN, OTHER = load_scenario("smoke"), load_scenario("smoke", ["replay.repeats=1"])
NIGHTS = 6


def commit(store: ArtifactStore, kind: Kind, name: str, workload: str = "wl-0") -> str:
    with store.stage(kind, name) as staging:
        (staging.path / "data.csv").write_text(name)
        meta = {"sha256": staging.digests(), "workload_id": workload}
        (staging.path / kind.meta_name).write_text(json.dumps(meta))
        staging.commit(replace=kind is Kind.PROFILE)
    return name


def night(store: ArtifactStore, number: int, *, shared: bool = False, workload: str = "wl-0") -> str:
    """A comparison of a night, its runs and its pointers; the first was asked for plainly, the others with an
    override."""
    real = "recorded-r0" if shared else commit(store, Kind.REAL_RUN, f"night{number}-r0", workload)
    sim = commit(store, Kind.VIDUR_RUN, f"night{number}-kernels", workload)
    seed = commit(store, Kind.VIDUR_RUN, f"night{number}-kernels-seed2", workload)
    compared = {
        "real_run_dir": real, "real_run_dirs": [f"/moved/since/{real}"], "sim_run_dir": sim,
        "sim_run_dirs": {"kernels": str(store.root / "vidur_runs" / sim)}, "workload_id": workload,
        "seed_run_dirs": {"kernels": [str(store.root / "vidur_runs" / seed)]},
    }  # fmt: skip
    made = replace(noisy(NIGHTS, seed=1)[number], meta=compared)
    name = write_night(store.root, "smoke", number, made)
    asked = PLAIN if number == 0 else OTHER
    refer(store, asked, REAL_RUNS, [(Kind.REAL_RUN, real)], run_ids=[real])
    refer(
        store,
        asked,
        VIDUR_RUNS,
        [(Kind.VIDUR_RUN, one) for one in (sim, seed)],
        run_ids={"kernels": sim},
        seed_run_ids={"kernels": [seed]},
    )
    refer(store, asked, COMPARISON, [(Kind.COMPARISON, name)], comparison_id=name)
    return name


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Six nights: number 0 plain, number 1 of another workload, number 2 of a run that number 5 compared again; and
    what is none of theirs."""
    store = ArtifactStore(tmp_path / "root")
    for workload in ("wl-0", "wl-1", "wl-unused"):
        commit(store, Kind.WORKLOAD, workload)
    commit(store, Kind.REAL_RUN, "recorded-r0")
    for number in range(NIGHTS):
        night(store, number, shared=number in (2, 5), workload="wl-1" if number == 1 else "wl-0")
    commit(store, Kind.REAL_RUN, "not-compared-yet")
    commit(store, Kind.PROFILE, "cpu/tiny")
    commit(store, Kind.SWEEP, "smoke-sweep")
    (store.root / "vidur_profiling" / "cpu" / ".next.partial").mkdir()
    (store.root / "vidur_profiling" / "cpu" / ".next.partial" / "round-0.npz").write_text("measured")
    return store


def history(store: ArtifactStore, area: Path) -> dict[str, bytes]:
    area.mkdir(parents=True)
    found = read_history(store, "smoke")
    assert found.gone == ()
    write_history(found, area)
    return {file.name: file.read_bytes() for file in area.iterdir()}


def everything(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and ".staging" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("made_before", [False, True])
def test_what_only_old_comparisons_needed_goes_and_the_history_stays_to_the_byte(
    store: ArtifactStore, tmp_path: Path, made_before: bool
) -> None:
    if made_before:
        with store.stage(Kind.HISTORY, "smoke") as staging:
            write_history(read_history(store, "smoke"), staging.path)
            staging.commit(replace=True)
    before, ids = history(store, tmp_path / "before"), store.list(Kind.COMPARISON)
    done = prune(store, 2)
    # The two newest, and the newest plain one; so of their runs, and of that which number 5 shares with number 2.
    assert store.list(Kind.COMPARISON) == [ids[0], ids[4], ids[5]] and done.condensed == ids[1:4]
    assert store.list(Kind.REAL_RUN) == ["night0-r0", "night4-r0", "not-compared-yet", "recorded-r0"]
    stay = [f"night{number}-kernels{seed}" for number in (0, 4, 5) for seed in ("", "-seed2")]
    assert store.list(Kind.VIDUR_RUN) == stay
    assert store.list(Kind.WORKLOAD) == ["wl-0", "wl-unused"]
    assert store.list(Kind.PROFILE) == ["cpu/tiny"] and store.list(Kind.SWEEP) == ["smoke-sweep"]
    assert (store.root / "vidur_profiling" / "cpu" / ".next.partial" / "round-0.npz").read_text() == "measured"
    assert store.list(Kind.NIGHT) == ids[1:4]
    assert done.kept == {Kind.REAL_RUN: 4, Kind.VIDUR_RUN: 6, Kind.WORKLOAD: 2, Kind.COMPARISON: 3}
    assert done.freed_bytes > 3000
    for scenario, slot in (("smoke", "real_runs"), ("smoke", "vidur_runs")):
        for _, value in store.pointers(scenario, slot):
            for name in value["sealed"]:
                kind, _, artifact_id = name.partition("/")
                assert store.has(Kind(kind), artifact_id), name
    assert history(store, tmp_path / "after") == before
    again = prune(store, 2)
    assert (again.condensed, again.removed, again.pointers) == ([], [], [])
    lines = described(done, store, dry_run=False)
    assert lines[0] == f"gone: comparisons/{ids[1]}, except its night" and "gone: workloads/wl-1" in lines
    assert lines[-1].endswith(
        "4 real_runs, 6 vidur_runs, 2 workloads, 3 comparisons stay, and every night of the history"
    )


def test_a_dry_run_says_the_same_and_changes_nothing(store: ArtifactStore) -> None:
    before = everything(store.root)
    dry = prune(store, 2, dry_run=True)
    assert everything(store.root) == before
    assert dry == prune(store, 2) and dry.condensed


def test_ended_at_any_moment_the_history_is_the_same_and_the_next_goes_on(store: ArtifactStore, tmp_path: Path) -> None:
    before, whole = history(store, tmp_path / "before"), prune(store, 1, dry_run=True)
    times = 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                with injected(Faults(200 + 61 * times)):
                    prune(store, 1)
            finally:
                os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert history(store, tmp_path / str(times)) == before
        if ended != CRASHED:
            break
        times += 1
    assert times > 5
    prune(store, 1)
    assert store.list(Kind.NIGHT) == whole.condensed
    assert not {one for one in whole.removed if store.has(*one)}


def test_nothing_goes_where_something_cannot_be_understood(store: ArtifactStore) -> None:
    broken, other, *_ = (store.path(Kind.COMPARISON, name) for name in store.list(Kind.COMPARISON)[1:])
    meta = broken / "run_meta.json"
    kept = meta.read_text()
    before = everything(store.root)
    for text, error in (("{", ContractError), ("{}", ContractError)):
        meta.write_text(text)
        with pytest.raises(error, match=str(meta)):
            prune(store, 1)
        meta.write_text(kept)
    with pytest.raises(ArtifactError, match=r"keep 0: expected 1 or more"):
        prune(store, 0)
    assert everything(store.root) == before
    # An edited verdict is not made into a night.
    meta.write_text(kept.replace('"verdict": "pass"', '"verdict": "fail"'))
    with pytest.raises(ArtifactError, match=rf"{meta}: changed after it was written"):
        prune(store, 1)
    assert store.list(Kind.NIGHT) == [] and other.is_dir()


def test_an_edited_night_is_refused(store: ArtifactStore) -> None:
    name = prune(store, 1).condensed[0]
    path = store.open(Kind.NIGHT, name) / "comparison.json"
    path.write_text(path.read_text().replace('"verdict": "pass"', '"verdict": "fail"'))
    with pytest.raises(ArtifactError, match=r"comparison\.json: content differs from the digest in night_meta\.json"):
        read_history(store, "smoke")
    meta = path.parent / "night_meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"sha256": directory_digests(path.parent, meta.name)}))
    with pytest.raises(ArtifactError, match=r"comparison\.json: changed after it was written"):
        read_history(store, "smoke")


def test_what_the_newest_comparisons_compared_stays_without_any_pointer(store: ArtifactStore) -> None:
    """The pointers were lost: the comparisons say themselves what they need."""
    shutil.rmtree(store.root / "current")
    prune(store, 2)
    assert store.list(Kind.REAL_RUN) == ["night4-r0", "not-compared-yet", "recorded-r0"]
    stay = [f"night{number}-kernels{seed}" for number in (4, 5) for seed in ("", "-seed2")]
    assert store.list(Kind.VIDUR_RUN) == stay


def test_the_command_says_what_goes_and_what_stays(store: ArtifactStore) -> None:
    def gst(*arguments: str) -> Result:
        return CliRunner().invoke(cli.gst, arguments, env={ROOT_VARIABLE: str(store.root)})

    before = everything(store.root)
    dry = gst("prune", "--keep", "2", "--dry-run")
    assert dry.exit_code == 0 and everything(store.root) == before
    assert dry.stdout.splitlines()[-1].startswith(
        f"{store}: 3 comparisons, 9 runs and workloads, 5 pointers would go, "
    )
    done = gst("prune", "--keep", "2")
    assert done.stdout == dry.stdout.replace("would go", "gone") and len(store.list(Kind.COMPARISON)) == 3
    assert gst("prune").exit_code == gst("prune", "--keep", "0").exit_code == 2
