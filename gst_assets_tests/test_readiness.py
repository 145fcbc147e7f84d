"""What `gst show` says of a scenario's tokenizer and profile; the rest of it is tested through the command (`test_cli`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.locations import locate
from gst_assets.readiness import Need, needs, router_warning
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload.building import build
from gst_assets.workload.spec import LoadedWorkload
from gst_assets_tests.gst_command import run_gst
from gst_assets_tests.profiling.tables import write_bundle


def need_of(what: str, scenario: Scenario) -> Need:
    (found,) = [need for need in needs(scenario, with_engine=False) if need.what == what]
    return found


def tokenizer_of(*overrides: str) -> Need:
    return need_of("a tokenizer", load_scenario("smoke", list(overrides)))


def test_a_tokenizer_within_the_vocabulary_is_there() -> None:
    folded = tokenizer_of()
    assert folded == Need("a tokenizer", True, str(locate("data/tokenizer/qwen3")))
    assert tokenizer_of("model.fold_token_ids=false", "model.geometry.vocab_size=151669") == folded


@pytest.mark.parametrize("size", [8192, 151_668])
def test_a_tokenizer_beyond_the_vocabulary_is_named_before_a_gpu_host_finds_out(size: int) -> None:
    need = tokenizer_of("model.fold_token_ids=false", f"model.geometry.vocab_size={size}")
    assert need.met is None
    assert f"its ids end at 151,668, the model's vocabulary at {size - 1:,}" in need.found
    assert "Set model.fold_token_ids=true" in need.found


def test_without_tokenizers_the_ids_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has the base package only `gst show` lists what is missing all the same."""
    monkeypatch.setattr("gst_assets.readiness.find_spec", lambda _: None)
    need = tokenizer_of("model.fold_token_ids=false", "model.geometry.vocab_size=8192")
    assert need.met is None and "not compared" in need.found


def test_a_profile_of_another_model_of_that_name_is_not_there() -> None:
    folder = str(locate("data/profiles/h100/qwen3-8b"))
    assert need_of("a profile", load_scenario("h100_8b_half")) == Need("a profile", True, folder)
    other = need_of("a profile", load_scenario("h100_8b_half", ["model.geometry.num_layers=24"]))
    assert other.met is False
    assert "params.model.geometry.num_layers is 36, but the scenario expects 24" in other.found


@pytest.mark.parametrize(
    ("override", "met", "says"),
    [
        ("simulation.seed=3", True, "5 in "),
        ("workload.seed=7", True, "5 in "),  # requests at fixed times: the same workload
        ("engine.num_kv_blocks=5", False, "engine.num_kv_blocks: the scenario asks for 5, but vllm 0.22.1 runs with"),
        ("workload.num_requests=23", False, "Undo workload.num_requests=23 (recorded with 24)"),
        ("model.geometry.num_layers=24", False, "params.model.geometry.num_layers is 36, but the scenario asks for 24"),
        ("replay.repeats=9", False, "5 runs are recorded, but replay.repeats asks for 9"),
        ("workload.prompts=absent.jsonl", False, "absent.jsonl"),
        ("model.tokenizer=nobody/nothing", None, "not compared with the scenario's workload"),
    ],
)
def test_recorded_runs_that_do_not_fit_are_not_there(override: str, met: bool | None, says: str) -> None:
    scenario = load_scenario("h100_8b_single", [override])
    (found,) = [need for need in needs(scenario) if need.what == "recorded runs"]
    assert found.met is met and says in found.found


def test_a_recorded_workload_is_made_only_where_its_settings_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(scenario: Scenario, directory: Path, *, contract: bool) -> LoadedWorkload:
        made.append(scenario.name)
        return build(scenario, directory, contract=contract)

    monkeypatch.setattr("gst_assets.readiness.build", counted)
    for overrides, number in (([], 0), (["workload.seed=7"], 1)):
        (found,) = [one for one in needs(load_scenario("h100_8b_single", overrides)) if one.what == "recorded runs"]
        assert found.met is True and len(made) == number


def test_a_place_that_a_profile_of_another_degree_holds_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(tmp_path))
    free = Need("a profile", True, "measured by the run, or taken from the artifact root where it fits")
    two = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    assert need_of("a profile", two) == free
    folder = write_bundle(tmp_path / "vidur_profiling" / "cpu" / "qwen3-tiny", load_scenario("smoke"))
    assert need_of("a profile", load_scenario("smoke")) == free
    need = need_of("a profile", two)
    assert need.met is False
    assert need.found.startswith(f"{folder}: holds a profile with engine.tensor_parallel_size 1, but the scenario's is")


def test_too_few_cpus_for_the_ranks_are_named() -> None:
    scenario = load_scenario("smoke", ["engine.tensor_parallel_size=2", "engine.cpu_threads=1000"])
    (need,) = [need for need in needs(scenario, with_engine=True) if need.what == "the device"]
    assert need.met is False and "needs 2000 CPUs, but this process may use" in need.found


@pytest.mark.parametrize(
    ("name", "overrides", "warned"),
    [
        ("h200_30b_a3b_half", [], False),
        ("h200_30b_a3b_half", ["engine.sampling.temperature=0"], True),
        ("h200_30b_a3b_half", ["engine.sampling.temperature=0", "model.checkpoint=/weights"], False),
        ("smoke", [], False),
    ],
)
def test_greedy_random_experts_are_warned_of(name: str, overrides: list[str], warned: bool) -> None:
    warning = router_warning(load_scenario(name, overrides))
    assert (warning is not None and "engine.sampling.temperature is 0 with random weights" in warning) == warned


def test_the_warning_of_a_router_is_shown() -> None:
    greedy = ("-o", "engine.sampling.temperature=0")
    assert "\nwarning: engine.sampling.temperature is 0" in run_gst("show", "h200_30b_a3b_half", *greedy).stdout
    assert "warning" not in run_gst("show", "h200_30b_a3b_half").stdout
