"""A bundle is read as written, and refused with its first fault named."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from gst_assets.errors import ArtifactError, ContractError, ProfileError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.step_costs.bundle import (
    FORMAT_VERSION,
    Bundle,
    check_bundle,
    check_place,
    find_bundle,
    load_bundle,
    profile_key,
)
from gst_assets.step_costs.engine_costs import OTHER_TERMS, STEP_TERMS
from gst_assets.step_costs.operators import PER_TOKEN_OPERATORS
from gst_assets.step_costs.shapes import StepShape
from gst_assets_tests.profiling import tables

SCENARIO = load_scenario("smoke")
BUNDLE_FILES = {
    "mlp.csv", "attention.csv", "unmodelled.csv", "overheads.csv", "host_speed.csv", "calibration_traffic.csv",
    "operator_coverage.csv", "self_fit.csv",
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle, to be copied."""
    return tables.write_bundle(tmp_path_factory.mktemp("written") / "qwen3-tiny", SCENARIO)


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Bundle:
    return load_bundle(Path(shutil.copytree(written, tmp_path / "cpu" / "qwen3-tiny")))


def _lengths(*pairs: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["num_prefill_tokens", "num_decode_tokens"]).astype("Int64")


def test_a_good_bundle_is_found_read_and_accepted(bundle: Bundle, tmp_path: Path) -> None:
    assert find_bundle(tmp_path, SCENARIO) == bundle.directory
    assert set(bundle.sha256) == BUNDLE_FILES
    per_token_ms = sum(tables.per_token_ms(name, 7) for name in PER_TOKEN_OPERATORS)
    expected_ms = 4 * (per_token_ms + tables.attn_decode_ms(7, 9))
    assert bundle.operator_times().ns(StepShape(7, 63, ())) == pytest.approx(expected_ms * 1e6)
    check_bundle(bundle, SCENARIO)
    check_bundle(bundle, SCENARIO, _lengths((1, 1), (1537, 300)))


MIXTURE = [
    "model.geometry.architecture=MixtralForCausalLM", "model.geometry.num_experts=8",
    "model.geometry.num_experts_per_token=2",
]  # fmt: skip


def test_a_mixture_of_experts_adds_up_its_router_and_the_routers_own_choice(tmp_path: Path) -> None:
    scenario = load_scenario("smoke", MIXTURE)
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", scenario))
    check_bundle(bundle, scenario, _lengths((1, 1), (1537, 300)))
    per_token_ms = sum(tables.per_token_ms(name, 7) for name in PER_TOKEN_OPERATORS if not name.startswith("mlp_"))
    per_token_ms += tables.expert_ms("moe_router", 7) + tables.expert_ms("moe_experts", 7)
    expected_ms = 4 * (per_token_ms + tables.attn_decode_ms(7, 9))
    assert bundle.operator_times().ns(StepShape(7, 63, ())) == pytest.approx(expected_ms * 1e6)


def test_a_bundle_has_the_times_of_one_mlp_or_of_experts(tmp_path: Path) -> None:
    mixture = load_scenario("smoke", MIXTURE)
    for number, (scenario, changes, found) in enumerate(
        (
            (mixture, {"experts": None}, "is empty, and the bundle lists no experts.csv"),
            (mixture, {"mlp": tables.mlp_table(SCENARIO)}, "is filled, but the bundle lists experts.csv"),
            (SCENARIO, {"mlp": tables.mlp_table(mixture)}, "is empty, and the bundle lists no experts.csv"),
        )
    ):
        with pytest.raises(ProfileError, match=rf"mlp\.csv: time_stats\.mlp_up_proj\.median {found}; expected"):
            load_bundle(tables.write_bundle(tmp_path / str(number), scenario, **changes))
    of_mlp = tables.write_bundle(tmp_path / "b", mixture, mlp=tables.mlp_table(SCENARIO), experts=None)
    with pytest.raises(ProfileError, match=r"b: has no experts\.csv, but the scenario's model has experts"):
        check_bundle(load_bundle(of_mlp), mixture)


