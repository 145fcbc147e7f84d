"""Verdicts on histories whose truth is known: planted steps, noise, changes of subject, too little data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gst_assets.analysis.change_points import RegressionReport, SeriesVerdict, judge_history, judge_series, noise_floor
from gst_assets.analysis.history import read_history, write_history
from gst_assets.analysis.regression_report import summary, write_regression
from gst_assets.contracts.store import ArtifactStore
from gst_assets.scenario import Regression as Rule
from gst_assets.testing.histories import Night, noisy, values, write_nights

RULE = Rule()


def judged(root: Path, nights: Sequence[Night], rule: Rule = RULE) -> RegressionReport:
    write_nights(root, nights)
    return judge_history(read_history(ArtifactStore(root), "smoke"), rule)


def series(report: RegressionReport, side: str, metric: str = "itl", statistic: str = "p50") -> SeriesVerdict:
    return next(one for one in report.series if (one.side, one.metric, one.statistic) == (side, metric, statistic))


def test_a_slower_engine_is_a_regression_and_names_the_night(tmp_path: Path) -> None:
    report = judged(tmp_path, noisy(24, seed=1, step_at=18, step=0.2))
    assert report.verdict == "regression"
    engine = series(report, "engine")
    assert engine.verdict == "regression" and engine.change is not None
    assert engine.change.night == 18
    assert engine.change.effect == pytest.approx(0.2, abs=0.05)
    points = report.change_points
    row = points[(points["side"] == "engine") & (points["metric"] == "itl") & (points["statistic"] == "p50")].iloc[0]
    assert row["real_change"] == pytest.approx(0.2, abs=0.05)
    assert row["sim_change"] == 0


def test_a_faster_engine_is_an_improvement_of_the_engine(tmp_path: Path) -> None:
    report = judged(tmp_path, noisy(24, seed=2, step_at=18, step=-0.2))
    assert {one.verdict for one in report.series if one.side == "engine"} == {"improvement"}


def test_a_simulation_that_moved_is_told_as_fidelity_not_engine(tmp_path: Path) -> None:
    nights = noisy(24, seed=3)
    nights = [replace(night, sim=values(0.97 * 1.15)) if number >= 18 else night for number, night in enumerate(nights)]
    report = judged(tmp_path, nights)
    assert {one.verdict for one in report.series if one.side == "engine"} == {"ok"}
    assert series(report, "fidelity").verdict == "regression"
    assert "error -3" in series(report, "fidelity").reason or "error -2" in series(report, "fidelity").reason


def test_an_error_that_changes_its_sign_is_only_suspicious(tmp_path: Path) -> None:
    nights = [
        Night(one.real, values(0.9 if number < 18 else 1.1))
        for number, one in enumerate(noisy(24, seed=4, sigma=0.005))
    ]
    assert series(judged(tmp_path, nights), "fidelity").verdict == "suspicious"


def test_noise_alone_is_ok(tmp_path: Path) -> None:
    assert judged(tmp_path, noisy(40, seed=5)).verdict == "ok"


def test_a_step_is_suspicious_until_it_is_confirmed() -> None:
    rng = np.random.default_rng(6)
    line = np.concatenate([rng.normal(1, 0.01, 20), rng.normal(1.2, 0.01, 3)])
    verdicts = [judge_series("engine", "itl", "p50", line[: 20 + k], RULE).verdict for k in range(4)]
    assert verdicts[0] == "ok"
    assert verdicts[2] == "suspicious"
    assert verdicts[3] == "regression"


def test_a_step_within_the_noise_is_never_more_than_suspicious() -> None:
    rng = np.random.default_rng(7)
    line = np.concatenate([rng.normal(1, 0.2, 60), rng.normal(1.12, 0.2, 14)])
    assert judge_series("engine", "itl", "p50", line, RULE).verdict != "regression"


def test_an_old_change_is_the_new_baseline(tmp_path: Path) -> None:
    report = judged(tmp_path, noisy(40, seed=8, step_at=15, step=0.3))
    assert report.verdict == "ok"
    assert len(report.change_points) > 0


@pytest.mark.parametrize("count", [0, 1, 7])
def test_few_nights_are_insufficient(tmp_path: Path, count: int) -> None:
    assert judged(tmp_path, noisy(count, seed=9)).verdict == "insufficient data"


def test_nights_with_too_few_samples_are_not_judged(tmp_path: Path) -> None:
    report = judged(tmp_path, [replace(night, num_samples=50) for night in noisy(12, seed=10)])
    assert series(report, "engine", statistic="p50").verdict == "ok"
    assert series(report, "engine", statistic="p90").verdict == "insufficient data"
    assert "12 more had too few samples" in series(report, "engine", statistic="p90").reason


def test_nothing_is_compared_across_a_change_of_settings_and_it_is_marked(tmp_path: Path) -> None:
    slow = [replace(night, settings={"max_num_seqs": 64}) for night in noisy(12, seed=11, step_at=0, step=0.5)]
    report = judged(tmp_path, [*noisy(12, seed=12), *slow])
    assert report.verdict == "ok"
    assert len(report.nights) == 12
    assert report.marks["what"].tolist() == ["engine_settings_sha256"]
    assert report.marks["breaks"].tolist() == [True]


def test_versions_are_marked_and_the_line_goes_on(tmp_path: Path) -> None:
    newer = [replace(night, settings={"engine_version": "0.33.0"}) for night in noisy(12, seed=13, step_at=0, step=0.3)]
    report = judged(tmp_path, [*noisy(12, seed=14), *newer])
    assert report.verdict == "regression"
    assert report.marks[["what", "before", "after", "breaks"]].values.tolist() == [
        ["engine_version", "0.32.0", "0.33.0", False]
    ]
    assert "engine_version | 0.32.0 | 0.33.0" in summary(report, [])


def test_the_noise_floor_is_the_spread_of_a_night() -> None:
    values_ = np.random.default_rng(15).normal(100, 4, 2000)
    assert noise_floor(values_, []) == pytest.approx(0.04, rel=0.1)


def test_the_directory_depends_on_history_and_rule_only(tmp_path: Path) -> None:
    report = judged(tmp_path / "root", noisy(24, seed=16, step_at=18, step=0.2))
    (tmp_path / "history").mkdir()
    meta = write_history(report.history, tmp_path / "history")
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_regression(report, meta, tmp_path / name)
        written.append(
            {
                str(file.relative_to(tmp_path / name)): file.read_bytes()
                for file in (tmp_path / name).rglob("*")
                if file.is_file()
            }
        )
    assert written[0] == written[1]
    assert {"summary.md", "figs/engine_latency.png", "figs/fidelity.png", "tables/regression_verdicts.csv"} <= set(
        written[0]
    )


def test_an_empty_history_still_gives_a_report(tmp_path: Path) -> None:
    report = judged(tmp_path, [])
    (tmp_path / "history").mkdir()
    meta = write_history(report.history, tmp_path / "history")
    (tmp_path / "report").mkdir()
    assert write_regression(report, meta, tmp_path / "report").verdict == "insufficient data"


def test_detection_and_false_alarms_on_seeded_noise() -> None:
    """A quick form of benchmarks/regression_detection.py: 2 % noise a night, 60 histories each."""

    def outcomes(step: float) -> list[str]:
        found = []
        for seed in range(60):
            rng = np.random.default_rng(1000 + seed)
            line = rng.normal(1, 0.02, 30)
            line[24:] *= 1 + step
            found.append(judge_series("engine", "itl", "p50", line, RULE).verdict)
        return found

    assert outcomes(0.0).count("regression") <= 1
    assert outcomes(0.10).count("regression") >= 57
    assert outcomes(-0.10).count("improvement") >= 57
