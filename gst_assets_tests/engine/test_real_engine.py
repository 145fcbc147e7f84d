"""The real engine (vLLM's CPU build): a measured workload with early stops, one engine session, and a killed
measurement."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts import tables
from gst_assets.contracts.documents import RealRunMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine.launch import run_module
from gst_assets.errors import EngineError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets_tests.engine.step_sums import check_contexts
from gst_assets_tests.engine.workloads import build_workload

pytestmark = pytest.mark.engine

STOP_BELOW = 256
EARLY_STOP = [
    "workload.num_requests=24",
    "workload.arrivals.rate_per_s=20",
    "replay.repeats=2",
    "replay.warmup_requests=4",
]


def resolved(directory: Path, scenario: Scenario) -> Path:
    path = directory / "scenario.json"
    path.write_text(scenario.model_dump_json())
    return path


# --- a measured workload, as the Dagster asset measures it ------------------------------------------------------------


@pytest.fixture(scope="module")
def early_stop_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str]]:
    """Two repeats of a small early-stop workload: their directories and the lines the child printed."""
    folder = tmp_path_factory.mktemp("early")
    scenario = load_scenario("early_stop", EARLY_STOP)
    workload = build_workload(folder / "workload", scenario)
    arguments = [
        "--workload",
        str(workload),
        "--scenario",
        str(resolved(folder, scenario)),
        "--out",
        str(folder / "out"),
    ]
    lines = run_module("gst_assets.engine.run", [*arguments, "--group-id", "g"])
    return [folder / "out" / "g-r0", folder / "out" / "g-r1"], lines


def test_each_repeat_is_a_complete_valid_run(early_stop_runs: tuple[list[Path], list[str]]) -> None:
    directories, lines = early_stop_runs
    assert sorted(path.name for path in directories[0].parent.iterdir()) == ["g-r0", "g-r1"]
    for repeat, directory in enumerate(directories):
        open_directory(directory, Kind.REAL_RUN)
        meta = read_document(RealRunMeta, directory / "run_meta.json")
        assert (meta.repeat_index, meta.num_repeats, meta.backend) == (repeat, 2, "vllm")
        assert meta.hydra.overrides == EARLY_STOP
        assert (meta.num_errors, meta.num_bunched_messages) == (0, 0)
        assert meta.engine_settings.num_kv_blocks == 1024 and meta.engine_settings.attention_backend == "CPU_ATTN"
        assert meta.warmup["num_requests"] == 4 and meta.warmup["num_decode_tokens"] > 0
        assert meta.model_extra is not None and meta.model_extra["tracing_ns_per_step"]["p50"] > 0
        requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
        tokens = tables.read_table(tables.TokenMetrics, directory / "token_metrics.csv")
        tables.check_run_tables(requests, tokens, directory)
        assert set(requests["status"]) == {"ok"} and set(requests["backend"]) == {"vllm"}
        assert (requests["send_time_ns"] >= requests["arrival_time_ns"]).all()
        assert (requests["scheduled_time_ns"] >= requests["send_time_ns"]).all()
        assert (requests["first_token_time_ns"] > requests["scheduled_time_ns"]).all()
    assert any(line.startswith("engine ready after") for line in lines)
    assert sum("24 requests ok, 0 failed" in line for line in lines) == 2


def test_some_requests_really_stop_early_at_a_stop_token(early_stop_runs: tuple[list[Path], list[str]]) -> None:
    for directory in early_stop_runs[0]:
        requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
        tokens = tables.read_table(tables.TokenMetrics, directory / "token_metrics.csv")
        early = requests["num_decode_tokens_actual"] < requests["num_decode_tokens"]
        assert early.any() and not early.all()
        meta = read_document(RealRunMeta, directory / "run_meta.json")
        assert meta.model_extra is not None and meta.model_extra["num_early_stops"] == early.sum()
        last = tokens.groupby("request_id").tail(1).set_index("request_id")["token_id"]
        assert (last[requests.loc[early, "request_id"]] < STOP_BELOW).all()
        before_last = tokens.drop(tokens.groupby("request_id").tail(1).index)
        assert (before_last["token_id"] >= STOP_BELOW).all()


def test_the_seed_of_a_request_decides_its_tokens(early_stop_runs: tuple[list[Path], list[str]]) -> None:
    """Repeats differ in timing, so in batches and in how prompts are cut, but not in what is drawn (but for ties, which
    batches decide); of answers drawn anew one in six would be as long as before."""
    first, second = (
        tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")["num_decode_tokens_actual"]
        for directory in early_stop_runs[0]
    )
    assert (first == second).mean() > 0.8


def test_iterations_account_for_every_token(early_stop_runs: tuple[list[Path], list[str]]) -> None:
    for directory in early_stop_runs[0]:
        requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
        steps = tables.read_table(tables.Iterations, directory / "iterations.csv")
        assert steps["num_prefill_tokens"].sum() == requests["num_prefill_tokens"].sum()
        check_contexts(steps, requests)
        produced = requests["num_decode_tokens_actual"].sum()
        assert steps["num_decode_requests"].sum() == produced - len(requests)
        assert (steps["scheduled_time_ns"] >= 0).all()
        assert steps["scheduled_time_ns"].is_monotonic_increasing
        # Without asynchronous scheduling one step ends before the next begins.
        assert (steps["completion_time_ns"][:-1].to_numpy() <= steps["scheduled_time_ns"][1:].to_numpy()).all()
        # A client sees a request's last token after the step that made it was formed.
        assert steps["scheduled_time_ns"].max() < requests["completion_time_ns"].max()


# --- several workloads on one start, as on a GPU host -------------------------------------------------------------------

_NOT_ON_A_GPU_HOST = ("dagster", "pandera", "vidur", "omegaconf", "pydantic_settings", "matplotlib")
_BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_NOT_ON_A_GPU_HOST!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} on a GPU host", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for the engine's sockets; pytest's own are long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_several_workloads_share_a_start_on_a_host_without_the_platform(tmp_path: Path, short_folder: Path) -> None:
    """Two arrival rates, resolved scenarios, and neither Dagster, Pandera, Vidur nor OmegaConf in any process. The
    temporary directory is empty afterwards."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sitecustomize.py").write_text(_BLOCK)
    arguments = []
    for name, rate in (("slow", 10), ("fast", 40)):
        overrides = ["workload.num_requests=8", "workload.num_decode_tokens=6", f"workload.arrivals.rate_per_s={rate}"]
        scenario = load_scenario("smoke", [*overrides, "replay.repeats=2", "replay.warmup_requests=2"])
        scenario = scenario.model_copy(update={"name": name})
        folder = tmp_path / name
        workload = build_workload(folder / "workload", scenario)
        arguments += ["--workload", str(workload), "--scenario", str(resolved(folder, scenario))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "absent"), str(PROJECT_ROOT)]),
        "TMPDIR": str(short_folder),
    }
    done = subprocess.run(
        [sys.executable, "-m", "gst_assets.engine.run", *arguments, "--out", str(tmp_path / "out")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("engine ready after") == 1
    assert list(short_folder.iterdir()) == []
    metas = [read_document(RealRunMeta, path / "run_meta.json") for path in sorted((tmp_path / "out").iterdir())]
    assert [(meta.hydra.config_name, meta.repeat_index) for meta in metas] == [
        ("fast", 0), ("fast", 1), ("slow", 0), ("slow", 1),
    ]  # fmt: skip
    assert len({meta.group_id for meta in metas}) == 2 and len({meta.engine_start_s for meta in metas}) == 1  # type: ignore[attr-defined]
    assert {meta.params["workload"]["arrivals"]["rate_per_s"] for meta in metas} == {10, 40}
    for path in (tmp_path / "out").iterdir():  # as they are validated when they come home
        load_run(path, "real")


def test_memory_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    """vLLM's CPU build cannot set aside a petabyte for its KV cache; on a GPU the same line reports CUDA's shortage."""
    scenario = load_scenario("smoke", ["engine.cpu_kv_cache_gib=1000000"])
    workload = build_workload(tmp_path / "workload", scenario)
    arguments = ["--workload", str(workload), "--scenario", str(resolved(tmp_path, scenario))]
    with pytest.raises(EngineError) as raised:
        run_module("gst_assets.engine.run", [*arguments, "--out", str(tmp_path / "out")])
    assert "did not start" in str(raised.value) and "with little memory lower engine.num_kv_blocks" in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


# --- one engine session -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `engine_session` found out on one engine start."""
    path = resolved(tmp_path_factory.mktemp("session"), load_scenario("smoke"))
    lines = run_module("gst_assets_tests.engine.engine_session", [str(path)])
    (found,) = [line for line in lines if line.startswith("facts ")]
    return json.loads(found.removeprefix("facts "))


def test_settings_are_those_of_the_scenario(facts: dict[str, Any]) -> None:
    engine = load_scenario("smoke").engine
    for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_kv_blocks", "enforce_eager"):
        assert facts["settings"][name] == getattr(engine, name)
    assert facts["settings"]["engine_version"].startswith("0.")


def test_functions_run_in_the_worker_and_their_errors_are_told(facts: dict[str, Any]) -> None:
    ((doubled, pid),) = facts["rpc"]
    assert doubled == 42 and pid != facts["pid"]
    assert "probe_fail failed inside vLLM's worker" in facts["rpc_error"]
    assert "probe went wrong" in facts["rpc_error"]


def test_a_timeout_costs_only_its_request(facts: dict[str, Any]) -> None:
    assert facts["timeout"]["error_types"] == ["RequestTimeout", "", "", ""]
    assert facts["timeout"]["counts"] == [0, 4, 4, 4]
    assert facts["after_timeout"]["error_types"] == [""]
    assert facts["same_tokens"]


def test_a_burst_beyond_the_batch_waits_and_is_recorded(facts: dict[str, Any]) -> None:
    assert facts["burst"]["error_types"] == [""] * 40 and facts["burst"]["bunched"] == 0
    steps = facts["burst_steps"]
    assert not facts["burst_missing"]
    assert max(steps["RUNNING"]) == 32 and max(steps["WAITING"]) >= 8
    tokens = [
        prefill + decode for prefill, decode in zip(steps["PREFILL_TOKENS"], steps["DECODE_REQUESTS"], strict=True)
    ]
    assert max(tokens) == 512
    assert sum(steps["PREFILL_TOKENS"]) == facts["burst_prompt_tokens"]
    assert facts["preemptions"] == [0] * 40


def test_stamps_of_engine_and_client_share_a_clock(facts: dict[str, Any]) -> None:
    assert len(facts["burst_stamps"]) == 40
    rounding_ns = 1_000
    for stamps in facts["burst_stamps"]:
        send, queued, scheduled, first, seen, last, last_seen = stamps
        order = [send, queued, scheduled, first, seen]
        assert all(earlier <= later + rounding_ns for earlier, later in itertools.pairwise(order))
        assert first <= last <= last_seen + rounding_ns


def test_a_killed_engine_ends_the_run_with_error_rows(facts: dict[str, Any]) -> None:
    assert facts["death"]["error_types"] == ["EngineDied"] * 9
    assert facts["death"]["sent"] == [True] * 8 + [False]
    assert "vLLM's engine process died" in facts["death"]["death"]
    assert facts["after_death"]["error_types"] == ["EngineDied"] * 2


# --- a measurement whose parent is killed -----------------------------------------------------------------------------

_PARENT = """
import sys
from gst_assets.engine.launch import run_module
run_module("gst_assets.engine.run", sys.argv[1:], on_line=lambda line: print(line, flush=True))
"""


def test_kill_9_of_the_parent_in_the_middle_of_a_run_leaves_nothing(tmp_path: Path) -> None:
    overrides = ["workload.num_requests=200", "workload.arrivals.rate_per_s=2", "replay.warmup_requests=1"]
    scenario = load_scenario("smoke", overrides)
    workload, out = build_workload(tmp_path / "workload", scenario), tmp_path / "out"
    arguments = ["--workload", str(workload), "--scenario", str(resolved(tmp_path, scenario)), "--out", str(out)]
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, *arguments], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    for line in parent.stdout:
        if "playing" in line:
            break
    else:
        pytest.fail("the run never began")
    descendants = _descendants(parent.pid)
    assert len(descendants) >= 3  # the measuring child, the engine's process and its worker
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 600
    while any(_is_alive(pid) for pid in descendants) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in descendants if _is_alive(pid)] == []
    assert not out.exists() or [path for path in out.iterdir() if not path.name.startswith(".")] == []


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