@pytest.mark.parametrize(
    ("column", "value"), [("n_expert", 9), ("n_expert_per_token", 1), ("n_embd", 512), ("n_expanded_embd", 64)]
)
def test_experts_of_another_shape_are_refused(column: str, value: int, tmp_path: Path) -> None:
    scenario = load_scenario("smoke", MIXTURE)
    experts = tables.experts_table(scenario)
    experts.loc[2, column] = value
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", scenario, experts=experts))
    with pytest.raises(ProfileError, match=rf"experts\.csv: {column} in row 2 \(line 4\) is {value}, but the scenario"):
        check_bundle(bundle, scenario)


def test_experts_that_were_timed_for_too_few_tokens_are_refused(tmp_path: Path) -> None:
    scenario = load_scenario("smoke", MIXTURE)
    experts = tables.experts_table(scenario)
    few = experts[(experts["num_tokens"] < 512) | (experts["routing"] != "router")]
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", scenario, experts=few))
    with pytest.raises(
        ProfileError, match=r"experts\.csv \(router rows\): num_tokens covers 1 to 384, expected 1 to 512"
    ):
        check_bundle(bundle, scenario)


def test_a_dense_bundle_is_not_one_of_a_mixture(bundle: Bundle) -> None:
    with pytest.raises(ProfileError, match="architecture is Qwen3ForCausalLM, but the scenario expects Mixtral"):
        check_bundle(bundle, load_scenario("smoke", MIXTURE))


def test_a_bundle_of_several_devices_serves_that_degree_and_no_other(bundle: Bundle, tmp_path: Path) -> None:
    of_two = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    shared = load_bundle(tables.write_bundle(tmp_path / "two" / "qwen3-tiny", of_two))
    assert set(shared.sha256) == {*BUNDLE_FILES, "all_reduce.csv"} and shared.tensor_parallel_size == 2
    check_bundle(shared, of_two, _lengths((1, 1), (1537, 300)))
    more_ms = 4 * 2 * tables.all_reduce_ms(7)
    shape = StepShape(7, 63, ())
    assert shared.operator_times().ns(shape) == pytest.approx(bundle.operator_times().ns(shape) + more_ms * 1e6)
    with pytest.raises(
        ProfileError, match=r"measured at tensor parallel degree 1 .*, but engine\.tensor_parallel_size is 2\. Measure"
    ):
        check_bundle(bundle, of_two)
    with pytest.raises(ProfileError, match=r"degree 2 .* is 1\. .* or set engine\.tensor_parallel_size=2"):
        check_bundle(shared, SCENARIO)
    assert profile_key(of_two) != profile_key(SCENARIO)


def test_a_bundle_of_several_devices_needs_its_all_reduce_at_that_degree(tmp_path: Path) -> None:
    of_two = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    lost = tables.write_bundle(tmp_path / "a", of_two, all_reduce=None)
    with pytest.raises(ProfileError, match=r"all_reduce\.csv: missing, but mlp\.csv was measured on 2 devices"):
        load_bundle(lost)
    four = tables.all_reduce_table(of_two).assign(num_workers=4)
    four["num_workers"] = four["num_workers"].astype("Int64")
    mixed = tables.write_bundle(tmp_path / "b", of_two, all_reduce=four)
    with pytest.raises(
        ProfileError, match=r"all_reduce\.csv: num_workers in row 0 \(line 2\) is 4, but mlp\.csv begins with 2"
    ):
        load_bundle(mixed)
    short = load_bundle(tables.write_bundle(tmp_path / "c", of_two, all_reduce=tables.all_reduce_table(of_two)[:-1]))
    with pytest.raises(ProfileError, match=r"all_reduce\.csv: num_tokens covers 1 to 384, expected 1 to 512"):
        check_bundle(short, of_two)


@pytest.mark.parametrize(("column", "expected"), [("message_bytes", 2048), ("size", 1024), ("devices_per_node", 2)])
def test_an_all_reduce_of_other_messages_than_the_models_is_refused(column: str, expected: int, tmp_path: Path) -> None:
    of_two = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    sums = tables.all_reduce_table(of_two)
    assert sums.loc[1, "num_tokens"] == 2
    sums.loc[1, column] = 2 * expected
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", of_two, all_reduce=sums))
    with pytest.raises(
        ProfileError,
        match=rf"all_reduce\.csv: {column} in row 1 \(line 3\) is {2 * expected}, but the scenario expects {expected}\.",
    ):
        check_bundle(bundle, of_two)


