"""Which runs a comparison compares, through Dagster: those of its own run, else the newest that match; on a recorded
scenario, without an engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest

from gst_assets import latest
from gst_assets.assets.profiles import current_bundle
from gst_assets.contracts.documents import ComparisonMeta, read_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.definitions import defs
from gst_assets.errors import ArtifactError
from gst_assets.provenance import sha256_file
from gst_assets.scenario import load_scenario
from gst_assets_tests.assets.recorded_nights import write_profile

SCENARIO = "h100_8b_single"
CHAIN = (
    "key:prompts or key:trace_lengths or key:trace_intervals or key:workload_spec or key:real_request_metrics or"
    " key:real_token_metrics or key:vidur_profile or key:vidur_request_metrics or key:vidur_token_metrics"
)
REPORT = f"{CHAIN} or key:comparison_report"
SMALL = ["simulation.variants=[kernels]", "simulation.seeds=1"]
ONE, TWO = [*SMALL, "replay.repeats=1"], [*SMALL, "replay.repeats=2"]


class Platform:
    """An instance of Dagster and an artifact root."""

    def __init__(self, instance: dg.DagsterInstance, root: Path) -> None:
        self.instance, self.root = instance, root
        self.store = ArtifactStore(root)

    def run(
        self,
        selection: str,
        overrides: Sequence[str],
        after: Callable[[str], None] | None = None,
        parent: str | None = None,
        profiles: Path | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialize in this process. `after` is called after each step with its name; `parent` is the run that this
        one goes on with."""

        @dg.success_hook
        def tell(context: dg.HookContext) -> None:
            if after is not None:
                after(context.op.name)

        keys = dg.AssetSelection.from_string(selection).resolve(defs.resolve_asset_graph())
        job = dg.define_asset_job("again", dg.AssetSelection.assets(*keys), hooks={tell})
        assets = [one for one in defs.assets or () if isinstance(one, dg.AssetsDefinition)]
        resolved = dg.Definitions(assets=assets, jobs=[job], resources=defs.resources).resolve_job_def("again")
        return resolved.execute_in_process(
            partition_key=SCENARIO,
            instance=self.instance,
            raise_on_error=False,
            tags={"dagster/parent_run_id": parent, "dagster/root_run_id": parent} if parent else {},
            run_config={
                "resources": {
                    "artifacts": {"config": {"root": str(self.root)}},
                    "profiling_root": {"config": {"root": str(profiles or "")}},
                    "scenario": {"config": {"overrides": list(overrides)}},
                }
            },
        )

    def compared(self, comparison_id: str) -> tuple[int, list[str], list[str]]:
        """Repeats and variants of a comparison, and the overrides that its simulations were made with."""
        path = self.store.open(Kind.COMPARISON, comparison_id) / Kind.COMPARISON.meta_name
        meta = read_document(ComparisonMeta, path)
        made = {
            tuple(json.loads((Path(run) / "run_meta.json").read_text())["hydra"]["overrides"])
            for run in meta.sim_run_dirs.values()
        }
        (overrides,) = made
        return len(meta.real_run_dirs), sorted(meta.sim_run_dirs), list(overrides)

    def newest(self, overrides: Sequence[str] = ()) -> tuple[str, str]:
        directory = latest.newest(SCENARIO, overrides)
        return directory.name, latest.difference(directory, SCENARIO, overrides)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(tmp_path / "root"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance, tmp_path / "root")


def made(result: dg.ExecuteInProcessResult) -> str:
    """The comparison that a run made."""
    assert result.success
    (event,) = [one for one in result.get_asset_materialization_events() if one.asset_key.path == ["comparison_report"]]
    told = event.step_materialization_data.materialization.metadata["artifacts"].value
    assert isinstance(told, dict)
    return str(told["comparison_id"])


