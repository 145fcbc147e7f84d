from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from gst_assets.analysis.comparison import Comparison, compare
from gst_assets.analysis.figures import Figure
from gst_assets.analysis.gate import COMPARED_SETTINGS
from gst_assets.analysis.report import comparison_meta, verdict_sentence, write_comparison
from gst_assets.analysis.report_content import Items, content
from gst_assets.analysis.runs import load_run
from gst_assets.contracts.documents import ComparisonMeta, read_document, write_document
from gst_assets.contracts.store import Kind, directory_digests, open_directory
from gst_assets.contracts.tables import (
    AlignmentCounts,
    ErrorGroups,
    LatencyErrors,
    PairedErrors,
    RepeatLatencies,
    RequestErrors,
    RunTotals,
    SettingsParity,
    read_table,
)
from gst_assets.scenario import Comparison as Bands
from gst_assets_tests.analysis.run_directories import (
    ENGINE_SETTINGS,
    MS,
    Recipe,
    Request,
    steady,
    write_real,
    write_simulation,
)


def _comparison(folder: Path, reals: list[Recipe], sims: dict[str, Recipe]) -> Comparison:
    real = [load_run(write_real(folder / f"r{i}", recipe), "real") for i, recipe in enumerate(reals)]
    sim = {name: load_run(write_simulation(folder / name, recipe, name), "vidur") for name, recipe in sims.items()}
    return compare(real, sim, bands=Bands(), calibration_sha256=set())


def _write(comparison: Comparison, folder: Path) -> str:
    folder.mkdir()
    write_comparison(comparison, folder)
    return (folder / "summary.md").read_text()


@pytest.fixture
def usual(tmp_path: Path) -> Comparison:
    """Three repeats; kernels at 40 % of the latencies, calibrated 4 % above them."""
    real = steady(120, 4)
    return _comparison(
        tmp_path,
        [real, real.scaled(1.02), real.scaled(0.99)],
        {"kernels": real.scaled(0.4), "calibrated": real.scaled(1.04)},
    )


def test_the_verdict_comes_first_then_the_figure_and_the_table(usual: Comparison, tmp_path: Path) -> None:
    text = _write(usual, tmp_path / "out")
    lines = [line for line in text.splitlines() if line]
    assert lines[0] == "# Vidur against vllm: qwen3-tiny on cpu, scenario smoke"
    # Repeats 0, 2 and -1 % apart: t(2) sqrt(pi / 2) s / sqrt(3) = 4.8 % either way.
    assert lines[1] == (
        "**WARN**: Vidur `calibrated` is within 10 % in all 6 required cells, by 95 % intervals; largest error +4.0 % [-0.8, +9.0] at TTFT P50 "
        "(real repeats differ by 3.0 % there). For comparison, `kernels`: largest error -60.0 % at TTFT P50."
    )
    assert lines[2] == "![Errors and their intervals](figs/errors.png)"
    header = "| latency [ms] | real (median of 3) | real spread | kernels | error | calibrated | error | 95 % interval | verdict | error / spread | samples |"
    assert header in lines
    row = "| TTFT P50 | 20.0 | 3.0 % | 8.00 | -60.0 % | 20.8 | +4.0 % | [-0.8, +9.0] | **warn** | 1.3 | 120 |"
    assert row in lines
    assert "| TTFT P99 † | 20.0 |" in text and "† Fewer than 20 requests or ten samples beyond the percentile" in text
    assert (
        len(
            [
                line
                for line in lines
                if re.match(r"\| (TTFT|ITL|TPOT|E2E) (mean|P50|P90|P95|P99) († )?\| [\d.,]+ \|", line)
            ]
        )
        == 20
    )


def test_the_page_holds_everything_and_asks_for_nothing(usual: Comparison, tmp_path: Path) -> None:
    _write(usual, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        page.index('class="verdict warn"')
        < page.index("<figure>")
        < page.index("<table>")
        < page.index("Method and limitations")
    )
    assert (
        page.count('src="data:image/png;base64,')
        == page.count("<img")
        == len(list((tmp_path / "out" / "figs").iterdir()))
    )
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(one.startswith(("data:", "tables/", "figs/", "report.html")) for one in sources)
    assert not re.search(r"https?://|@import|url\(|<script", page)
    assert "default-src 'none'" in page and "**" not in page and "`" not in page


def test_names_from_other_programs_are_shown_as_they_are(tmp_path: Path) -> None:
    real = steady(30, 2).with_meta(model="<img src=x onerror=alert(1)>")
    sim = steady(30, 2).with_meta(model="<img src=x onerror=alert(1)>")
    _write(_comparison(tmp_path, [real], {"calibrated": sim}), tmp_path / "out")
    assert "<img src=x" not in (tmp_path / "out" / "report.html").read_text()