def test_what_computed_is_taken_from_the_engine_or_else_from_the_profiler(bundle: Bundle) -> None:
    def kernels(worker: object, **settings: str) -> dict[str, str]:
        reported = bundle.meta.engine_settings.model_copy(update={"attention_backend": "unknown"} | settings)
        meta = bundle.meta.model_copy(update={"engine_settings": reported, "worker": worker})
        return replace(bundle, meta=meta).kernels

    assert kernels(None) == {} and bundle.kernels == {"attention_backend": "FORMULA"}
    assert kernels({"expert_kernel": "Seen"}) == {"expert_kernel": "Seen"}, "as bundles of earlier versions have it"
    assert kernels({"expert_kernel": "Seen"}, expert_kernel="Told", all_reduce="nccl") == {
        "expert_kernel": "Told", "all_reduce": "nccl",
    }  # fmt: skip
    shipped = load_bundle(PROJECT_ROOT / "data/profiles/h200/qwen3-30b-a3b")
    assert shipped.kernels == {"attention_backend": "FLASH_ATTN", "expert_kernel": "TritonExperts"}


def test_a_file_that_the_metadata_does_not_list_is_not_read(bundle: Bundle) -> None:
    path = bundle.directory / "run_meta.json"
    meta = json.loads(path.read_text())
    assert bundle.overheads is not None and meta["sha256"].pop("overheads.csv")
    path.write_text(json.dumps(meta))
    assert load_bundle(bundle.directory).overheads is None
    meta["sha256"].pop("mlp.csv")
    path.write_text(json.dumps(meta))
    with pytest.raises(ArtifactError, match=r"run_meta\.json: key sha256 does not list mlp\.csv"):
        load_bundle(bundle.directory)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.tensor_parallel_size=2", "engine.tensor_parallel_size 1, but the scenario's is 2"),
        ("model.dtype=bfloat16", "model.dtype float32, but the scenario's is bfloat16"),
        ("engine.enable_prefix_caching=true", "engine.enable_prefix_caching false, but the scenario's is true"),
        ("engine.max_num_seqs=4", None),
        ("profile.operator_repeats=3", None),
    ],
)
def test_a_profile_of_other_steps_holds_its_place(bundle: Bundle, override: str, message: str | None) -> None:
    other = load_scenario("smoke", [override])
    if message is None:
        check_place(bundle.directory, other)
        return
    with pytest.raises(ProfileError, match=re.escape(f"{bundle.directory}: holds a profile with {message}")):
        check_place(bundle.directory, other)


