"""Imported results compare without a scenario, and the report says what could not be checked."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gst_assets.analysis.run_reading import load_run
from gst_assets.cli import gst
from gst_assets.contracts.tables import AlignmentCounts, RunTotals, read_table
from gst_assets_tests.importers import files
from gst_assets_tests.importers.files import MS, Played, played


def _gst(*words: str | Path) -> Result:
    return CliRunner().invoke(gst, [str(word) for word in words])


def _import(kind: str, path: Path, out: Path, *options: str) -> Path:
    result = _gst("import", kind, path, "--out", out, *options)
    assert result.exit_code == 0, result.output
    return out


def _report(out: Path, *runs: str | Path, figures: tuple[str, ...] = ("--no-figures",)) -> str:
    """The report's text; without figures, which take longer than all else."""
    result = _gst("compare", *runs, "--out", out, *figures)
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
    text = _report(tmp_path / "out", real, vidur, f"second={blis}", other, figures=())
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


@pytest.mark.parametrize(("replicas", "devices"), [(1, 2), (2, 4)])
def test_several_simulated_engines_are_not_taken_for_one(replicas: int, devices: int, tmp_path: Path) -> None:
    """One measured engine, of two devices as its folder states; its degree is in no file."""
    real = files.llmservingsim_real(tmp_path / "requests.jsonl", played(30), waits_ms=[1.0] * 30)
    (tmp_path / "meta.json").write_text(json.dumps({"hardware": {"device_count": 2}}))
    shared = {"num_replicas": replicas, "tensor_parallel_size": 2, "num_pipeline_stages": 1}
    text = _report(
        tmp_path / "out",
        _import("llmservingsim", real, tmp_path / "real", "--hardware", "a100"),
        _import("vidur", files.vidur(tmp_path / "v", played(30), **shared), tmp_path / "vidur"),
    )
    differs = f"vidur: hardware is {devices} x a100, that of the real run 2 x a100; not checked that they are one"
    several = f"simulated with {replicas} replicas (vidur); not known that as many engines served the real run"
    assert (differs in text, several in text) == (replicas > 1,) * 2
    assert "degree not stated by real run real; engine not stated, simulated 2 (vidur)" in text


# --- what is not known ------------------------------------------------------------------------------------------------


def _pair(tmp_path: Path, number: int = 30, *options: str) -> list[Path]:
    real = _import("vllm-bench", files.vllm_bench(tmp_path / "r.json", played(number)), tmp_path / "real", *options)
    return [real, _import("blis", files.blis(tmp_path / "b.json", played(number, factor=1.1)), tmp_path / "sim")]


def test_early_stops_that_cannot_be_seen_are_not_none(tmp_path: Path) -> None:
    """A client's file has what was produced only."""
    text = _report(tmp_path / "out", *_pair(tmp_path))
    assert "what answers were asked to be is not stated, so early stops cannot be seen" in text
    assert not re.search(r"\| early stops \| real \| in order", text)
    assert "| real | blis | 30 | 30 | 0 | 0 | not known | 150 | 0 |" in text
    table = read_table(AlignmentCounts, tmp_path / "out" / "tables" / "alignment_counts.csv")
    assert table["num_early_stops"].isna().all()


def test_stating_is_no_worse_than_silence(tmp_path: Path) -> None:
    """Hardware that was only stated, and hardware that nobody states, keep from a pass alike; so do models."""
    marks = {}
    for name, options in (("silent", ()), ("stated", ("--hardware", "a100"))):
        (tmp_path / name).mkdir()
        _report(tmp_path / name / "out", *_pair(tmp_path / name, 30, *options))
        found = json.loads((tmp_path / name / "out" / "run_meta.json").read_text())
        marks[name] = "\n".join(found["marks"])
    assert (
        "real run real does not state its hardware, how late requests were sent, whether the driver" in marks["silent"]
    )
    assert (
        "hardware a100 is as whoever imported it states" in marks["stated"]
        and "state its hardware" not in marks["stated"]
    )
    assert all("blis: hardware not stated" in one for one in marks.values())
    real, sim = _pair(tmp_path)
    meta = json.loads((sim / "run_meta.json").read_text())
    (sim / "run_meta.json").write_text(json.dumps({**meta, "model": "not stated"}))
    assert "Not a pass because: not every run states its model" in _report(tmp_path / "unnamed", real, sim)


