"""Scenarios are loaded by name, with overrides, or from a resolved file, as the command line names them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.errors import EnvironmentVariableError, ScenarioError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import (
    SCENARIO_DIR,
    Scenario,
    load_file,
    load_scenario,
    read_reference,
    read_resolved,
    resolve_path,
    scenario_names,
)
from gst_assets_tests.gst_command import run_gst
from gst_assets_tests.scenario.written import MINE, PARENT, error_of, load


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_is_valid_and_survives_json(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert (PROJECT_ROOT / scenario.file).is_file()
    path = tmp_path / "resolved.json"
    path.write_text(scenario.model_dump_json())
    assert read_resolved(path) == scenario
    sections = list(Scenario.model_fields)
    assert read_resolved(path).digest(*sections) == scenario.digest(*sections)


def test_names_are_the_files_without_parents(directory: Path) -> None:
    (directory / "notes.txt").write_text("")
    assert scenario_names(directory) == ["mine"]
    assert scenario_names(directory / "none") == []


def test_later_parents_then_the_file_then_overrides_win(directory: Path) -> None:
    for name, seed, requests in (("_one", 1, 10), ("_two", 2, 20)):
        (directory / f"{name}.yaml").write_text(f"workload: {{seed: {seed}, num_requests: {requests}}}\n")
    text = MINE.replace("extends: _parent", "extends: [_parent, _one, _two]").replace("  num_requests: 96\n", "")
    (directory / "mine.yaml").write_text(text)
    assert load(directory).workload.num_requests == 20
    assert load(directory).workload.seed == 20260101
    assert load(directory, "workload.seed=3", "workload.seed=4").workload.seed == 4


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("workload.num_requests=null", None),
        ("workload.num_requests=", None),
        ("workload.num_requests=7", 7),
        ("workload.seed=${engine.block_size}", 32),
        ("workload.seed=9223372036854775807", 2**63 - 1),
        ("profile.num_tokens=[1, 2,4]", (1, 2, 4)),
        ("engine.sampling.stop_token_ids=[]", ()),
        ("description=a, b = c", "a, b = c"),
        ("description='1, 2'", "1, 2"),
        ("description=http://x/y?z=1", "http://x/y?z=1"),
        ("description='a: b'", "a: b"),
        ("model.checkpoint=data/none", "data/none"),
        ("engine.start_timeout_s=1e3", 1000.0),
        ("engine.start_timeout_s=5", 5.0),
        ("profile.traffic_rates_per_s=[1, 2.5]", (1.0, 2.5)),
        ("nightly=false", False),
        ("workload.arrivals.rate_per_s=0.5", 0.5),
        ("simulation.variants=[kernels]", ("kernels",)),
        ("workload.prompts=data/prompts/no_such_file.jsonl", "data/prompts/no_such_file.jsonl"),
    ],
)
def test_overrides(directory: Path, override: str, value: object) -> None:
    found: Any = load(directory, override)
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key)
    assert found == value and type(found) is type(value)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20))
def test_any_text_can_be_given_as_a_quoted_value(text: str) -> None:
    quoted = text.replace("'", "''").replace("\\", "\\\\").replace("${", "$ {")
    expected = text.replace("\\", "\\\\").replace("${", "$ {")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "_parent.yaml").write_text(PARENT)
        (Path(folder) / "mine.yaml").write_text(MINE)
        assert load(Path(folder), f"description='{quoted}'").description == expected


def test_resolve_path() -> None:
    assert resolve_path("data/x") == PROJECT_ROOT / "data/x"
    assert resolve_path("/a/b") == Path("/a/b")
    assert resolve_path("~/x") == Path.home() / "x"


def test_nightly_is_the_one_setting_that_is_not_inherited(directory: Path) -> None:
    """A copied scenario must not run every night because its original does."""
    assert load(directory).nightly
    (directory / "copied.yaml").write_text("extends: mine\ndescription: a copy\n")
    (directory / "chosen.yaml").write_text("extends: copied\nnightly: true\n")
    copied, chosen = load(directory, name="copied"), load(directory, name="chosen")
    assert (copied.nightly, chosen.nightly) == (False, True)
    assert copied.replay == load(directory).replay == chosen.replay


def test_unknown_scenarios_are_answered_with_the_known_ones(directory: Path) -> None:
    assert (
        error_of(SCENARIO_DIR, name="smokey")
        == f"unknown scenario 'smokey'; {SCENARIO_DIR} has {', '.join(scenario_names())}. One of your own is given by its"
        " file, ./FILE.yaml, or by its name where GST_SCENARIO_DIR is set to its folder."
    )
    assert "unknown scenario '../smoke'" in error_of(directory, name="../smoke")
    assert "unknown scenario '_parent'" in error_of(directory, name="_parent")
    (directory / "My-Own.yaml").write_text(MINE)
    assert "names are lower-case letters, digits and underscores" in error_of(directory, name="My-Own")


def test_a_resolved_scenario_that_is_wrong(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "resolved.json"

    def error() -> str:
        with pytest.raises(ScenarioError) as raised:
            read_resolved(path)
        return str(raised.value)

    assert error() == f"{path}: no such file. Write it with `gst show NAME --json > FILE.json`."
    path.write_text('{\n"name": 1,\n')
    assert error().startswith(f"{path}: line 3: not valid JSON")
    path.write_bytes(b'"\xff"')
    assert error().startswith(f"{path}: line 1: not UTF-8")
    path.write_text('{"workload": {"seed": 1, "seed": 2}}')
    assert (
        error()
        == f"{path}: the key 'seed' is written twice in one object, and JSON would take the last; remove one of them."
    )
    path.write_text("[]")
    assert error().startswith(f"{path}: scenario: ")
    values = load(directory).model_dump(mode="json")
    values["workload"]["arrivals"]["rate_per_s"] = "6"
    path.write_text(json.dumps(values))
    assert error() == f"{path}: workload.arrivals.rate_per_s: Input should be a valid number (found '6')."


def test_the_command_prints_the_resolved_scenario(tmp_path: Path) -> None:
    done = run_gst("show", "smoke", "-o", "workload.num_requests=5", "--json")
    assert done.exit_code == 0
    path = tmp_path / "resolved.json"
    path.write_text(done.stdout)
    assert read_resolved(path) == load_scenario("smoke", ["workload.num_requests=5"])
    wrong = run_gst("show", "smoke", "-o", "foo=1")
    assert wrong.exit_code == 1 and wrong.stderr.startswith("error: override 'foo=1' of scenario smoke: foo: unknown")
    assert run_gst("show").exit_code == 2


def test_a_resolved_scenario_carries_its_overrides_and_takes_no_others(tmp_path: Path) -> None:
    overrides = ["workload.num_requests=3", "workload.num_requests=5", "workload.seed=${engine.block_size}"]
    scenario = load_scenario("smoke", overrides)
    assert scenario.overrides == tuple(overrides)
    assert (scenario.workload.num_requests, scenario.workload.seed) == (5, scenario.engine.block_size)
    path = tmp_path / "scenario.json"
    path.write_text(scenario.model_dump_json())
    assert read_reference(str(path), []) == scenario == read_reference("smoke", overrides)
    with pytest.raises(ScenarioError) as raised:
        read_reference(str(path), ["workload.num_requests=5"])
    assert (
        str(raised.value)
        == f"override 'workload.num_requests=5': {path} is resolved, its overrides inside. Resolve it again with this"
        f" one, `gst show NAME -o workload.num_requests=5 --json > {path}`, or give the scenario's name instead of"
        " the file."
    )


def test_a_scenario_of_an_earlier_version_has_no_overrides(tmp_path: Path) -> None:
    values = load_scenario("smoke").model_dump(mode="json")
    del values["overrides"]
    (tmp_path / "scenario.json").write_text(json.dumps(values))
    assert read_resolved(tmp_path / "scenario.json") == load_scenario("smoke")


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:GST_TEST_SECRET}",
        "a ${oc.env:GST_TEST_SECRET,none} b",
        "${oc.decode:${oc.env:GST_TEST_SECRET}}",
        "${oc.${description}:GST_TEST_SECRET}",
    ],
)
def test_the_environment_is_not_written_into_a_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Whatever a scenario says is in the metadata of every run."""
    monkeypatch.setenv("GST_TEST_SECRET", "sesame")
    with pytest.raises(
        ScenarioError, match=r"model\.checkpoint: .*\$\{oc\.env:\.\.\.\} is not resolved: .*name the variable"
    ) as raised:
        load_scenario("smoke", [f"model.checkpoint={value}", "description=env"])
    assert "sesame" not in str(raised.value)
    for file in SCENARIO_DIR.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    own = f"extends: smoke\ndescription: env\nmodel:\n  checkpoint: '{value}'\n"
    (tmp_path / "mine.yaml").write_text(own)
    with pytest.raises(ScenarioError, match=r"mine\.yaml: line 4: model\.checkpoint: .*is not resolved") as raised:
        load_scenario("mine", [], tmp_path)
    assert "sesame" not in str(raised.value)