def test_what_is_no_profile_of_today_holds_no_place(bundle: Bundle, tmp_path: Path) -> None:
    other = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    check_place(tmp_path / "absent", other)
    path = bundle.directory / "run_meta.json"
    text = path.read_text()
    for old, new in ((f'"format_version": {FORMAT_VERSION}', '"format_version": 1'), ('"vidur_profile"', '"sweep"')):
        assert old in text
        path.write_text(text.replace(old, new))
        check_place(bundle.directory, other)
    path.write_text(text[: len(text) // 2])  # it is measured anew, as one that is cut off always was
    check_place(bundle.directory, other)
    path.write_text(text)
    with pytest.raises(ProfileError, match="holds a profile with"):
        check_place(bundle.directory, other)


@pytest.mark.usefixtures("bundle")
def test_a_missing_bundle_lists_what_is_there(tmp_path: Path) -> None:
    other = load_scenario("cpu_qwen3_0_6b")
    with pytest.raises(ProfileError, match=r"model qwen3-0\.6b.*has cpu/qwen3-tiny"):
        find_bundle(tmp_path, other)
    with pytest.raises(ProfileError, match="has none"):
        find_bundle(tmp_path / "elsewhere", SCENARIO)


def test_an_incomplete_or_altered_bundle_is_not_read(bundle: Bundle) -> None:
    (bundle.directory / "mlp.csv").write_text("changed")
    with pytest.raises(ArtifactError, match=r"mlp\.csv"):
        load_bundle(bundle.directory)
    (bundle.directory / "run_meta.json").unlink()
    with pytest.raises(ArtifactError, match=r"run_meta\.json missing"):
        load_bundle(bundle.directory)
    with pytest.raises(ProfileError):
        find_bundle(bundle.directory.parent.parent, SCENARIO)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_missing_or_zero_time_is_refused_with_its_row(value: float, tmp_path: Path) -> None:
    mlp = tables.mlp_table(SCENARIO)
    mlp.loc[3, "time_stats.mlp_act.median"] = value
    with pytest.raises(ContractError, match=r"mlp\.csv: line 5, .*time_stats\.mlp_act\.median"):
        load_bundle(tables.write_bundle(tmp_path / "b", SCENARIO, mlp=mlp))


def test_a_hole_in_the_attention_grid_is_refused_on_reading(tmp_path: Path) -> None:
    attention = tables.attention_table(SCENARIO).drop(index=5)
    with pytest.raises(ProfileError, match="the prefill grid has no value at kv_cache_size 0, prefill_chunk_size 256"):
        load_bundle(tables.write_bundle(tmp_path / "b", SCENARIO, attention=attention))


_OTHER_ORIGIN = {
    "hardware.hardware_id=a100 hardware.device_name=A100": "hardware.hardware_id is cpu, but the scenario expects a100",
    "hardware.device_name=EPYC": "hardware.device_name is 'Formula processor', expected a name that contains 'EPYC'",
    "model.geometry.head_dim=128": "params.model.geometry.head_dim is 64, but the scenario expects 128",
    "model.geometry.num_layers=5": "params.model.geometry.num_layers is 4",
    "model.dtype=bfloat16": "engine_settings.dtype is float32",
    "engine.block_size=64": r"attention.csv: block_size in row 0 \(line 2\) is 32, but the scenario expects 64",
    "engine.async_scheduling=true": "engine_settings.async_scheduling is False",
    "engine.sampling.temperature=0.7": "whether tokens are drawn .* is False, but the scenario expects True",
    "engine.max_num_batched_tokens=1024": "mlp.csv: num_tokens covers 1 to 512, expected 1 to 1024",
    "engine.max_num_seqs=64": r"attention.csv \(decode rows\): batch_size covers 1 to 32, expected 1 to 64",
}


@pytest.mark.parametrize("overrides", _OTHER_ORIGIN)
def test_a_bundle_for_something_else_is_refused(overrides: str, bundle: Bundle) -> None:
    with pytest.raises(ProfileError, match=_OTHER_ORIGIN[overrides]):
        check_bundle(bundle, load_scenario("smoke", overrides.split()))


_GPU = ["hardware.hardware_id=h100", "hardware.device_name=Formula", "model.dtype=bfloat16"]


@pytest.mark.parametrize(("measured", "asked"), [("fp8", "none"), ("none", "fp8")])
def test_a_bundle_of_other_weights_is_refused_with_both_named(measured: str, asked: str, tmp_path: Path) -> None:
    of = {
        name: load_scenario("smoke", [*_GPU, f"model.quantization={'null' if name == 'none' else name}"])
        for name in (measured, asked)
    }
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", of[measured]))
    check_bundle(bundle, of[measured])
    message = (
        rf"run_meta\.json: engine_settings\.quantization is {measured}, but the scenario expects {asked}\. Measure"
    )
    with pytest.raises(ProfileError, match=message):
        check_bundle(bundle, of[asked])
    assert profile_key(of["fp8"]) != profile_key(of["none"])


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([(100, 1949)], "kv_cache_size covers 1 to 2048, expected 100 to 2049"),
        ([(1538, 1)], r"attention.csv \(prefill rows\): kv_cache_size covers 0 to 1536, expected 0 to 1537"),
    ],
)
def test_a_workload_beyond_the_grid_is_refused(pairs: list[tuple[int, int]], named: str, bundle: Bundle) -> None:
    with pytest.raises(ProfileError, match=named):
        check_bundle(bundle, SCENARIO, _lengths(*pairs))