def test_a_failed_request_of_unknown_length_is_in_nobodys_way(tmp_path: Path) -> None:
    requests = [*played(30), Played(1600 * MS, (), error="gone")]
    path = files.aiperf(tmp_path / "profile_export.jsonl", requests, warmups=0)
    path.write_text(path.read_text().replace('"error_isl"', '"error_request_count"'))
    real = _import("aiperf", path, tmp_path / "real")
    answered = [*played(30), Played(1600 * MS, (1620 * MS, 1630 * MS), prompt=77)]
    sim = _import("blis", files.blis(tmp_path / "b.json", answered), tmp_path / "sim")
    assert "1 failed and 0 gave no token, of 31 requests" in _report(tmp_path / "out", real, sim)


def test_waiting_is_told_by_what_it_is(tmp_path: Path) -> None:
    """BLIS says when it scheduled a request, 0.5 ms after its arrival; a client does not, so its prefill counts as
    waiting, and the report says so."""
    _report(tmp_path / "out", *_pair(tmp_path))
    totals = read_table(RunTotals, tmp_path / "out" / "tables" / "run_totals.csv").set_index("side")
    assert totals.loc["sim", "queue_source"] == "request times"
    assert totals.loc["real", "queue_source"] == "request times, prefill counted as waiting"
    waited_ns = 30 * 500_000
    assert totals.loc["sim", "mean_waiting"] == pytest.approx(waited_ns / totals.loc["sim", "duration_ns"], rel=1e-3)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    result = _gst("compare", *_pair(tmp_path), "--profile", tmp_path / "gone", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "gone: no profiling bundle: run_meta.json missing" in result.output
    assert not (tmp_path / "out").exists()


# --- what a terminal and a report show --------------------------------------------------------------------------------


def test_several_simulations_are_printed_best_first(tmp_path: Path) -> None:
    real, near = _pair(tmp_path, 120)
    far = _import("vidur", files.vidur(tmp_path / "v", played(120, factor=0.5)), tmp_path / "far")
    one = _gst("compare", real, near, "--out", tmp_path / "one", "--no-figures")
    assert "1. blis" not in one.output
    lines = _gst(
        "compare", real, far, near, f"third={near}", "--out", tmp_path / "three", "--no-figures"
    ).output.splitlines()
    assert re.split(r"  +", lines[1]) == ["latency", "1. blis", "2. third", "3. vidur"]
    assert re.split(r"  +", lines[2]) == ["verdict", "outside the band", "outside the band", "outside the band"]
    row = next(line for line in lines if line.startswith("E2E P50"))
    assert re.search(r"\+10\.0 % \(\+\d+\.\d to \+\d+\.\d\) .* -50\.0 % \(-\d+\.\d to -\d+\.\d\)$", row)
    assert lines[-3].split("  ")[-1] == "50.0 %" and lines[-2].endswith("report.html")


_EVIL = "x\n# **PASS** $\\frac{$ `y` \x1b[31m <img src=//a.b> [z](http://a.b) |"


def _evil_documents(run: Path) -> None:
    """Every text of a run's metadata becomes `_EVIL`, but those that say what the run is."""
    meta = json.loads((run / "run_meta.json").read_text())

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(inner) for key, inner in value.items()}
        return (
            [changed(one) for one in value] if isinstance(value, list) else _EVIL if isinstance(value, str) else value
        )

    for name in ("model", "backend", "variant", "run_id", "hardware", "env", "hydra", "imported"):
        if name in meta:
            kept = {"transport": meta[name].get("transport")} if name == "imported" else {}
            meta[name] = {**changed(meta[name]), **kept} if isinstance(meta[name], dict) else changed(meta[name])
    meta["run_id"] += meta["run_type"]
    meta["env"] = {"platform": _EVIL, "python": _EVIL, "packages": {"vidur": _EVIL}}
    (run / "run_meta.json").write_text(json.dumps(meta))


