"""Each format gives back the requests that its file was made of, reports what it does not know, and refuses what is not
of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gst_assets.analysis.run_reading import Run, load_run, run_kind
from gst_assets.errors import GstError, ResultsError
from gst_assets.importers.importing import import_results
from gst_assets.importers.registry import FORMATS
from gst_assets.importers.results import Options
from gst_assets_tests.gst_command import run_gst
from gst_assets_tests.importers import files
from gst_assets_tests.importers.files import BOOT_S, EPOCH_S, MS, Played, played

_NO_WAIT = [0.0] * 100
Writer = Callable[[Path, Sequence[Played]], Path]
_WRITERS: dict[str, tuple[str, str, Writer, bool]] = {
    "vllm-bench": ("vllm-bench", "result.json", files.vllm_bench, True),
    "guidellm": ("guidellm", "benchmarks.json", files.guidellm, False),
    "aiperf": ("aiperf", "profile_export.jsonl", files.aiperf, True),
    "inference-perf": ("inference-perf", "per_request_lifecycle_metrics.json", files.inference_perf, True),
    "llmservingsim, real": (
        "llmservingsim",
        "requests.jsonl",
        lambda path, some: files.llmservingsim_real(path, some, waits_ms=_NO_WAIT),
        False,
    ),
    "llmservingsim, simulated": ("llmservingsim", "sim.csv", files.llmservingsim_simulated, True),
    "vidur": ("vidur", "vidur", files.vidur, False),
    "blis": ("blis", "results.json", files.blis, False),
}
"""By name: format, file, writer, and whether the file states when every token came."""
_CLIENTS = ("vllm-bench", "guidellm", "aiperf", "inference-perf")
each_format = pytest.mark.parametrize("name", list(_WRITERS))


def _imported(tmp_path: Path, name: str, requests: Sequence[Played], **options: Any) -> Run[Any]:
    kind, file, write, _ = _WRITERS[name]
    out = tmp_path / "run"
    import_results(kind, write(tmp_path / file, requests), out, Options(**options))
    return load_run(out, "real") if run_kind(out) == "real" else load_run(out, "vidur")


def _error(kind: str, path: Path, **options: Any) -> str:
    with pytest.raises(ResultsError) as error:
        import_results(kind, path, path.with_name("out"), Options(**options))
    assert not path.with_name("out").exists()
    return str(error.value)


def test_every_format_is_tested() -> None:
    assert {kind for kind, *_ in _WRITERS.values()} == set(FORMATS)


@each_format
def test_requests_come_back_as_they_were_played(tmp_path: Path, name: str) -> None:
    """Floats of Unix time hold 0.2 us, so times may be off by that."""
    requests = played()
    run, (_, _, _, has_tokens) = _imported(tmp_path, name, requests), _WRITERS[name]
    table = run.requests
    expected = pd.DataFrame(
        {
            "arrival_time_ns": [one.arrival_ns for one in requests],
            "first_token_time_ns": [one.token_ns[0] for one in requests],
            "completion_time_ns": [one.token_ns[-1] for one in requests],
            "num_prefill_tokens": [one.prompt for one in requests],
            "num_decode_tokens": [len(one.token_ns) for one in requests],
            "num_decode_tokens_actual": [len(one.token_ns) for one in requests],
        }
    )
    difference = (table[list(expected)].astype("int64") - expected).abs()
    assert difference.iloc[:, :3].to_numpy().max() <= 500
    assert difference.iloc[:, 3:].to_numpy().max() == 0
    assert run.has_tokens == has_tokens
    if has_tokens:
        times = [time for one in requests for time in one.token_ns]
        assert max(abs(run.tokens["token_time_ns"].to_numpy() - times)) <= 500


@each_format
def test_the_metadata_says_how_it_was_read(tmp_path: Path, name: str) -> None:
    run, (kind, file, _, has_tokens) = _imported(tmp_path, name, played()), _WRITERS[name]
    origin = run.meta.imported
    assert origin is not None and origin.format == kind
    assert set(origin.source_sha256) == {"request_metrics.csv" if kind == "vidur" else file}
    assert origin.mapping["arrival_time_ns"] and origin.clock and origin.arrivals and origin.joined_by
    assert any("token" in text for text in origin.unstated) == (not has_tokens)
    assert run.meta.sha256 and run.meta.git_commit is None
    assert (origin.transport == "http") == (name in _CLIENTS)


@pytest.mark.parametrize("name", _CLIENTS)
def test_a_failed_request_is_kept_without_times(tmp_path: Path, name: str) -> None:
    requests = [
        *played(3),
        Played(200 * MS, (), prompt=7, error="Traceback (most recent call last):\nTimeoutError: gone"),
    ]
    run = _imported(tmp_path, name, requests)
    assert run.requests["status"].tolist() == ["ok"] * 3 + ["error"]
    last = run.requests.iloc[3]
    assert pd.isna(last["ttft_ns"]) and last["num_decode_tokens_actual"] == 0 and "gone" in last["error_msg"]
    assert any("failed requests" in what for what in run.meta.imported.dropped)


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("vllm-bench", {"start_times": [EPOCH_S + i / 20 for i in range(24)]}, "times look epoch (item 0 is 1790000000.0), but this format has monotonic ones"),
        ("vllm-bench", {"start_times": [BOOT_S] * 23 + [EPOCH_S]}, "times of two clocks"),
    ],
)  # fmt: skip
def test_a_clock_is_never_guessed(tmp_path: Path, name: str, changed: dict[str, Any], says: str) -> None:
    path = files.vllm_bench(tmp_path / "result.json", played(), **changed)
    message = _error(name, path)
    assert says in message
    if "two clocks" not in says:
        assert "--clock epoch" in message
        import_results(name, path, tmp_path / "run", Options(clock="epoch"))
        assert load_run(tmp_path / "run", "real").meta.imported.clock == "epoch, as --clock states"  # type: ignore[union-attr]


def test_send_time_and_intended_time_are_kept_apart(tmp_path: Path) -> None:
    """A client that holds a request back for 30 ms: its TTFT says 20, the user waits 50."""
    requests = [Played(100 * MS * i, (100 * MS * i + 50 * MS,), late_ns=30 * MS) for i in range(3)]
    for name in ("vllm-bench", "guidellm"):
        run = _imported(tmp_path / name, name, requests) if (tmp_path / name).mkdir() is None else None
        assert run is not None
        late = run.requests["send_time_ns"] - run.requests["arrival_time_ns"]
        assert max(abs(late - 30 * MS)) < 1000 and max(abs(run.requests["ttft_ns"] - 50 * MS)) < 1000
        assert run.meta.lateness_ns["p50"] == pytest.approx(30 * MS, abs=1000)
    files.vllm_bench(tmp_path / "old.json", requests, queue_times="left out")
    import_results("vllm-bench", tmp_path / "old.json", tmp_path / "old")
    old = load_run(tmp_path / "old", "real")
    assert max(abs(old.requests["ttft_ns"] - 20 * MS)) < 1000
    assert "the intended time is not known" in old.meta.imported.arrivals  # type: ignore[union-attr]


def test_llmservingsim_ttft_by_both_definitions(tmp_path: Path) -> None:
    """Queued 0, 200, 400 ms after arrival: on the engine's clock the first marks the arrival, and both TTFT can be
    stated."""
    requests = [Played(1000 * MS * i, (1000 * MS * i + 500 * MS, 1000 * MS * i + 600 * MS)) for i in range(3)]
    for one_clock in (False, True):
        path = files.llmservingsim_real(
            tmp_path / f"{one_clock}.jsonl", requests, waits_ms=[0, 200, 400], one_clock=one_clock
        )
        import_results("llmservingsim", path, tmp_path / f"run_{one_clock}")
        run = load_run(tmp_path / f"run_{one_clock}", "real")
        table = run.requests
        assert max(abs(table["ttft_ns"] - 500 * MS)) < 1000
        assert max(abs(table["first_token_time_ns"] - table["queued_time_ns"] - [500 * MS, 300 * MS, 100 * MS])) < 1000
        origin = run.meta.imported
        assert origin is not None and origin.clock.startswith("one" if one_clock else "two: arrival_time is epoch")
        assert "0.0 to 400.0 ms after arrival" in origin.definitions["its own TTFT"]
        assert table["source_request_id"].tolist() == ["0", "1", "2"]


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_messages_that_are_not_tokens_give_no_token_times(tmp_path: Path) -> None:
    """Three tokens in two messages: it is not known which came when, so the run has none; ends and counts stay."""
    requests = played()
    itls = [[gap / 1e9 for gap in (4 * MS,) * 4] for _ in requests]
    itls[3] = itls[3][:3]
    path = files.vllm_bench(tmp_path / "result.json", requests, itls=itls, latencies="left out")
    import_results("vllm-bench", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert not run.has_tokens and not (tmp_path / "run" / "token_metrics.csv").exists()
    assert "1 of 24 answers have another number of messages than of tokens" in " ".join(run.unstated)
    assert run.requests["num_decode_tokens_actual"].tolist() == [5] * 24


def test_llmservingsim_files_of_before(tmp_path: Path) -> None:
    """Column output counted the prompt once; the number of gaps shows which it is."""
    for counts_prompt in (False, True):
        path = files.llmservingsim_simulated(tmp_path / f"{counts_prompt}.csv", played(), counts_prompt=counts_prompt)
        import_results("llmservingsim", path, tmp_path / f"run_{counts_prompt}")
        run = load_run(tmp_path / f"run_{counts_prompt}", "vidur")
        assert run.requests["num_decode_tokens_actual"].tolist() == [5] * 24 and run.has_tokens
        assert ("counts the prompt" in run.meta.imported.mapping["num_decode_tokens"]) == counts_prompt  # type: ignore[union-attr]


def test_a_warm_up_is_left_out_and_counted(tmp_path: Path) -> None:
    run = _imported(tmp_path, "aiperf", played())
    assert len(run.requests) == 24
    assert run.meta.imported.dropped["records of another phase (warm-up)"] == "2 of 26"


@pytest.mark.parametrize("unit", ["ns", "ms", "sec"])
def test_aiperf_times_are_read_by_their_unit(tmp_path: Path, unit: str) -> None:
    path = files.aiperf(tmp_path / "profile_export.jsonl", played(), unit=unit)
    import_results("aiperf", path, tmp_path / "run")
    assert load_run(tmp_path / "run", "real").requests["ttft_ns"].iloc[0] == 20 * MS
    path.write_text(path.read_text().replace(f'"unit": "{unit}"', '"unit": "ticks"'))
    assert "unit is 'ticks', expected one of ns, us, ms" in _error("aiperf", path)


def test_several_benchmarks_have_to_be_chosen_from(tmp_path: Path) -> None:
    path = files.guidellm(tmp_path / "benchmarks.json", played())
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "benchmarks": document["benchmarks"] * 2}))
    assert "holds 2 benchmarks, numbered from 0. Say which one with --part" in _error("guidellm", path)
    import_results("guidellm", path, tmp_path / "run", Options(part=1))
    assert len(load_run(tmp_path / "run", "real").requests) == 24


def test_where_guidellm_says_its_model(tmp_path: Path) -> None:
    """Version 2 of the report in its configuration, version 1 in its arguments."""
    for name, changes in (("new", {}), ("old", {"config": None, "args": {"model": "tiny"}})):
        import_results("guidellm", files.guidellm(tmp_path / f"{name}.json", played(2), **changes), tmp_path / name)
        assert load_run(tmp_path / name, "real").meta.model == "tiny"


def test_unfinished_requests_of_blis_are_failed(tmp_path: Path) -> None:
    path = files.blis(tmp_path / "results.json", played(), unfinished=2)
    import_results("blis", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "vidur")
    assert run.requests["status"].tolist() == ["ok"] * 22 + ["error"] * 2


def test_what_is_stated_in_place_of_the_file(tmp_path: Path) -> None:
    path = files.llmservingsim_real(tmp_path / "requests.jsonl", played(), waits_ms=_NO_WAIT)
    options = ["--model", "meta/Tiny", "--engine", "vllm 0.19", "--hardware", "rtx4090"]
    done = run_gst("import", "llmservingsim", path, "--out", tmp_path / "run", *options)
    assert done.exit_code == 0 and "real run of 24 requests, 24 with an answer" in done.stdout
    meta = load_run(tmp_path / "run", "real").meta
    assert (meta.model, meta.backend) == ("meta/Tiny", "vllm 0.19")
    assert meta.hardware is not None and (meta.hardware.hardware_id, meta.hardware.stated) == ("rtx4090", True)
    # The file names neither, and knows no intended time: what was stated is not missing, what is not known is.
    assert "model not stated" not in done.stdout and meta.lateness_ns == {}
    unnamed = run_gst("import", "llmservingsim", path, "--out", tmp_path / "unnamed")
    assert "note: model not stated" in unnamed.stdout
    again = run_gst("import", "llmservingsim", path, "--out", tmp_path / "run")
    assert again.exit_code == 1 and "already exists. Runs are never overwritten" in again.stderr


# --- what a file says that cannot be: refused or failed by name, never clipped ------------------------------------------


def _edited(path: Path, edit: Callable[[dict[str, Any]], None], line: int = 0) -> Path:
    """One JSON object of a file changed: the file's, or that of a line."""
    rows = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    document = json.loads(rows[line])
    edit(document)
    rows[line] = json.dumps(document)
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_request_that_aiperf_cancelled_is_failed(tmp_path: Path) -> None:
    """It has times of the part that it got, which are no answer's."""
    path = files.aiperf(tmp_path / "profile_export.jsonl", played(3), warmups=0)
    _edited(path, lambda row: row["metadata"].update(was_cancelled=True), line=1)
    import_results("aiperf", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert run.requests["status"].tolist() == ["ok", "error", "ok"] and run.requests["error_type"][1] == "cancelled"
    assert pd.isna(run.requests["ttft_ns"][1])
    assert run.meta.imported.dropped["failed requests and cancelled ones, kept without times"] == "1 of 3"  # type: ignore[union-attr]
    _edited(path, lambda row: row["metadata"].update(was_cancelled="yes"), line=1)
    assert "was_cancelled is 'yes', expected true or false" in _error("aiperf", path)


@pytest.mark.parametrize(
    "metric", [("request_latency", 19.0), ("request_latency", 21.0), ("inter_chunk_latency", [90, 1, 1, 1])]
)
def test_aiperf_latencies_that_contradict_each_other(tmp_path: Path, metric: tuple[str, Any]) -> None:
    """TTFT is 20 ms, four gaps of 4 ms follow: a latency below either is of another request, or another unit."""
    path = files.aiperf(tmp_path / "profile_export.jsonl", played(3), warmups=0)
    name, value = metric
    _edited(path, lambda row: row["metrics"][name].update(value=value), line=0)
    assert f"{path}: line 1, metrics: request_latency is " in _error("aiperf", path)


def test_when_aiperf_let_a_request_go(tmp_path: Path) -> None:
    """Its rate limiter's time is the arrival, unless it is of another machine's clock."""
    path = files.aiperf(tmp_path / "profile_export.jsonl", played(3), warmups=0)
    for line in range(3):
        _edited(
            path,
            lambda row: row["metadata"].update(credit_issued_ns=row["metadata"]["request_start_ns"] - 7 * MS),
            line,
        )
    import_results("aiperf", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert run.requests["ttft_ns"][0] == 27 * MS and run.meta.lateness_ns["p50"] == 7 * MS
    assert "rate limiter" in run.meta.imported.arrivals  # type: ignore[union-attr]
    _edited(path, lambda row: row["metadata"].update(credit_issued_ns=row["metadata"]["request_start_ns"] + 1), line=2)
    import_results("aiperf", path, tmp_path / "skewed")
    skewed = load_run(tmp_path / "skewed", "real")
    assert skewed.requests["ttft_ns"][0] == 20 * MS
    assert skewed.meta.imported.dropped["credit_issued_ns"] == "after request_start_ns in 1 of 3: of another clock"  # type: ignore[union-attr]


def test_a_ttft_of_zero_is_not_measured(tmp_path: Path) -> None:
    """vLLM's client writes 0.0 where it saw no first token: without tokens a failed request, with some no answer at
    all."""
    requests = played(3)
    ttfts, itls = [0.02, 0.0, 0.0205], [[0.004] * 4, [], [0.004] * 4]
    changes: dict[str, Any] = {"ttfts": ttfts, "itls": itls, "latencies": "left out"}
    path = files.vllm_bench(tmp_path / "result.json", requests, **changes, output_lens=[5, 0, 5])
    import_results("vllm-bench", path, tmp_path / "run")
    table = load_run(tmp_path / "run", "real").requests
    assert table["status"].tolist() == ["ok", "error", "ok"] and table["error_type"][1] == "no answer"
    path = files.vllm_bench(tmp_path / "result.json", requests, **changes, output_lens=[5, 1, 5])
    assert f"{path}: request 1: ttfts is 0, which stands where no first token was seen, but output_lens is 1" in _error(
        "vllm-bench", path
    )


@pytest.mark.parametrize("name", ["aiperf", "blis", "vidur", "llmservingsim, simulated"])
def test_zero_to_the_first_token_is_refused_everywhere(tmp_path: Path, name: str) -> None:
    requests = [*played(2), Played(200 * MS, (200 * MS, 210 * MS))]
    kind, file, write, _ = _WRITERS[name]
    assert "the time to the first token is 0, which programs write where they did not measure it" in _error(
        kind, write(tmp_path / file, requests)
    )


@pytest.mark.parametrize(("shift_s", "refused"), [(-0.001, True), (0.0, False), (0.003, False), (0.2, True)])
def test_vllm_latencies_against_their_parts(tmp_path: Path, shift_s: float, refused: bool) -> None:
    """ttfts and itls add up to latencies; only the end of the stream may come after."""
    requests = played(3)
    latencies = [(one.token_ns[-1] - one.arrival_ns) / 1e9 for one in requests]
    latencies[2] += shift_s
    path = files.vllm_bench(tmp_path / "result.json", requests, latencies=latencies)
    if refused:
        assert f"{path}: request 2: latencies is " in _error("vllm-bench", path)
        return
    import_results("vllm-bench", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert run.requests["completion_time_ns"][2] == requests[2].token_ns[-1]
    told = "".join(f"{name}: {what}" for name, what in run.meta.imported.dropped.items())  # type: ignore[union-attr]
    assert (
        "latencies that end up to 3.000 ms after the last token (end of the stream), which is not counted: 1 of 3"
        in told
    ) == (shift_s > 0)


def test_a_vllm_file_of_before_start_times(tmp_path: Path) -> None:
    path = files.vllm_bench(tmp_path / "result.json", played(), start_times="left out")
    message = _error("vllm-bench", path)
    assert "when each request was sent is not known: vLLM has written it since January 2026" in message
    assert "save-detailed" not in message


def test_a_sample_of_guidellms_requests_is_no_run(tmp_path: Path) -> None:
    path = files.guidellm(tmp_path / "benchmarks.json", played(10))
    totals = {"successful": 10, "errored": 0, "incomplete": 0, "total": 10}
    _edited(path, lambda report: report["benchmarks"][0].update(metrics={"request_totals": totals}))
    import_results("guidellm", path, tmp_path / "run")
    _edited(path, lambda report: report["benchmarks"][0]["metrics"]["request_totals"].update(successful=40))
    assert "holds 10 of 40 successful requests: guidellm kept a sample" in _error("guidellm", path)


@pytest.mark.parametrize(("strategy", "ttft_ms"), [("poisson", 50), ("synchronous", 20), ("concurrent", 20)])
def test_a_strategy_that_sends_as_answers_come_intends_no_times(tmp_path: Path, strategy: str, ttft_ms: int) -> None:
    """There guidellm targets every request at the run's start: seconds of its own waiting would be in each TTFT."""
    requests = [Played(100 * MS * i, (100 * MS * i + 50 * MS,), late_ns=30 * MS) for i in range(3)]
    path = files.guidellm(tmp_path / "benchmarks.json", requests)
    _edited(path, lambda report: report["benchmarks"][0].update(config={"strategy": {"type_": strategy}}))
    import_results("guidellm", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert max(abs(run.requests["ttft_ns"] - ttft_ms * MS)) < 1000
    assert ("intended arrival times not stated" in run.unstated) == (strategy != "poisson")


def test_where_inference_perf_has_its_prompt_lengths(tmp_path: Path) -> None:
    """At the top of `info` as yet, in `request_metrics` where that is gone; requests sent again are counted."""
    path = files.inference_perf(tmp_path / "per_request_lifecycle_metrics.json", played(3))
    rows = json.loads(path.read_text())
    for row in rows:
        del row["info"]["input_tokens"]
    rows[1]["info"]["retries_attempted"] = 2
    path.write_text(json.dumps(rows))
    import_results("inference-perf", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert run.requests["num_prefill_tokens"].tolist() == [8, 9, 10]
    told = run.meta.imported.dropped  # type: ignore[union-attr]
    assert told["requests sent again after a fault, counted from the first time they were sent"] == "1 of 3"


def test_aiperfs_file_as_it_was_published(tmp_path: Path) -> None:
    """Keys and units of ai-dynamo/aiperf, examples/artifacts/run1/profile_export.jsonl (October 2025), values invented:
    a cancelled request, and answers that carry no number of their session."""
    lines = []
    for number in range(3):
        metadata = {
            "x_request_id": f"r{number}", "x_correlation_id": "c", "conversation_id": "v", "turn_index": 0,
            "timestamp_ns": EPOCH_S * 10**9 + (2 - number) * 50 * MS, "worker_id": "w", "record_processor_id": "p",
            "credit_phase": "profiling",
        }  # fmt: skip
        metrics: dict[str, Any] = {
            "input_sequence_length": {"value": 550 + number, "unit": "tokens"}, "ttft": {"value": 20.5, "unit": "ms"},
            "request_count": {"value": 1, "unit": "requests"}, "request_latency": {"value": 28.5, "unit": "ms"},
            "min_request_timestamp": {"value": metadata["timestamp_ns"], "unit": "ns"},
            "output_token_count": {"value": 1, "unit": "tokens"}, "reasoning_token_count": {"value": 2, "unit": "tokens"},
            "inter_chunk_latency": {"value": [3.0, 5.0], "unit": "ms"},
            "output_sequence_length": {"value": 3, "unit": "tokens"}, "inter_token_latency": {"value": 4.0, "unit": "ms"},
        }  # fmt: skip
        error = {
            "code": 499,
            "type": "RequestCancellationError",
            "message": "Request was cancelled after 0.000 seconds",
        }
        failed = number == 1
        if failed:
            metrics = {"error_request_count": {"value": 1, "unit": "requests"}}
        lines.append(json.dumps({"metadata": metadata, "metrics": metrics, "error": error if failed else None}))
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join(lines) + "\n")
    import_results("aiperf", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "real")
    assert run.requests["num_prefill_tokens"].tolist() == [552, 0, 550], "in order of sending"
    assert run.requests["status"].tolist() == ["ok", "error", "ok"]
    assert run.requests["ttft_ns"].dropna().tolist() == [20_500_000] * 2 and "source_request_id" not in run.requests
    assert run.tokens["token_latency_ns"].tolist() == [0, 3 * MS, 5 * MS] * 2


def test_prompt_lengths_that_nobody_knows(tmp_path: Path) -> None:
    """AIPerf's published file has failed records without any: told, and in nobody's way (test_comparing)."""
    path = files.aiperf(tmp_path / "profile_export.jsonl", [*played(3), Played(200 * MS, (), error="gone")], warmups=0)
    _edited(path, lambda row: row.update(metrics={"error_request_count": {"value": 1, "unit": "requests"}}), line=3)
    import_results("aiperf", path, tmp_path / "run")
    assert (
        "prompt lengths of 1 failed requests not stated: their rows have 0"
        in load_run(tmp_path / "run", "real").unstated
    )


@pytest.mark.parametrize(
    ("stated", "count", "degree"),
    [
        ({"tensor_parallel_size": 2, "num_pipeline_stages": 1}, 2, 2),
        ({"tensor_parallel_size": 4, "num_pipeline_stages": 2}, 8, 4),
        ({"tensor_parallel_size": 2, "num_pipeline_stages": 2, "num_replicas": 3}, 12, 2),
        ({"tensor_parallel_size": 2, "num_pipeline_stages": 1, "num_replicas": None}, None, 2),
        ({"tensor_parallel_size": 2, "num_pipeline_stages": 1, "num_replicas": 0}, None, 2),
        ({"tensor_parallel_size": 2}, None, 2),
        ({"tensor_parallel_size": "2", "num_pipeline_stages": 1}, None, None),
    ],
)
def test_devices_of_a_vidur_simulation_are_counted_where_it_says(
    stated: dict[str, Any], count: int | None, degree: int | None, tmp_path: Path
) -> None:
    import_results("vidur", files.vidur(tmp_path / "vidur", played(3), **stated), tmp_path / "run")
    run = load_run(tmp_path / "run", "vidur")
    assert run.meta.hardware is not None and run.meta.hardware.device_count == count
    assert run.meta.simulated_settings.get("tensor_parallel_size") == degree
    replicas = stated.get("num_replicas", 1)
    assert run.meta.simulated_settings.get("num_replicas") == (replicas or None)


@pytest.mark.parametrize("stated", [{}, {"num_replicas": None}, {"tensor_parallel_size": 2}])
def test_an_imported_number_of_devices_is_not_all_that_was_simulated(stated: dict[str, Any], tmp_path: Path) -> None:
    import_results("vidur", files.vidur(tmp_path / "vidur", played(3), **stated), tmp_path / "run")
    told = "simulated settings not stated"
    but = "" if "num_replicas" in stated else ", but for replicas and tensor parallel degree"
    assert [text for text in load_run(tmp_path / "run", "vidur").unstated if "settings" in text] == [told + but]


def test_a_restarted_request_of_vidur(tmp_path: Path) -> None:
    path = files.vidur(tmp_path / "vidur", played(3)) / "request_metrics.csv"
    path.write_text(path.read_text().rstrip("\n")[:-1] + "1\n")
    with pytest.raises(ResultsError, match="line 4: request_num_restarts is 1: Vidur then counts tokens"):
        import_results("vidur", path, tmp_path / "out")


def test_blis_requests_that_were_cut_or_scheduled_twice(tmp_path: Path) -> None:
    path = files.blis(tmp_path / "results.json", played(4))
    _edited(path, lambda output: output["requests"][1].update(length_capped=True))
    import_results("blis", path, tmp_path / "run")
    run = load_run(tmp_path / "run", "vidur")
    assert run.requests["status"].tolist() == ["ok", "error", "ok", "ok"]
    assert run.requests["error_type"][1] == "length capped" and "scheduled_time_ns" in run.requests
    for name, edit, reason in (
        ("preempted", lambda output: output.update(preemption_count=3), "3 preemptions"),
        (
            "late",
            lambda output: (output.update(preemption_count=0), output["requests"][2].update(scheduling_delay_ms=25.0)),
            "1 of 4 lie after the first token",
        ),
    ):
        import_results("blis", _edited(path, edit), tmp_path / name)
        run = load_run(tmp_path / name, "vidur")
        assert "scheduled_time_ns" not in run.requests
        assert run.meta.imported.dropped["times of scheduling"].startswith(reason)  # type: ignore[union-attr]


def test_what_the_folder_of_llmservingsim_says_of_its_device(tmp_path: Path) -> None:
    """Keys of bench/examples/RTXPRO6000/Llama-3.1-8B/vllm/meta.json."""
    path = files.llmservingsim_real(tmp_path / "requests.jsonl", played(), waits_ms=_NO_WAIT)
    hardware = {"device_count": 1, "device_name": "NVIDIA RTX PRO 6000", "torch_version": "2.13.0"}
    (tmp_path / "meta.json").write_text(
        json.dumps(
            {"model": "meta/Tiny", "vllm_version": "0.28.0", "started_at": "2026-09-07T03:48:08Z", "hardware": hardware}
        )
    )
    import_results("llmservingsim", path, tmp_path / "run")
    meta = load_run(tmp_path / "run", "real").meta
    assert meta.hardware is not None
    assert (meta.model, meta.hardware.device_name, meta.hardware.device_count) == (
        "meta/Tiny",
        "NVIDIA RTX PRO 6000",
        1,
    )


@pytest.mark.parametrize("name", ["vllm-bench", "guidellm", "aiperf", "inference-perf", "blis"])
def test_text_that_no_file_can_hold(tmp_path: Path, name: str) -> None:
    """Half of a surrogate pair: the error names the file that was read and its item, not one being written."""
    kind, file, write, _ = _WRITERS[name]
    requests = [*played(2), Played(200 * MS, (), error="broken \ud800 text")] if name != "blis" else played(3)
    path = write(tmp_path / file, requests)
    if name == "blis":
        _edited(path, lambda output: output["requests"][2].update(requestID="\ud800"))
    message = _error(kind, path)
    place = {"aiperf": "line 5", "vllm-bench": "request 2", "guidellm": "requests, errored: item 0"}.get(name, "item 2")
    assert message.startswith(f"{path}") and place in message and "half of a surrogate pair" in message
    path = files.vllm_bench(tmp_path / "model.json", played(2), model_id="\udfff")
    assert "half of a surrogate pair" in _error("vllm-bench", path)


def test_times_out_of_order_name_the_item(tmp_path: Path) -> None:
    path = files.inference_perf(tmp_path / "per_request_lifecycle_metrics.json", played(3))
    rows = json.loads(path.read_text())
    times = rows[1]["info"]["response_metrics"]["output_token_times"]
    times[2], times[3] = times[3], times[2]
    path.write_text(json.dumps(rows))
    message = _error("inference-perf", path)
    assert message.startswith(f"{path}: item 1: the token 3 is 4.0625") and "before the token 2" in message
    late = files.blis(tmp_path / "b.json", played(3))
    _edited(late, lambda output: output["requests"][1].update(e2e_ms=5.0))
    assert f"{late}, requests: item 1: the completion is " in _error("blis", late)


def test_no_request_is_sent_early_or_answered_before(tmp_path: Path) -> None:
    """An arrival behind the sending would make every latency too short."""
    path = files.guidellm(tmp_path / "early.json", [*played(2), Played(200 * MS, (260 * MS,), late_ns=-40 * MS)])
    assert "item 0: sent 39.9999" in _error("guidellm", path)
    path = files.guidellm(tmp_path / "late.json", [*played(2), Played(200 * MS, (260 * MS,), late_ns=80 * MS)])
    assert "ms before the time of sending" in _error("guidellm", path)
    path = files.llmservingsim_real(tmp_path / "requests.jsonl", played(3), waits_ms=[0, 0, 90])
    assert "line 3: the first token is 69." in _error("llmservingsim", path)


def test_simulations_of_several_instances_say_so(tmp_path: Path) -> None:
    path = files.llmservingsim_simulated(tmp_path / "sim.csv", played(3))
    path.write_text(path.read_text().replace("\n0,1,", "\n1,1,"))
    import_results("llmservingsim", path, tmp_path / "run")
    assert load_run(tmp_path / "run", "vidur").meta.imported.dropped["instance id"].startswith("2 instances")  # type: ignore[union-attr]


def test_a_gap_list_without_end(tmp_path: Path) -> None:
    path = files.llmservingsim_simulated(tmp_path / "sim.csv", played(3))
    lines = path.read_text().splitlines()
    lines[2] = lines[2][: lines[2].index('"')] + "[" * 100_000
    path.write_text("\n".join(lines) + "\n")
    assert "line 3: ITL is " in _error("llmservingsim", path)
    nested = tmp_path / "nested.json"
    nested.write_text("[" * 100_000)
    assert "nested deeper" in _error("vllm-bench", nested) or "line 1" in _error("vllm-bench", nested)


def test_line_ends_of_other_scripts_end_no_line(tmp_path: Path) -> None:
    path = files.aiperf(tmp_path / "profile_export.jsonl", [*played(2), Played(200 * MS, (), error="a\u2028b")])
    path.write_text(path.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")
    import_results("aiperf", path, tmp_path / "run")
    assert len(load_run(tmp_path / "run", "real").requests) == 3


@pytest.mark.parametrize("option", ["--model", "--engine", "--hardware"])
@pytest.mark.parametrize("value", ["a\nb", "a`b", "\x1b[31ma", "**a**", " a", "", os.fsdecode(b"\xe9")])
def test_a_name_that_no_report_can_show(tmp_path: Path, option: str, value: str) -> None:
    path = files.blis(tmp_path / "b.json", played(3))
    done = run_gst("import", "blis", path, "--out", tmp_path / "out", option, value)
    assert done.exit_code == 1 and f"{option} is {value!r}, expected a name on one line" in done.stderr


# --- bad input: one error that names file and place -------------------------------------------------------------------


@each_format
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"\x1f\x8b\x08\x00", "is compressed (gzip). Unpack it"),
        (b"PAR1....", "is a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-8-sig"), "begins with a byte order mark. Save it as UTF-8 without one"),
        (b"<!DOCTYPE html><html>", "is an HTML page"),
        (b"{\"a\": \"\xff\"}", "line 1: not UTF-8"),
        (b"[1, 2", "line 1"),
        (b"{}\n", ""),
        (b"[{}]\n", ""),
        (b"a,b\n1\n", ""),
    ],
)  # fmt: skip
def test_something_else_is_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    kind, file, _, _ = _WRITERS[name]
    path = tmp_path / ("request_metrics.csv" if kind == "vidur" else file)
    path.write_bytes(data)
    message = _error(kind, path)
    assert message.startswith(str(path)) and says in message


@each_format
def test_every_damaged_value_is_one_error(tmp_path: Path, name: str) -> None:
    """Each value of a valid file in turn becomes what it must not be: a result or one error of this project, never a
    traceback."""
    kind, file, write, _ = _WRITERS[name]
    path = write(tmp_path / file, played(2))
    path = path / "request_metrics.csv" if path.is_dir() else path
    text, tried = path.read_text(), 0
    for bad in ("null", "-7", '"x"', "[]", "{}", "1e400", "123456789012345678901234567890", "true"):
        for start in _value_starts(text):
            end = min((one for mark in ",}]\n" if (one := text.find(mark, start)) >= 0), default=len(text))
            path.write_text(text[:start] + bad + text[end:])
            try:
                import_results(kind, path, tmp_path / f"out_{tried}")
            except GstError as error:
                assert str(path) in str(error), error
            tried += 1
    assert tried > 30


def _value_starts(text: str) -> list[int]:
    """Where JSON values and CSV fields begin, every seventh, so that it takes seconds."""
    return [number + 1 for number, mark in enumerate(text) if mark in ":,[\n" and number + 1 < len(text)][::7]


def test_clock_and_part_where_they_say_nothing(tmp_path: Path) -> None:
    assert "--clock says nothing" in _error("blis", files.blis(tmp_path / "b.json", played()), clock="epoch")
    assert "--part says nothing" in _error("vllm-bench", files.vllm_bench(tmp_path / "v.json", played()), part=0)


def test_a_result_without_details(tmp_path: Path) -> None:
    path = files.vllm_bench(tmp_path / "result.json", played(), itls="left out")
    assert "itls missing. Only a result saved with --save-detailed" in _error("vllm-bench", path)
    path.write_text(files.vllm_bench(path, played()).read_text() * 2)
    assert "a second JSON value begins" in _error("vllm-bench", path)


def test_vidur_needs_every_id(tmp_path: Path) -> None:
    folder = files.vidur(tmp_path / "vidur", played())
    lines = (folder / "request_metrics.csv").read_text().splitlines()
    (folder / "request_metrics.csv").write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
    with pytest.raises(
        ResultsError, match="line 4: Request Id 3, expected 2: arrivals are sums over all requests before"
    ):
        import_results("vidur", folder, tmp_path / "out")


def test_what_would_wait_mislead_or_break_is_one_error(tmp_path: Path) -> None:
    """A named pipe, a key or column given twice, places that cannot be written, times in another unit."""
    good = json.loads(files.vllm_bench(tmp_path / "good.json", played()).read_text())
    os.mkfifo(tmp_path / "pipe")
    mixed = {**good, "queue_times": [1.7e9, *[0.0] * (len(good["ttfts"]) - 1)]}
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    (tmp_path / "twice.json").write_text('{"ttfts": [], "ttfts": []}')
    table = files.llmservingsim_simulated(tmp_path / "sim.csv", played()).read_text()
    header, rest = table.split("\n", 1)
    (tmp_path / "twice.csv").write_text(f"{header},{header.split(',')[0]}\n{rest}")
    late = {name: values for name, values in good.items() if name != "latencies"}
    (tmp_path / "late.json").write_text(json.dumps({**late, "ttfts": [1e17] * len(good["ttfts"])}))
    for name, format_name, out, told in (
        ("pipe", "vllm-bench", "out", "is a named pipe"),
        ("/dev/zero", "aiperf", "out", "is a device"),
        (".", "inference-perf", "out", "is a directory"),
        ("twice.json", "vllm-bench", "out", "the key 'ttfts' is written twice"),
        ("twice.csv", "llmservingsim", "out", "is there twice"),
        ("late.json", "vllm-bench", "out", "of two units, mixed?"),
        ("mixed.json", "vllm-bench", "out", "years from the first arrival"),
        ("good.json", "vllm-bench", "good.json/out", "cannot be written"),
        ("good.json", "vllm-bench", "x" * 300, "no such path (File name too long)"),
        ("good.json", "vllm-bench", os.fsdecode(b"caf\xe9"), "not UTF-8"),
        ("y" * 300, "blis", "out", "no such path (File name too long)"),
        (os.fsdecode(b"caf\xe9.json"), "guidellm", "out", "not UTF-8"),
    ):
        done = run_gst("import", format_name, tmp_path / name, "--out", tmp_path / out)
        assert done.exit_code == 1 and done.stderr.count("\n") == 1 and told in done.stderr, (name, done.stderr)
        assert not (tmp_path / "out").exists()