def test_an_override_run_then_a_plain_one_then_the_latest(platform: Platform) -> None:
    """Also: a report alone, after each; the newest removed; a verdict edited."""
    overridden = made(platform.run(REPORT, ONE))
    name, differs = platform.newest()
    assert name == overridden and "built with replay.repeats = 1, but scenario h100_8b_single now asks for 5" in differs
    assert platform.newest(ONE) == (overridden, "")
    plain = made(platform.run(REPORT, SMALL[:1]))
    later = made(platform.run(REPORT, ONE))
    assert platform.newest(SMALL[:1]) == (plain, "") and platform.newest(ONE) == (later, "")
    assert platform.compared(plain)[0] == 5 and platform.compared(later)[0] == 1
    # The report alone takes the runs that match it, not the last ones.
    alone = made(platform.run("key:comparison_report", SMALL[:1]))
    assert platform.compared(alone) == platform.compared(plain)
    refused = platform.run("key:comparison_report", TWO)
    assert not refused.success
    # The newest is removed: the one before. And of the runs too.
    shutil.rmtree(platform.root / "comparisons" / alone)
    assert platform.newest(SMALL[:1]) == (plain, "")
    meta = platform.root / "comparisons" / plain / "run_meta.json"
    verdict = json.loads(meta.read_text())["verdict"]
    meta.write_text(meta.read_text().replace(f'"verdict": "{verdict}"', '"verdict": "pass"'))
    with pytest.raises(Exception, match=f"{meta}: changed after it was written"):
        platform.newest(SMALL[:1])


def test_two_runs_of_one_partition_at_the_same_time_never_mix(platform: Platform) -> None:
    """The second runs from its first to its last step after the first has simulated, and before it compares."""
    others: list[str] = []

    def meanwhile(step: str) -> None:
        if step == "vidur_metrics" and not others:
            others.append("")
            others[0] = made(platform.run(REPORT, TWO))

    first = made(platform.run(REPORT, ONE, after=meanwhile))
    assert platform.compared(first) == (1, ["kernels"], ONE)
    assert platform.compared(others[0]) == (2, ["kernels"], TWO)
    assert platform.store.list(Kind.COMPARISON) == sorted([first, others[0]])


def test_a_run_that_goes_on_with_another_compares_what_that_one_made(platform: Platform) -> None:
    """Re-execution from failure: the steps that succeeded belong to the run before, whatever was made since."""
    begun = platform.run(CHAIN, ONE)
    platform.run(CHAIN, ONE)
    again = made(platform.run("key:comparison_report", ONE, parent=begun.run_id))
    (event,) = [
        one for one in begun.get_asset_materialization_events() if one.asset_key.path == ["vidur_request_metrics"]
    ]
    told = event.step_materialization_data.materialization.metadata["artifacts"].value
    meta = read_document(ComparisonMeta, platform.store.open(Kind.COMPARISON, again) / "run_meta.json")
    assert isinstance(told, dict)
    assert Path(meta.sim_run_dir).name == told["run_ids"]["kernels"]


def test_a_profile_that_is_replaced_under_a_run_stops_it(platform: Platform, tmp_path: Path) -> None:
    root = write_profile(tmp_path / "profiles")
    meta = root / "h100" / "qwen3-8b" / "run_meta.json"

    def meanwhile(step: str) -> None:
        if step == "measurements":
            meta.write_text(meta.read_text().replace('"run_id": "', '"run_id": "another-', 1))

    result = platform.run(CHAIN, SMALL, after=meanwhile, profiles=root)
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    assert failure.step_key == "vidur_metrics"
    message = failure.step_failure_data.error.cause.message  # type: ignore[union-attr]
    assert f"{meta}: of profile another-" in message and "another run replaced it meanwhile" in message


def test_an_edited_profile_in_the_artifact_root_is_refused(tmp_path: Path) -> None:
    """Measured here, so a pointer knows it; one that was put there, and was measured elsewhere, is as good as it
    was."""
    scenario, store = load_scenario("h100_8b_quarter", ["profile.root=null"]), ArtifactStore(tmp_path)
    write_profile(tmp_path / "vidur_profiling")
    meta = tmp_path / "vidur_profiling" / "h100" / "qwen3-8b" / "run_meta.json"
    run_id = current_bundle(store, scenario, None).meta.run_id
    for known, refused in (("another", False), (run_id, True)):
        store.set_current("vidur_profile.h100", "qwen3-8b", {"run_id": known, "meta_sha256": sha256_file(meta)})
        kept = meta.read_text()
        meta.write_text(kept + " ")
        if refused:
            with pytest.raises(ArtifactError, match=rf"^{meta}: changed after it was written"):
                current_bundle(store, scenario, None)
        meta.write_text(kept)
        assert current_bundle(store, scenario, None).meta.run_id == run_id