def test_a_grid_that_starts_too_high_is_refused(tmp_path: Path) -> None:
    scenario = load_scenario("smoke", ["profile.decode_context_sizes=[16,2048]"])
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", scenario))
    check_bundle(bundle, scenario, _lengths((16, 8)))
    with pytest.raises(ProfileError, match="kv_cache_size covers 16 to 2048, expected 7 to 30"):
        check_bundle(bundle, scenario, _lengths((7, 8), (20, 10)))


def test_missing_overheads_matter_to_the_calibrated_variant_only(tmp_path: Path) -> None:
    bundle = load_bundle(tables.write_bundle(tmp_path / "b", SCENARIO, overheads=None))
    check_bundle(bundle, load_scenario("smoke", ["simulation.variants=[kernels]"]))
    with pytest.raises(ProfileError, match=r"overheads\.csv: missing, but simulation\.variants has `calibrated`"):
        check_bundle(bundle, SCENARIO)


@pytest.mark.parametrize("version", [None, 1, 3])
def test_a_bundle_of_another_format_is_refused_with_the_remedy(version: int | None, tmp_path: Path) -> None:
    """One without a version is of the first."""
    path = tables.write_bundle(tmp_path / "b", SCENARIO) / "run_meta.json"
    meta = json.loads(path.read_text())
    if version is None:
        del meta["format_version"]
    else:
        meta["format_version"] = version
    path.write_text(json.dumps(meta))
    message = (
        rf"run_meta\.json: format_version is {version or 1}, expected {FORMAT_VERSION}: .* Measure again with `gst"
        r" profile`"
    )
    with pytest.raises(ProfileError, match=message):
        load_bundle(path.parent)


NEEDED = [
    *((term, kind) for term in STEP_TERMS for kind in ("decode", "mixed")),
    *((term, "any") for term in OTHER_TERMS),
    ("prepare_after_idle", "any"),
    ("launch_after_idle", "any"),
]


@pytest.mark.parametrize(("term", "kind"), NEEDED)
def test_each_term_is_needed_for_each_reachable_kind_of_step(term: str, kind: str, bundle: Bundle) -> None:
    frame = tables.overheads_table()
    left = replace(bundle, overheads=frame[(frame["term"] != term) | (frame["step_kind"] != kind)])
    check_bundle(replace(bundle, overheads=frame), SCENARIO)
    with pytest.raises(
        ProfileError, match=rf"overheads\.csv: no {term} rows of step_kind {kind}; expected each at least once"
    ):
        check_bundle(left, SCENARIO)


def test_workers_of_their_own_have_a_term_that_others_have_not(bundle: Bundle, tmp_path: Path) -> None:
    of_two = load_scenario("smoke", ["engine.tensor_parallel_size=2"])
    lost = tables.write_bundle(tmp_path / "two", of_two, overheads=tables.overheads_table())
    with pytest.raises(ProfileError, match=r"overheads\.csv: no form rows of step_kind any; expected each"):
        check_bundle(load_bundle(lost), of_two)
    frame = tables.overheads_table(has_own_workers=True)
    row = int((frame["term"] == "form").to_numpy(dtype=bool).argmax())
    with pytest.raises(ProfileError, match=rf"term in row {row} \(line {row + 2}\) is form, .* measured on one device"):
        check_bundle(replace(bundle, overheads=frame), SCENARIO)


def test_captured_graphs_make_a_third_kind_of_step_reachable(bundle: Bundle) -> None:
    captured = bundle.meta.engine_settings.model_copy(update={"cudagraph_capture_sizes": [1, 256]})
    graphs = replace(bundle, meta=bundle.meta.model_copy(update={"engine_settings": captured}))
    named = ", no ".join(f"{term} rows of step_kind mixed_eager" for term in STEP_TERMS)
    with pytest.raises(ProfileError, match=f"no {named}; expected"):
        check_bundle(graphs, SCENARIO)


