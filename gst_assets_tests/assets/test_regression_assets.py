"""History, regression report, self-check, checks and messages through Dagster, on recorded runs and a made-up profile
(no engine)."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.definitions import defs
from gst_assets.provenance import sha256_file
from gst_assets.testing.histories import noisy, write_nights
from gst_assets_tests.assets.recorded_nights import SCENARIO, materialize, write_profile

LINE = "key:comparison_history or key:regression_report"
Checks = dict[str, dg.AssetCheckEvaluation]
Whole = tuple[Path, Checks, dg.ExecuteInProcessResult]


def checks(result: dg.ExecuteInProcessResult) -> Checks:
    found = [
        event.asset_check_evaluation_data
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]
    return {f"{one.asset_key.to_user_string()}/{one.check_name}": one for one in found}


def text(check: dg.AssetCheckEvaluation, key: str) -> str:
    return str(check.metadata[key].value)


def content(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def error(result: dg.ExecuteInProcessResult) -> str:
    failure = next(event for event in result.all_events if event.is_step_failure)
    return failure.event_specific_data.error.cause.message  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_profile(tmp_path_factory.mktemp("profiles"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, profiles: Path) -> Whole:
    """Artifact root after every asset was materialized once, every check's evaluation, and the run."""
    root = tmp_path_factory.mktemp("platform") / "artifacts"
    result = materialize(root, profiles, "*")
    assert result.success
    return root, checks(result), result


def test_every_declared_check_was_evaluated(whole: Whole) -> None:
    declared = {key.to_user_string().replace(":", "/") for key in defs.resolve_asset_graph().asset_check_keys}
    # Nothing is searched or swept in this scenario, and a check of nothing is not reported as passed.
    assert declared ^ set(whole[1]) == {"capacity/contract", "sweep/contract"}
    assert all(one.passed for name, one in whole[1].items() if name.endswith("/contract"))


def test_a_failing_check_says_why_and_shows_the_rows(whole: Whole) -> None:
    band, parity = whole[1]["comparison_report/fidelity_band"], whole[1]["comparison_report/parity"]
    assert not band.passed and band.severity is dg.AssetCheckSeverity.ERROR, "outside the band, which is no warning"
    assert text(band, "judgement") == "outside the band" and "is too slow in all six cells" in text(band, "answer")
    assert text(band, "why").startswith(
        "outside the band: 6 of 6 judged cells are not shown to be inside the 5% band: 4 fail, 2 inconclusive"
    )
    assert "| itl | p50 |" in text(band, "rows")
    assert text(band, "first_row").startswith("metric e2e, statistic p90, real_ns 24"), "the gravest"
    assert band.partition == SCENARIO
    assert text(band, "report").endswith("summary.md")
    (comparison,) = ArtifactStore(whole[0]).list(Kind.COMPARISON)
    assert text(band, "open_report") == f"http://127.0.0.1:3001/comparisons/{comparison}/report.html"
    assert parity.passed, "the profile was measured with the engine's settings"


def test_settings_of_the_profile_that_differ_from_the_engines_fail_their_check(tmp_path: Path) -> None:
    """The operators alone may come from an engine that schedules synchronously."""
    profiles = write_profile(tmp_path / "profiles", async_scheduling=False)
    result = materialize(
        tmp_path / "artifacts", profiles, "*comparison_report", overrides=["simulation.variants=[kernels]"]
    )
    assert result.success
    parity = checks(result)["comparison_report/parity"]
    assert not parity.passed and parity.severity is dg.AssetCheckSeverity.WARN
    assert "| async_scheduling | True | False |" in text(parity, "rows")


def test_reports_embed_the_figure_of_the_verdict_and_say_where_the_others_are(whole: Whole) -> None:
    """Whatever is in metadata stays in Dagster's event log, night after night."""
    for asset, node, shown in (
        ("comparison_report", "comparison_report", "answer"),
        ("regression_report", "nightly_line", "engine_latency"),
    ):
        made = next(
            one for one in whole[2].asset_materializations_for_node(node) if one.asset_key == dg.AssetKey(asset)
        )
        embedded = [key for key, value in made.metadata.items() if "data:image/png;base64" in str(value.value)]
        assert embedded == [shown]
        assert len(list(Path(str(made.metadata["more_figures"].value)).glob("*.png"))) > 1
    (made,) = whole[2].asset_materializations_for_node("comparison_report")
    headline = str(made.metadata["headline"].value)
    assert "| 1,245 | 1," in headline and len(headline) < 1000, "the UI folds away longer Markdown"


def test_a_report_says_what_it_is_about_and_fits_the_page(whole: Whole) -> None:
    (made,) = whole[2].asset_materializations_for_node("comparison_report")
    facts = {name: made.metadata[name].value for name in ("scenario", "model", "hardware", "engine", "overrides")}
    assert facts == {
        "scenario": SCENARIO, "model": "qwen3-8b", "hardware": "h100 (H100)", "engine": "recorded", "overrides": "none",
    }  # fmt: skip
    assert str(made.metadata["about"].value).startswith("Qwen3-8B on one NVIDIA H100")
    for event in whole[2].get_asset_materialization_events():
        # Longer ones lie over their values in a window of 1,280 pixels (Dagster 1.13).
        metadata = event.step_materialization_data.materialization.metadata
        assert [key for key in metadata if len(key) > 30 and " " not in key] == []
    numbers = {key for key, value in made.metadata.items() if isinstance(value, dg.FloatMetadataValue)}
    assert {"itl_p50_error_percent", "itl_p50_real_ms"} <= numbers and len(numbers) == 12


