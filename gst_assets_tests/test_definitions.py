"""The code location: complete, valid, and light to load."""

from __future__ import annotations

import json
import subprocess
import sys

import dagster as dg

from gst_assets.definitions import defs
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario, scenario_names

HEAVY = ("torch", "vllm", "transformers", "vidur", "sklearn", "scipy", "matplotlib", "omegaconf")


def test_definitions_are_loadable_and_name_every_entity() -> None:
    dg.Definitions.validate_loadable(defs)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        "prompts", "trace_lengths", "trace_intervals", "workload_spec", "real_request_metrics", "real_token_metrics",
        "vidur_profile", "vidur_request_metrics", "vidur_token_metrics", "comparison_report",
    }  # fmt: skip


def test_every_scenario_is_a_partition_and_valid() -> None:
    from gst_assets.partitions import SCENARIOS

    assert list(SCENARIOS.get_partition_keys()) == scenario_names()
    for name in scenario_names():
        assert load_scenario(name).name == name


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    script = (
        "import json, sys, time\n"
        "began = time.perf_counter(); import dagster; alone = time.perf_counter() - began\n"
        "import gst_assets.definitions; both = time.perf_counter() - began\n"
        f"print(json.dumps([alone, both, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    alone, both, loaded = json.loads(run.stdout.splitlines()[-1])
    print(f"import dagster: {alone:.2f} s; with the definitions: {both:.2f} s")
    assert loaded == []


def test_engine_and_profiling_import_without_the_platform() -> None:
    """What a bare GPU host imports: neither Dagster, Pandera, Vidur nor OmegaConf."""
    script = (
        "import sys\n"
        "for name in ('dagster', 'pandera', 'vidur', 'omegaconf'): sys.modules[name] = None\n"
        "import gst_assets.engine.run, gst_assets.profiling.run\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