def test_texts_of_others_stay_text(tmp_path: Path) -> None:
    """Line ends, marks, escapes of a terminal, HTML, links and formulas in every name of both runs' documents."""
    runs = _pair(tmp_path)
    for run in runs:
        _evil_documents(run)
    result = _gst("compare", *runs, f"second={runs[1]}", "--out", tmp_path / "out", "--no-figures")
    assert result.exit_code == 0, result.output
    summary, page = ((tmp_path / "out" / name).read_text() for name in ("summary.md", "report.html"))
    for text in (result.output, summary, page):
        assert "\x1b" not in text and not re.search(r"^ *# \**PASS", text, re.MULTILINE)
        assert "**PASS**" not in text
    assert "<img src=//" not in summary + page and "[z](http" not in summary and 'href="http' not in page
    # Code ends where it began: no name has a mark of its own.
    assert all(line.count("`") % 2 == 0 for line in summary.splitlines())
    assert "x # *PASS* $\\frac{$ 'y' \ufffd[31m" in html.unescape(page)
    assert json.loads((runs[0] / "run_meta.json").read_text())["model"] == _EVIL, "what is stored stays as it is"


@pytest.mark.parametrize("name", ["a`b", "a\nb", "\x1b[31m", "a**b", os.fsdecode(b"\xe9")])
def test_a_simulation_is_given_a_plain_name(tmp_path: Path, name: str) -> None:
    real, sim = _pair(tmp_path)
    result = _gst("compare", real, f"{name}={sim}", "--out", tmp_path / "out", "--no-figures")
    assert result.exit_code == 1 and "expected a name on one line" in result.output and "\x1b" not in result.output


@pytest.mark.parametrize("place", ["run", "name", "out", "profile"])
@pytest.mark.parametrize("bad", ["z" * 300, os.fsdecode(b"caf\xe9"), "a" * 5000])
def test_paths_that_cannot_be(tmp_path: Path, place: str, bad: str) -> None:
    real, sim = _pair(tmp_path)
    words = {
        "run": [real, bad, "--out", tmp_path / "out"],
        "name": [real, f"n={bad}", "--out", tmp_path / "out"],
        "out": [real, sim, "--out", tmp_path / bad],
        "profile": [real, sim, "--out", tmp_path / "out", "--profile", bad],
    }[place]
    result = _gst("compare", *words)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert result.output.startswith("error: ") and result.output.count("\n") == 1
    assert ("not UTF-8" if "\udce9" in bad else "no such path") in result.output


# --- which run is which -----------------------------------------------------------------------------------------------


def test_a_run_and_a_simulation_of_one_name(tmp_path: Path) -> None:
    """Figures and tables go by name: one would stand in the other's place."""
    real, sim = _pair(tmp_path)
    result = _gst("compare", real, f"real={sim}", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "a real run and a simulation are both called real" in result.output


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    real, sim = _pair(tmp_path)
    (tmp_path / "more").mkdir()
    again = _import("vllm-bench", tmp_path / "r.json", tmp_path / "more" / "real")
    result = _gst("compare", real, again, sim, "--out", tmp_path / "out", "--no-figures")
    assert result.exit_code == 1 and f"({real}, {again})" in result.output


def test_one_measurement_is_no_two_repeats(tmp_path: Path) -> None:
    """Imported twice: repeats that do not differ would be told of an engine that ran once."""
    real, sim = _pair(tmp_path)
    again = _import("vllm-bench", tmp_path / "r.json", tmp_path / "again")
    result = _gst("compare", real, again, sim, "--out", tmp_path / "out", "--no-figures")
    assert result.exit_code == 1 and "are imported from the same results" in result.output


def test_repeats_of_one_workload(tmp_path: Path) -> None:
    """Several real directories are repeats: their spread is the engine's own."""
    runs = [
        _import(
            "vllm-bench", files.vllm_bench(tmp_path / f"{i}.json", played(60, factor=1 + i / 50)), tmp_path / f"r{i}"
        )
        for i in range(3)
    ]
    sim = _import("blis", files.blis(tmp_path / "b.json", played(60)), tmp_path / "sim")
    text = _report(tmp_path / "out", *runs, sim)
    assert "Repeats: 3, simulated with 1 seed" in text and "Three real repeats differ by" in text
    assert load_run(runs[0], "real").meta.repeat_index is None