def test_history_and_report_come_back_identical_without_the_database(whole: Whole, profiles: Path) -> None:
    """Each in-process run here has a database of its own; only the artifacts stay."""
    store = ArtifactStore(whole[0])
    directories = [store.path(Kind.HISTORY, SCENARIO), store.path(Kind.REGRESSION, SCENARIO)]
    before = [content(directory) for directory in directories]
    for directory in directories:
        for file in sorted(directory.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        directory.rmdir()
    assert materialize(whole[0], profiles, LINE).success
    assert [content(directory) for directory in directories] == before


def test_a_regression_in_the_history_fails_its_check_and_names_the_series(tmp_path: Path, profiles: Path) -> None:
    write_nights(tmp_path, noisy(24, seed=1, step_at=18, step=0.2), SCENARIO)
    result = materialize(tmp_path, profiles, LINE)
    assert result.success
    check = checks(result)["regression_report/regression"]
    assert not check.passed and check.severity is dg.AssetCheckSeverity.WARN
    assert "REGRESSION" in text(check, "why") and "engine ITL P50" in text(check, "told_as")
    assert "| engine | itl | p50 |" in text(check, "rows")


def test_a_night_that_vanishes_fails_its_check_once(tmp_path: Path, profiles: Path) -> None:
    ids = write_nights(tmp_path, noisy(3, seed=1), SCENARIO)
    assert checks(materialize(tmp_path, profiles, LINE))["comparison_history/no_night_lost"].passed
    shutil.rmtree(tmp_path / "comparisons" / ids[1])
    for lost in (True, False):
        check = checks(materialize(tmp_path, profiles, LINE))["comparison_history/no_night_lost"]
        assert check.passed is not lost and check.severity is dg.AssetCheckSeverity.WARN
        assert not lost or f"1 comparisons that were there are no longer under comparisons/: {ids[1]}" in text(
            check, "why"
        )


def test_a_broken_table_fails_the_contract_check_with_its_rows_and_commits_nothing(
    tmp_path: Path, profiles: Path
) -> None:
    ids = write_nights(tmp_path, noisy(3, seed=2), SCENARIO)
    directory = tmp_path / "comparisons" / ids[1]
    table, meta = directory / "tables" / "latency_errors.csv", directory / "run_meta.json"
    before = sha256_file(table)
    table.write_text(table.read_text().replace(",pass", ",splendid", 1))
    meta.write_text(meta.read_text().replace(before, sha256_file(table)))
    result = materialize(tmp_path, profiles, LINE)
    assert not result.success
    check = checks(result)["comparison_history/contract"]
    assert not check.passed
    assert f"{ids[1]}/tables/latency_errors.csv: line 2, column verdict: found 'splendid'" in text(check, "violation")
    assert "| 0 | 'ttft' |" in text(check, "offending_rows")
    assert not (tmp_path / "history").exists()


def test_the_self_check_passes_and_names_the_row_that_changed(whole: Whole, profiles: Path) -> None:
    root = whole[0]
    assert whole[1]["simulation_self_check/same_bytes"].passed
    pointer = ArtifactStore(root).current(SCENARIO, "vidur_runs")
    assert pointer is not None
    directory = root / "vidur_runs" / pointer["run_ids"]["calibrated"]
    table, meta = directory / "iterations.csv", directory / "run_meta.json"
    kept = table.read_bytes(), meta.read_bytes()
    rows = table.read_text().splitlines()
    cells = rows[8].split(",")
    changed = str(int(cells[2]) + 1)
    rows[8] = ",".join([*cells[:2], changed, *cells[3:]])
    before = sha256_file(table)
    table.write_text("\n".join(rows) + "\n")
    meta.write_text(meta.read_text().replace(before, sha256_file(table)))
    try:
        refused = materialize(root, profiles, "simulation_self_check")
        assert f"{meta}: changed after it was written" in error(refused)
        # As if written so: the pointer of an earlier version knows no digest of the metadata.
        ArtifactStore(root).set_current(
            SCENARIO, "vidur_runs", {key: pointer[key] for key in pointer if key != "sealed"}
        )
        result = materialize(root, profiles, "simulation_self_check")
    finally:
        table.write_bytes(kept[0])
        meta.write_bytes(kept[1])
        ArtifactStore(root).set_current(SCENARIO, "vidur_runs", pointer)
    assert not result.success
    check = checks(result)["simulation_self_check/same_bytes"]
    assert not check.passed and check.blocking
    assert (
        "iterations.csv: simulating the same inputs again gives other bytes; first difference: row 7 (iteration_id"
        f" {cells[0]}), column completion_time_ns: {changed} before, {cells[2]} now" in text(check, "why")
    )


def test_the_self_check_refuses_other_inputs(whole: Whole, tmp_path: Path) -> None:
    result = materialize(whole[0], write_profile(tmp_path / "other", scale=1.1), "simulation_self_check")
    assert not result.success
    assert "its profile changed since" in error(result)