def test_every_link_leads_to_a_file_and_every_file_is_listed(usual: Comparison, tmp_path: Path) -> None:
    text = _write(usual, tmp_path / "out")
    linked = set(re.findall(r"\]\(([^)]+)\)", text))
    there = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")} - {"summary.md"}
    assert linked == there
    assert text.count("![") == 8


def test_tables_read_back_through_the_contract(usual: Comparison, tmp_path: Path) -> None:
    _write(usual, tmp_path / "out")
    for model, rows in (
        (LatencyErrors, 60),
        (RepeatLatencies, 90),
        (RequestErrors, 720),
        (PairedErrors, 36),
        (ErrorGroups, 2 * 2 * 2),
        (RunTotals, 5),
        (AlignmentCounts, 6),
        (SettingsParity, 2 * len(COMPARED_SETTINGS)),
    ):
        assert len(read_table(model, tmp_path / "out" / "tables" / model.file_name())) == rows


def test_same_comparison_same_bytes(usual: Comparison, tmp_path: Path) -> None:
    _write(usual, tmp_path / "one")
    _write(usual, tmp_path / "two")
    assert directory_digests(tmp_path / "one", "-") == directory_digests(tmp_path / "two", "-")


def test_metadata_completes_the_directory(usual: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "cmp-1"
    _write(usual, out)
    meta = comparison_meta(
        usual, run_id="cmp-1", started_at=datetime.now(timezone.utc), sha256=directory_digests(out, "run_meta.json")
    )
    write_document(meta, out / "run_meta.json")
    open_directory(out, Kind.COMPARISON)
    found = read_document(ComparisonMeta, out / "run_meta.json")
    assert (found.run_type, found.verdict, found.headline_variant, found.marks) == ("compare", "warn", "calibrated", [])
    assert found.sim_run_dir == str(tmp_path / "calibrated") == found.sim_run_dirs["calibrated"]
    assert found.real_run_dirs == [str(tmp_path / f"r{i}") for i in range(3)]
    assert {
        f"{run}/{name}"
        for run in ("r0", "r1", "r2", "kernels", "calibrated")
        for name in ("request_metrics.csv", "run_meta.json")
    } <= set(found.inputs_sha256)


def _sentence(folder: Path, real: Recipe, sim: Recipe, **meta: Any) -> str:
    return verdict_sentence(_comparison(folder, [real.with_meta(**meta)], {"calibrated": sim}))


def test_sentences(tmp_path: Path) -> None:
    real = steady(100, 3)
    assert _sentence(tmp_path / "a", real, real.scaled(1.5)) == (
        "**FAIL**: Vidur `calibrated` is off by +50.0 % [+50.0, +50.0] at TTFT P50, beyond the 10 % band."
    )
    assert _sentence(tmp_path / "b", real, real.scaled(0.93)) == (
        "**WARN**: Vidur `calibrated` is within 10 % in all 6 required cells, by 95 % intervals; largest error -7.0 % [-7.0, -7.0] at TTFT P50."
    )
    assert _sentence(tmp_path / "c", real, real, degraded=True) == (
        "**WARN**: Vidur `calibrated` is within 5 % in all 6 required cells, by 95 % intervals; largest error +0.0 % [+0.0, +0.0] at TTFT P50. "
        "Not a pass, because the comparison is marked (below)."
    )
    assert _sentence(tmp_path / "d", steady(3, 2), steady(3, 2)) == (
        "**INSUFFICIENT**: too few compared requests (3) for a verdict; no required cell has 20 requests and ten samples beyond its percentile."
    )
    assert _sentence(tmp_path / "e", steady(20, 1), steady(20, 1)) == (
        "**INSUFFICIENT**: too few samples for a verdict on TTFT P90, E2E P90; the worst of the other 2 required cells is TTFT P50: pass, "
        "+0.0 % [+0.0, +0.0]."
    )


def _ended(recipe: Recipe, numbers: range, kept: int = 0, status: str = "ok") -> Recipe:
    """The requests of these numbers ended after `kept` tokens; what was asked for stays."""
    whole = recipe.requests
    ended = [replace(one, asked=len(one.token_ns), token_ns=one.token_ns[:kept], status=status) for one in whole]
    return Recipe([ended[i] if i in numbers else one for i, one in enumerate(whole)])


_WHOLE = steady(100, 3)


@pytest.mark.parametrize(
    ("real", "sim", "sentence", "caveat"),
    [
        (_ended(_WHOLE, range(97, 100), kept=2), _WHOLE, "**PASS**: ", "Note: real run r0: 3 of 100 requests stopped early"),
        (_ended(_WHOLE, range(90, 100), kept=2), _WHOLE, "**INSUFFICIENT**: ", "**Marked**: real run r0: 10 of 100 requests stopped early"),
        (_ended(steady(103, 3), range(100, 103), status="error"), steady(103, 3), "**PASS**: ", "Note: real run r0: 3 failed and 0 gave no token"),
        (_ended(steady(110, 3), range(100, 110)), steady(110, 3), "**WARN**: ", "**Marked**: real run r0: 0 failed and 10 gave no token"),
        (steady(1, 3), steady(1, 3), "**INSUFFICIENT**: too few compared requests (1) for a verdict; ", "one real repeat only"),
        (steady(1, 1), steady(1, 1), "**INSUFFICIENT**: too few compared requests (1) for a verdict; ", "ITL has no samples (requests of one token have no gap)"),
        (steady(100, 1), steady(100, 1), "**PASS**: Vidur `calibrated` is within 5 % in all 4 required cells", "ITL has no samples"),
        (_WHOLE, _WHOLE.scaled(1.04), "**PASS**: Vidur `calibrated` is within 5 % in all 6 required cells, by 95 % intervals; largest error +4.0 % [+4.0, +4.0]", "one real repeat"),
        (steady(100, 3, itl_ns=0), _WHOLE, "**FAIL**: the real ITL P50 is 0 and that of Vidur `calibrated` is 4.00 ms, so the error has no bound.", "one real repeat"),
        (
            steady(100, 3, step_ns=MS), steady(100, 3, step_ns=MS),
            "**INSUFFICIENT**: 100 requests, which depend on each other, hold too few independent samples for a verdict; ",
            "Too few independent samples to judge: TTFT P50, TTFT P90, ITL P50, ITL P90, E2E P50, E2E P90.",
        ),
    ],
    ids=[
        "few early stops", "many in one stretch", "few errors", "many without a token", "one request", "one request of one token", "one token each", "all equal",
        "no gaps in the real run", "one stretch",
    ],
)  # fmt: skip
def test_what_is_said_of_degenerate_runs(tmp_path: Path, real: Recipe, sim: Recipe, sentence: str, caveat: str) -> None:
    found = _comparison(tmp_path, [real], {"calibrated": sim})
    assert verdict_sentence(found).startswith(sentence)
    assert any(
        caveat in one
        for block in content(found, [Figure("f.png", "", "")])[:4]
        if isinstance(block, Items)
        for one in block.items
    )


def test_an_error_within_the_noise_is_said_to_be(tmp_path: Path) -> None:
    """Two repeats 33 % apart: nothing can be said of an error of 25 %, and the sentence says so."""
    real = steady(100, 3)
    found = _comparison(tmp_path, [real, real.scaled(1.4)], {"calibrated": real.scaled(1.5)})
    text = verdict_sentence(found)
    assert text.startswith(
        "**INCONCLUSIVE**: the data do not say whether Vidur `calibrated` keeps the 10 % band: +25.0 % ["
    )
    assert "at TTFT P50 (no more than the real repeats differ there: 33.3 %), whose interval straddles its edge" in text


def test_marks_notes_and_unjudged_cells_follow_the_verdict(tmp_path: Path) -> None:
    real = steady(30, 2).with_meta(degraded=True)
    sim = steady(30, 2).with_meta(simulated_settings={**ENGINE_SETTINGS, "block_size": 16})
    text = _write(_comparison(tmp_path, [real], {"calibrated": sim}), tmp_path / "out")
    head = text[: text.index("![")]
    assert "- **Marked**: setting block_size: engine 32, simulated with 16 (calibrated)." in head
    assert "- **Marked**: real run r0 is degraded, send lateness P99 0.9 ms." in head
    assert "- Too few samples to judge: TTFT P90, ITL P90, E2E P90." in head
    assert "- Note: one real repeat only" in head
    assert "| `block_size` | 32 | **16 (differs)** |" in text
    assert "| TTFT P50 | 20.0 | – |" in text


def test_early_stops_and_failures_are_counted_in_the_report(tmp_path: Path) -> None:
    real = Recipe(
        [Request(0, (5 * MS, 9 * MS), asked=4), Request(1, (), asked=4, status="error"), Request(2, (), asked=4)]
    )
    sim = Recipe([Request(i, tuple((5 + 4 * k) * MS for k in range(4))) for i in range(3)])
    text = _write(_comparison(tmp_path, [real], {"calibrated": sim}), tmp_path / "out")
    assert "| r0 | calibrated | 3 | 1 | 1 | 1 | 1 | 2 | 2 |" in text
    assert "1 failed and 1 gave no token, of 3 requests" in text
    assert "1 of 1 requests stopped early" in text


def test_one_token_a_request(tmp_path: Path) -> None:
    text = _write(_comparison(tmp_path, [steady(3, 1)], {"calibrated": steady(3, 1)}), tmp_path / "out")
    assert "| ITL P50 † | – | – | – | – | – | – | 0 |" in text
    assert (
        "ITL has no samples (requests of one token have no gap) and does not enter the verdict" in text
        or "INSUFFICIENT" in text
    )
    assert "ITL has no samples, so it has no figure." in text
    assert "nan" not in text
