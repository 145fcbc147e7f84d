"""Imported results compare without a scenario, and the report says what could not be checked."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from gst_assets.cli import gst
from gst_assets_tests.importers import files
from gst_assets_tests.importers.files import MS, Played, played


def _gst(*words: str | Path) -> Result:
    return CliRunner().invoke(gst, [str(word) for word in words])


def _import(kind: str, path: Path, out: Path, *options: str) -> Path:
    result = _gst("import", kind, path, "--out", out, *options)
    assert result.exit_code == 0, result.output
    return out


def _report(out: Path, *runs: str | Path) -> str:
    result = _gst("compare", *runs, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "report.html").is_file()
    return (out / "summary.md").read_text()


def test_a_benchmark_of_a_server_against_three_simulators(tmp_path: Path) -> None:
    """One report, a column each, best first; ITL where both sides know it."""
    real = _import("vllm-bench", files.vllm_bench(tmp_path / "result.json", played(120)), tmp_path / "real")
    vidur = _import("vidur", files.vidur(tmp_path / "v", played(120, factor=0.5)), tmp_path / "vidur")
    blis = _import("blis", files.blis(tmp_path / "b.json", played(120, factor=1.02)), tmp_path / "blis")
    other = _import(
        "llmservingsim", files.llmservingsim_simulated(tmp_path / "sim.csv", played(120, factor=0.9)), tmp_path / "lss"
    )
    text = _report(tmp_path / "out", real, vidur, f"second={blis}", other)
    assert "| latency | 1. second | 2. llmservingsim | 3. vidur |" in text
    row = next(line for line in text.splitlines() if line.startswith("| TTFT P50 | +2.0 % (")).split(" | ")
    assert row[1].startswith("+2.0 % (+") and row[2].startswith("-10.0 % (-") and row[3].startswith("-50.0 % (-")
    itl = next(line for line in text.splitlines() if line.startswith("| ITL P50 | not available |"))
    assert itl.endswith("not available |") and "-10.0 %" in itl
    for told in (
        "tokens came over http, whose time is in every real latency and in no simulated one",
        "the engine's settings are not stated",
        "requests are joined by source_request_id",
        "hardware not stated",
        "Not every run states its workload: requests are joined as Checks says",
        "requested output lengths not stated: the produced ones stand in",
        "Imported from vidur, written by Vidur (fields as in 0.0.26)",
        "clock: monotonic (time.perf_counter() in vLLM's serve.py)",
        "llmservingsim: model is named meta/Tiny, that of the real run tiny; not checked that they are one",
    ):
        assert told in text, told
    assert "| `second` |" in text and "Vidur `second`" not in text


def test_both_definitions_of_llmservingsims_ttft_are_in_the_report(tmp_path: Path) -> None:
    """TTFT 500 ms from arrival, 400 from queueing (but for the first, which is queued at once); simulated 450."""
    requests = [Played(2000 * MS * i, tuple(2000 * MS * i + (500 + 10 * k) * MS for k in range(3))) for i in range(30)]
    simulated = [Played(one.arrival_ns, tuple(at - 50 * MS for at in one.token_ns), one.prompt) for one in requests]
    files.llmservingsim_real(tmp_path / "vllm" / "requests.jsonl", requests, waits_ms=[0, *[100] * 29])
    files.llmservingsim_simulated(tmp_path / "outputs" / "sim.csv", simulated)
    real = _import("llmservingsim", tmp_path / "vllm", tmp_path / "real", "--model", "meta/Tiny")
    sim = _import("llmservingsim", tmp_path / "outputs" / "sim.csv", tmp_path / "sim")
    text = _report(tmp_path / "out", real, sim)
    assert (
        "- Real run real, TTFT by both definitions, error of llmservingsim in brackets: P50 500.0 ms from arrival"
        " (-10.0 %), 400.0 ms from queueing (+12.5 %)" in text
    )
    assert _gst("import", "llmservingsim", tmp_path, "--out", tmp_path / "none").exit_code == 1


def test_requests_that_only_one_side_has_are_listed(tmp_path: Path) -> None:
    real = _import("vllm-bench", files.vllm_bench(tmp_path / "result.json", played(30)), tmp_path / "real")
    sim = _import("blis", files.blis(tmp_path / "b.json", played(24)), tmp_path / "sim")
    result = _gst("compare", real, sim, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "6 only in" in result.output and "(24, 25, 26, 27, 28, 29)" in result.output


def test_names_that_nobody_shares_are_joined_by_order(tmp_path: Path) -> None:
    """guidellm names its requests anew in every run: they are in order of arrival, which a simulation's are too."""
    real = _import("guidellm", files.guidellm(tmp_path / "benchmarks.json", played(30)), tmp_path / "real")
    sim = _import("vidur", files.vidur(tmp_path / "v", played(30, factor=0.8)), tmp_path / "sim")
    text = _report(tmp_path / "out", real, sim)
    assert "requests are joined by request_id" in text
    assert "| E2E P50 | -20.0 % |" in text and "| ITL P50 † | not available |" in text