def test_the_hosts_speed_matters_where_it_is_simulated(bundle: Bundle) -> None:
    speed, still = bundle.host_speed, load_scenario("smoke", ["simulation.host_variability=false"])
    assert speed is not None
    for part in ("decode", "prefill", "delivery"):
        without = replace(bundle, host_speed=speed[speed["part"] != part])
        with pytest.raises(ProfileError, match=rf"host_speed\.csv: no row with part {part}, .*host_variability=false"):
            check_bundle(without, SCENARIO)
    absent = replace(bundle, host_speed=None)
    with pytest.raises(ProfileError, match=r"host_speed\.csv: missing"):
        check_bundle(absent, SCENARIO)
    check_bundle(absent, still)
    assert absent.engine_costs(512, None).ratio(True, 10**9) == 1.0
    with pytest.raises(ProfileError, match=r"no host_speed\.csv, which variant calibrated needs"):
        absent.engine_costs(512, 0)


@pytest.mark.parametrize(
    ("directory", "scenario"),
    [
        ("h100/qwen3-8b", "h100_8b_half"),
        ("h100/llama-3.1-8b", "h100_llama_8b_quarter"),
        ("h200x2/qwen3-32b", "h200x2_32b_half"),
        ("h200/qwen3-30b-a3b", "h200_30b_a3b_half"),
    ],
)
def test_the_shipped_bundle_serves_its_scenario(directory: str, scenario: str) -> None:
    check_bundle(load_bundle(PROJECT_ROOT / "data" / "profiles" / directory), load_scenario(scenario))


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (["model"], "key params.model.geometry: Input should be a valid dictionary"),
        (["model", "geometry"], "key params.model.geometry: Input should be a valid dictionary"),
        (["model", "geometry", "num_layers"], "key params.model.geometry.num_layers: Field required"),
        (["engine"], "key params.engine.sampling: Input should be a valid dictionary"),
        (["engine", "sampling"], "key params.engine.sampling: Input should be a valid dictionary"),
    ],
)
def test_metadata_that_does_not_say_what_was_measured(lost: list[str], named: str, tmp_path: Path) -> None:
    path = tables.write_bundle(tmp_path / "b", SCENARIO) / "run_meta.json"
    meta = json.loads(path.read_text())
    section = meta["params"]
    for key in lost[:-1]:
        section = section[key]
    del section[lost[-1]]
    path.write_text(json.dumps(meta))
    with pytest.raises(ContractError, match=re.escape(f"{path}: {named}")):
        check_bundle(load_bundle(path.parent), SCENARIO)


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("workload.num_decode_tokens=9", False),
        ("engine.num_kv_blocks=512", False),
        ("engine.sampling.stop_token_id_below=3", False),
        ("profile.root=somewhere", False),
        ("engine.sampling.temperature=0.5", True),
        ("engine.max_num_seqs=16", True),
        ("engine.enforce_eager=false", True),
        ("model.geometry.head_dim=128", True),
        ("model.dtype=float16", True),
        ("hardware.device_name=Xeon", True),
        ("profile.traffic_segment_s=9.0", True),
    ],
)
def test_the_key_follows_what_is_measured_and_nothing_else(override: str, changes: bool) -> None:
    assert (profile_key(load_scenario("smoke", [override])) != profile_key(SCENARIO)) is changes


def test_a_setting_that_was_added_since_changes_no_key_where_it_is_not_used() -> None:
    """The key of commit 35991c4: another one would have every bundle measured again."""
    assert profile_key(load_scenario("h100_8b_half")) == "2a490b28de642acb"
    assert profile_key(load_scenario("h100_8b_half", ["profile.short_traffic_rates_per_s=[9]"])) != "2a490b28de642acb"


def test_the_key_survives_the_way_through_json() -> None:
    again = Scenario.model_validate(json.loads(SCENARIO.model_dump_json()))
    assert profile_key(again) == profile_key(SCENARIO)


def test_measuring_imports_nothing_a_gpu_host_lacks() -> None:
    code = (
        "import sys, gst_assets.profiling.measure_bundle, gst_assets.profiling.worker_ops\nheavy = {'dagster',"
        " 'pandera', 'vidur', 'omegaconf', 'torch', 'vllm', 'transformers', 'sklearn',"
        " 'matplotlib'}\nprint(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
