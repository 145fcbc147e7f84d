from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets import latest
from gst_assets.analysis.compare import compare_directories
from gst_assets.contracts.open_store import open_store
from gst_assets.errors import ArtifactError, ScenarioError
from gst_assets_tests.analysis.run_directories import steady, write_real, write_simulation


def test_the_newest_report_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(tmp_path / "root"))
    with pytest.raises(ArtifactError, match="no comparison for scenario smoke"):
        latest.newest("smoke")
    out = tmp_path / "root" / "comparisons" / "cmp-1"
    compare_directories(
        [write_real(tmp_path / "r", steady(2, 2))], [write_simulation(tmp_path / "s", steady(2, 2))], out
    )
    open_store().set_current("smoke", "comparison", {"comparison_id": "cmp-1"})
    directory = latest.newest("smoke")
    note = latest.difference(directory, "smoke")
    latest.tell(directory)
    lines = capsys.readouterr().out.splitlines()
    # Its runs were not made with the scenario's settings.
    assert note.startswith("built with workload.prompts = None, but scenario smoke now asks for ")
    assert lines[0] == "Vidur against vllm: qwen3-tiny on cpu, scenario smoke"
    assert lines[-3:] == ["", f"report: {out / 'report.html'}", f"as text: {out / 'summary.md'}"]
    open_store().set_current("smoke", "comparison", {})
    with pytest.raises(ArtifactError, match=r"smoke/comparison/\d+-\w+\.json: key comparison_id: Field required"):
        latest.newest("smoke")
    with pytest.raises(ScenarioError, match="unknown scenario 'nosuch'"):
        latest.newest("nosuch")
    assert (out / "report.html").is_file() and (out / "summary.md").is_file()


def test_the_first_screen_is_plain_text_in_columns() -> None:
    """Columns in line, no Markdown mark, and nothing of what follows the first figure."""
    summary = (
        "# Title\n\nScenario: `smoke`\n\n**PASS**: `calibrated` is exact.\n\n| latency | error | verdict |\n| --- |"
        " ---: | ---: |\n| TTFT P50 | +1.1 % | pass |\n| E2E P90 | -12.1 % | cannot judge |\n\n- **one**"
        " remark\n\n![The figure](figs/answer.png)\n\n| more | tables |\n"
    )
    assert (
        latest.for_terminal(summary)
        == "Title\n\nScenario: smoke\n\nPASS: calibrated is exact.\n\nlatency     error       verdict\nTTFT P50   +1.1"
        " %          pass\nE2E P90   -12.1 %  cannot judge\n\n- one remark"
    )