def test_settings_may_still_name_each_other() -> None:
    assert load_scenario("smoke", ["workload.seed=${engine.block_size}"]).workload.seed == 32


def test_own_files_extend_shipped_ones_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_mine.yaml").write_text("extends: smoke\ndescription: Mine.\nworkload: {seed: 77}\n")
    (tmp_path / "mine.yaml").write_text("extends: _mine\nworkload: {num_requests: 5}\n")
    with pytest.raises(ScenarioError, match="unknown scenario 'mine'"):
        load_scenario("mine")
    own = load_file(tmp_path / "mine.yaml", ["workload.num_decode_tokens=3"])
    assert own == read_reference(str(tmp_path / "mine.yaml"), ["workload.num_decode_tokens=3"])
    assert (own.name, own.workload.seed, own.workload.num_requests, own.workload.num_decode_tokens) == (
        "mine",
        77,
        5,
        3,
    )
    assert own.model == load_scenario("smoke").model and own.file == "mine.yaml"
    before = scenario_names()
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path))
    assert scenario_names() == sorted([*before, "mine"])
    assert load_scenario("mine", ["workload.num_decode_tokens=3"]) == own and own.file == str(tmp_path / "mine.yaml")
    assert load_scenario("smoke").file == "gst_assets/scenarios/smoke.yaml"


def test_what_is_wrong_with_own_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smoke.yaml").write_text("extends: cpu_half\n")
    told = rf"{tmp_path}/smoke\.yaml: .*/scenarios has a file of the same name\. Rename yours"
    with pytest.raises(ScenarioError, match=told):
        load_file(tmp_path / "smoke.yaml")
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path))
    with pytest.raises(ScenarioError, match=told):
        scenario_names()
    with pytest.raises(ScenarioError, match=r"none\.yaml: no such file"):
        load_file(tmp_path / "none.yaml")
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path / "absent"))
    with pytest.raises(EnvironmentVariableError, match=r"GST_SCENARIO_DIR=.*absent: expected a directory"):
        scenario_names()
