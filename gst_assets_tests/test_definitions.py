"""The code location: complete, valid, and light to load."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest

from gst_assets.automation import JOBS, taken_cron
from gst_assets.definitions import defs
from gst_assets.errors import EnvironmentVariableError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.resources import ArtifactRoot, EngineResource, ScenarioResource, TokenizerResource, VidurProfilingRoot
from gst_assets.scenario import load_scenario, scenario_names
from gst_assets.timeline import LOCATION

HEAVY = (
    "torch", "vllm", "transformers", "vidur", "sklearn", "scipy", "matplotlib", "omegaconf", "otava", "pandas", "numpy",
    "pandera", "pyarrow",
)  # fmt: skip


def test_definitions_are_loadable_and_name_every_entity() -> None:
    dg.Definitions.validate_loadable(defs)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        "prompts", "trace_lengths", "trace_intervals", "workload_spec", "real_request_metrics", "real_token_metrics",
        "vidur_profile", "vidur_request_metrics", "vidur_token_metrics", "comparison_report", "comparison_history",
        "regression_report", "simulation_self_check", "capacity", "sweep",
    }  # fmt: skip


def test_every_asset_is_presented() -> None:
    """Group, kinds, owner, description, tags, a version of its code and a link to it."""
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name != "default" and node.kinds and node.owners and node.description, key
        assert node.tags["side"] in ("real", "simulated", "both") and node.tags["needs"] in ("engine", "processor")
        assert node.code_version and re.fullmatch("[0-9a-f]{12}", node.code_version), key
        references = node.metadata["dagster/code_references"].code_references
        assert [one.file_path.rpartition("/assets/")[1] for one in references] == ["/assets/"], key


def test_every_column_is_described() -> None:
    graph, described = defs.resolve_asset_graph(), set()
    for key in graph.get_all_asset_keys():
        for value in graph.get(key).metadata.values():
            schema = getattr(value, "value", value)
            if isinstance(schema, dg.TableSchema):
                assert [one.name for one in schema.columns if not one.description] == [], key
                described.add(key.to_user_string())
    # The workload's directory is the tables before it, and the self-check writes nothing.
    all_assets = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert all_assets - described == {"workload_spec", "simulation_self_check"}


def test_schedules_are_off_until_switched_on_and_measuring_is_never_retried() -> None:
    from gst_assets.automation import JOBS, SCHEDULES

    assert all(one.default_status is dg.DefaultScheduleStatus.STOPPED for one in SCHEDULES)
    assert all(job.op_retry_policy is None for job in JOBS)
    jobs = {job.name: defs.resolve_job_def(job.name) for job in JOBS}
    assert all(op.retry_policy is None for job in jobs.values() for op in job.nodes)


def test_a_job_for_each_question() -> None:
    graph = defs.resolve_asset_graph()
    made = {
        job.name: {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
        for job in (defs.resolve_job_def(one.name) for one in JOBS)
    }
    everything = {key.to_user_string() for key in graph.get_all_asset_keys()}
    line = {"comparison_history", "regression_report"}
    apart = {"capacity", "sweep", "simulation_self_check"}
    needed = {"prompts", "trace_lengths", "trace_intervals", "workload_spec", "vidur_profile"}
    assert made == {
        "comparison": everything - line - apart,
        "nightly_comparison": everything - apart,
        "sweep_simulation": {*needed, "sweep"},
        "capacity_search": {*needed, "capacity"},
        "simulation_check": {"simulation_self_check"},
    }


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("tag:side=real", {"real_request_metrics", "real_token_metrics"}),
        ("tag:needs=engine", {"capacity", "real_request_metrics", "real_token_metrics", "vidur_profile"}),
        ("tag:side=simulated and not tag:needs=engine and kind:csv", {"sweep", "vidur_request_metrics", "vidur_token_metrics"}),
        ("vidur_token_metrics", {"vidur_token_metrics"}),
    ],
)  # fmt: skip
def test_selections_of_the_command_line(selection: str, expected: set[str]) -> None:
    keys = dg.AssetSelection.from_string(selection).resolve(defs.resolve_asset_graph())
    assert {key.to_user_string() for key in keys} == expected


def test_every_asset_can_be_asked_for_alone() -> None:
    """Else `--select vidur_request_metrics` fails before anything runs."""
    for assets in defs.resolve_all_asset_specs():
        defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={assets.key})


def test_dg_finds_the_definitions() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]
    assert project["dg"]["project"]["code_location_target_module"] == project["dagster"]["module_name"] == LOCATION
    assert project["dg"]["project"]["code_location_name"] == LOCATION
    dg_program = Path(sys.executable).with_name("dg")
    run = subprocess.run(
        [dg_program, "list", "defs", "--json"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    listed = json.loads(run.stdout)
    assert {one["asset_key"] for one in listed["assets"]} >= {"comparison_report", "sweep"}
    assert {one["name"] for one in listed["jobs"]} >= {"comparison", "sweep_simulation", "capacity_search"}


def test_only_one_module_reaches_into_dagster() -> None:
    package = PROJECT_ROOT / "gst_assets"
    reaching = [
        path.relative_to(package).as_posix() for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) dagster\._", path.read_text(), re.MULTILINE)
    ]  # fmt: skip
    assert reaching == ["timeline.py"]


def test_the_launchpad_knows_every_default() -> None:
    """Where a default comes from a factory, Dagster's launchpad leaves the setting out, and it cannot be found
    there."""
    for resource in (ScenarioResource, ArtifactRoot, TokenizerResource, EngineResource, VidurProfilingRoot):
        fields = resource.to_config_schema().as_field().config_type.fields  # type: ignore[attr-defined]
        assert fields and all(field.default_provided for field in fields.values()), resource


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
        "for name in ('dagster', 'pandera', 'vidur', 'omegaconf', 'pydantic_settings'): sys.modules[name] = None\n"
        "import gst_assets.engine.run, gst_assets.capacity.engine_probe, gst_assets.profiling.measure_bundle\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("text", ["at two", "0 25 * * *", ""])
def test_a_time_that_dagster_does_not_take_is_an_error_that_names_the_variable(text: str) -> None:
    with pytest.raises(EnvironmentVariableError, match=rf"GST_NIGHTLY_CRON={re.escape(text)}: expected five fields"):
        taken_cron(text)
    assert taken_cron("15 3 * * 1-5") == "15 3 * * 1-5"
