"""Vidur as it ships: request times equal to `python -m vidur.main`, forests that are searched once, and what Vidur
cannot do said in one error.

Vidur's whole grid search takes some twenty minutes of processor time. Here its forests are small ones of fixed
parameters, on both sides of every comparison; the search itself runs over few candidates.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gst_assets.contracts.listing import read_listing
from gst_assets.errors import ContractError, ProfileError, SimulationError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.step_costs.bundle import Bundle, load_bundle
from gst_assets.testing import simulation_inputs as support
from gst_assets.vidur_adapter import event_loop, published, registration
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets_tests.gst_command import run_gst
from gst_assets_tests.profiling import tables

MS = 1_000_000
SMALL = {"n_estimators": 5, "max_depth": 8, "min_samples_split": 2}
OPERATORS = (
    "attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "mlp_act", "input_layernorm",
    "post_attention_layernorm", "attn_rope", "add", "attn_kv_cache_save", "attn_prefill", "attn_decode",
)  # fmt: skip
WIDE_HEADS = "model.geometry.head_dim=128"
"""Twice what Vidur computes of this geometry, as it does of Qwen3-0.6B."""
TWO_DEVICES = "engine.tensor_parallel_size=2"
SCENARIO = support.scenario(WIDE_HEADS)


def write_small(directory: Path, num_devices: int = 1) -> None:
    """Record small forests as what the search chose."""
    operators = (*OPERATORS, "all_reduce") if num_devices > 1 else OPERATORS
    path, found = directory / published.FORESTS_FILE, dict.fromkeys(operators, SMALL)
    digests = published.csv_digests(directory, num_devices)
    published.write_forests(path, found, digests, published.PublishedConfig().search())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle on disk, with the file of chosen forests in it."""
    return _bundle(tmp_path_factory.mktemp("root"), SCENARIO)


@pytest.fixture(scope="module")
def bundle_of_two(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same of an engine on two devices."""
    return _bundle(tmp_path_factory.mktemp("root"), support.scenario(WIDE_HEADS, TWO_DEVICES))


def _bundle(root: Path, scenario: Scenario) -> Bundle:
    directory = tables.write_bundle(root / "cpu" / "tiny", scenario)
    write_small(directory, scenario.engine.tensor_parallel_size)
    return load_bundle(directory)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(
    rows: list[tuple[int, int, int]], bundle: Bundle, cache: Path | None, *overrides: str, of: Scenario = SCENARIO
) -> SimulationResult:
    """Simulate requests given as (inter-arrival ns, prompt tokens, decode tokens) and check every invariant."""
    scenario = support.scenario(WIDE_HEADS, *overrides) if overrides else of
    lengths, intervals = support.workload(rows)
    result = simulate(scenario, lengths, intervals, bundle, "published", cache_dir=cache)
    support.check(result, lengths, intervals)
    return result


def test_the_share_simulated_is_told(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "_STEPS_BETWEEN_SHARES", 4)
    told: list[float] = []
    lengths, intervals = support.workload([(50 * MS, 20, 6)] * 8)
    simulate(SCENARIO, lengths, intervals, bundle, "published", cache_dir=tmp_path, on_share=told.append)
    assert len(told) > 3 and told == sorted(told) and len(set(told)) > 3 and told[-1] <= 1


# --- against Vidur's own command --------------------------------------------------------------------------------------


def vidur_main(case: dict[str, Any], area: Path) -> list[list[int]]:
    """Request times of Vidur's own command, in ns: arrived, scheduled, prefill completed, completed."""
    (area / "case.json").write_text(json.dumps(case))
    grid = {"num_estimators": 5, "max_depth": 8, "min_samples_split": 2, "num_training_job_threads": 1}
    options = [
        text
        for name, value in grid.items()
        for text in (f"--random_forrest_execution_time_predictor_config_{name}", str(value))
    ]
    program = [sys.executable, "-m", "gst_assets_tests.vidur_adapter.vidur_main", "case.json", "times.json", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(program, cwd=area, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [[round(seconds * 1e9) for seconds in times] for times in json.loads((area / "times.json").read_text())]


@pytest.mark.parametrize("num_devices", [1, 2])
def test_request_times_equal_those_of_vidurs_command(
    num_devices: int, bundle: Bundle, bundle_of_two: Bundle, cache: Path, tmp_path: Path
) -> None:
    bundle = bundle_of_two if num_devices == 2 else bundle
    # Ties, prompts of several chunks, a last chunk of one token, a single token asked for, more requests than a step
    # takes.
    draw = random.Random(5)
    rows = [(0, 513, 4), (0, 700, 30), (0, 1, 1), (3 * MS, 1025, 2)]
    rows += [(draw.choice([0, draw.randrange(30 * MS)]), draw.randint(1, 900), draw.randint(1, 60)) for _ in range(60)]
    overrides = [f"engine.tensor_parallel_size={num_devices}", "engine.max_num_seqs=16"]
    overrides += ["engine.max_num_batched_tokens=512", "engine.num_kv_blocks=1500"]
    result = run(rows, bundle, cache, *overrides)
    geometry, arrivals = SCENARIO.model.geometry, result.requests["arrival_time_ns"]
    case = {
        "mlp": str(bundle.directory / "mlp.csv"),
        "attention": str(bundle.directory / "attention.csv"),
        "all_reduce": str(bundle.directory / "all_reduce.csv"),
        "num_devices": num_devices,
        "random_state": published.RANDOM_STATE,
        "model": {
            "num_layers": geometry.num_layers,
            "num_q_heads": geometry.num_q_heads,
            "num_kv_heads": geometry.num_kv_heads,
            "embedding_dim": geometry.hidden_size,
            "mlp_hidden_dim": geometry.mlp_hidden_size,
            "max_model_len": SCENARIO.model.max_model_len,
            "vocab_size": geometry.vocab_size,
        },
        "block_size": SCENARIO.engine.block_size,
        "num_kv_blocks": 1500,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "max_chunk": 512,
        "max_tokens": 2048,
        "requests": [[int(at), prompt, output] for at, (_, prompt, output) in zip(arrivals, rows, strict=True)],
    }
    names = ["arrival_time_ns", "scheduled_time_ns", "first_token_time_ns", "completion_time_ns"]
    assert result.requests[names].to_numpy().tolist() == vidur_main(case, tmp_path)
    assert result.iterations["num_waiting"].max() > 0
    assert result.num_preemptions == 0


def test_two_devices_pay_vidurs_all_reduce_twice_a_layer(bundle: Bundle, bundle_of_two: Bundle, cache: Path) -> None:
    rows = [(0, 1, 1)]
    alone, shared = run(rows, bundle, cache), run(rows, bundle_of_two, cache, TWO_DEVICES)
    more_ns = (shared.requests["ttft_ns"] - alone.requests["ttft_ns"]).iloc[0]
    # One token counts as eight, between two points of which a forest knows only the lower.
    launched_ms = shared.settings["all_reduce_launch_overhead_ms"]
    assert launched_ms == 0.02 and "all_reduce_launch_overhead_ms" not in alone.settings
    per_sum_ms = more_ns / 1e6 / (2 * SCENARIO.model.geometry.num_layers)
    assert tables.all_reduce_ms(1) <= per_sum_ms - launched_ms <= tables.all_reduce_ms(16)
    assert shared.settings["tensor_parallel_size"] == 2
    assert shared.settings["kv_bytes_per_token"] * 2 == alone.settings["kv_bytes_per_token"]


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2 * MS, 25 * MS]), st.integers(1, 1200), st.integers(1, 40)),
        min_size=1, max_size=12,
    )
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_every_workload_gives_tables_that_keep_the_contract(
    bundle: Bundle, cache: Path, rows: list[tuple[int, int, int]]
) -> None:
    first = run(rows, bundle, cache)
    # Vidur's ids and counters go on from one simulation of a process to the next.
    assert support.csv_bytes(run(rows, bundle, cache)) == support.csv_bytes(first)


def test_the_settings_are_vidurs_own(bundle: Bundle, cache: Path) -> None:
    found = run([(0, 10, 2)], bundle, cache).settings
    assert (found["variant"], found["predictor"], found["forest"]["chosen"]["add"]) == ("published", "forest", SMALL)
    assert found["forest"]["n_estimators"] == [250, 500, 750]
    assert found["head_dim"] == 64  # hidden_size / num_q_heads; the model's is 128
    assert (found["num_null_blocks"], found["watermark_blocks_fraction"]) == (0, 0.01)
    assert found["attention_batching_overhead_fraction"] == 0.1
    assert found["rounding_tokens"] == {"step_tokens": 8, "prefill_chunk": 32, "context": 256}
    assert (found["step_overheads"], found["async_scheduling"]) == (False, False)


def test_a_batch_of_decodes_pays_vidurs_overhead_and_one_decode_does_not(bundle: Bundle, cache: Path) -> None:
    def decode_step_ns(count: int) -> int:
        steps = run([(0, 10, 3)] * count, bundle, cache).iterations
        return int(steps["completion_time_ns"].iloc[-1] - steps["scheduled_time_ns"].iloc[-1])

    stored = published.TableCache(cache, next(cache.glob("*.npz")).stem.removeprefix("vidur_tables_")).load()
    assert stored is not None
    layers = SCENARIO.model.geometry.num_layers
    others = sum(
        stored[name][8.0,] for name in OPERATORS if name not in ("attn_kv_cache_save", "attn_decode", "attn_prefill")
    )
    for count, factor in ((1, 1.0), (3, 1.1)):
        expected_ms = layers * (others + factor * stored["attn_decode"][count, 256])
        assert decode_step_ns(count) == pytest.approx(expected_ms * 1e6, abs=2)


# --- forests ----------------------------------------------------------------------------------------------------------


def predictor(bundle: Bundle, **changes: Any) -> published.PublishedPredictor:
    config = published.PublishedConfig(
        directory=bundle.directory, prediction_max_batch_size=8, prediction_max_prefill_chunk_size=64,
        prediction_max_tokens_per_request=512, **changes,
    )  # fmt: skip
    replica = published._replica(SCENARIO.model.geometry, SCENARIO.model.max_model_len, 1)
    with registration.quiet():
        return published.PublishedPredictor(config, replica, published.CacheConfig(block_size=32))


def test_a_search_gives_the_same_tables_with_any_number_of_processes_and_as_its_choice_alone(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = {"num_estimators": [2, 4], "max_depth": [6], "min_samples_split": [2], "cache_dir": str(tmp_path)}
    alone = predictor(bundle, num_training_job_threads=1, **few)
    assert "published: forest 12 of 12, attn_decode: " in capfd.readouterr().err
    assert set(alone.chosen) == set(OPERATORS)
    assert len({json.dumps(chosen) for chosen in alone.chosen.values()}) > 1
    for other in (
        predictor(bundle, num_training_job_threads=2, **few),
        predictor(bundle, chosen=alone.chosen, cache_dir=str(tmp_path)),
    ):
        assert other.chosen == alone.chosen
        assert other._predictions == alone._predictions
    assert list(tmp_path.rglob("*.pkl")) == []


def test_what_was_searched_is_kept_beside_the_tables(tmp_path: Path) -> None:
    directory, cache = tables.write_bundle(tmp_path / "b", SCENARIO), tmp_path / "cache"
    config = published.published_config(
        SCENARIO.model.geometry,
        published.PublishedLimits(16, 100, 4, 64, 256, 4, 64, 256, 1),
        [(0, 0, 8, 2)],
        directory,
        cache,
    )
    settings_of: Any = config.execution_time_predictor_config
    assert settings_of.chosen is None
    kept = published._kept_path(cache, published.csv_digests(directory, 1))
    published.write_forests(
        kept, dict.fromkeys(OPERATORS, SMALL), published.csv_digests(directory, 1), settings_of.search()
    )
    assert published._known_forests(directory, cache, 1) == dict.fromkeys(OPERATORS, SMALL)
    kept.write_text("{")
    assert published._known_forests(directory, cache, 1) is None


def test_the_command_writes_what_it_chose_and_a_bundle_with_it_still_is_what_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tables.write_bundle(tmp_path / "b", SCENARIO)
    before = load_bundle(directory).sha256
    published.search_bundle(directory, 1, print, num_estimators=[2], max_depth=[2], min_samples_split=[2, 5])
    assert f"{published.FORESTS_FILE}: 12 forests chosen in" in capfd.readouterr().out
    assert load_bundle(directory).sha256 == before
    assert set(read_listing(directory) or ()) == {published.FORESTS_FILE, "run_meta.json"}
    with pytest.raises(ProfileError, match=r"published_forests\.json: found by the search .*\[2\], 'max_depth'"):
        run([(0, 10, 2)], load_bundle(directory), None)
    done = run_gst("search-forests", tmp_path / "absent")
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {tmp_path / 'absent'}: ")


def test_there_are_no_forests_of_a_mixture_of_experts(tmp_path: Path) -> None:
    mixture = load_scenario(
        "smoke", ["model.geometry.architecture=MixtralForCausalLM", "model.geometry.num_experts=8",
                  "model.geometry.num_experts_per_token=2"],
    )  # fmt: skip
    directory = tables.write_bundle(tmp_path / "b", mixture)
    with pytest.raises(ProfileError, match=r"of a mixture of experts, for which Vidur .* has no layer"):
        published.search_bundle(directory, 1, print)


def test_a_search_of_two_devices_has_one_forest_more_and_is_bound_to_its_table(
    bundle_of_two: Bundle, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(bundle_of_two.directory, tmp_path / "two"))
    (directory / published.FORESTS_FILE).unlink()
    few = {"num_estimators": [2], "max_depth": [2], "min_samples_split": [2, 5]}
    found = json.loads(published.search_bundle(directory, 1, print, **few).read_text())
    assert set(found["chosen"]) == {*OPERATORS, "all_reduce"}
    assert set(found["csv_sha256"]) == {"mlp.csv", "attention.csv", "all_reduce.csv"}
    write_small(directory, 2)
    with (directory / "all_reduce.csv").open("a") as table:
        table.write("\n")
    with pytest.raises(ProfileError, match=r"chosen on a all_reduce\.csv with sha256 \w+, but the one next to it"):
        published.read_forests(directory / published.FORESTS_FILE, published.csv_digests(directory, 2))


def test_tables_are_kept_by_content(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0, 100, 5), (MS, 40, 9)]
    train, trained = published.PublishedPredictor._train_model, []

    def watched(self: published.PublishedPredictor, model_name: str, *arguments: Any, **named: Any) -> Any:
        trained.append(model_name)
        return train(self, model_name, *arguments, **named)

    monkeypatch.setattr(published.PublishedPredictor, "_train_model", watched)
    cold = run(rows, bundle, tmp_path)
    assert len(trained) == published.NUM_FORESTS
    warm = run(rows, bundle, tmp_path)
    assert len(trained) == published.NUM_FORESTS
    assert support.csv_bytes(cold) == support.csv_bytes(warm)
    assert cold.settings == warm.settings
    assert len(list(tmp_path.glob("*.npz"))) == 1
    slower = tables.mlp_table(SCENARIO)
    slower["time_stats.mlp_act.median"] *= 2
    directory = tables.write_bundle(tmp_path / "slower", SCENARIO, mlp=slower)
    write_small(directory)
    changed = run(rows, load_bundle(directory), tmp_path)
    assert changed.requests["ttft_ns"].min() > cold.requests["ttft_ns"].min()
    assert len(list(tmp_path.glob("*.npz"))) == 2
    monkeypatch.setattr(published, "code_sha256", lambda: "of other code")
    run(rows, bundle, tmp_path)
    assert len(trained) == 3 * published.NUM_FORESTS
    assert len(list(tmp_path.glob("*.npz"))) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"csv_sha256": {"mlp.csv": "0" * 64, "attention.csv": "0" * 64}},
            r"chosen on a mlp\.csv with sha256 0{16}, but",
        ),
        ({"csv_sha256": {}}, r"chosen on a mlp\.csv with sha256 unknown"),
        ({"search": {}}, r"found by the search \{\}, expected Vidur's"),
        ({"chosen": {"add": SMALL}}, "expected n_estimators, max_depth, min_samples_split of 12 operators"),
        (
            {"chosen": {name: {"max_depth": 1} for name in OPERATORS}},
            "expected n_estimators, max_depth, min_samples_split",
        ),
    ],
)
def test_a_file_of_other_forests_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = tables.write_bundle(tmp_path / "b", SCENARIO)
    write_small(directory)
    path = directory / published.FORESTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProfileError, match=message) as caught:
        run([(0, 10, 2)], load_bundle(directory), None)
    assert f"gst search-forests {directory}" in str(caught.value)
    path.write_text("{")
    with pytest.raises(ContractError, match="not valid JSON"):
        run([(0, 10, 2)], load_bundle(directory), None)


def test_a_bundle_of_another_block_size_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ProfileError, match=r"no row for operator attn_kv_cache_save.*blocks of 16 tokens"):
        published.PublishedPredictor(
            published.PublishedConfig(directory=bundle.directory, chosen=dict.fromkeys(OPERATORS, SMALL)),
            published._replica(SCENARIO.model.geometry, SCENARIO.model.max_model_len, 1),
            published.CacheConfig(block_size=16),
        )


# --- what Vidur cannot do ---------------------------------------------------------------------------------------------


def test_a_preempted_request_is_named(bundle: Bundle, cache: Path) -> None:
    rows = [(0, 320, 200), (MS, 320, 200)]  # 10 blocks each at admission, 6 more each later
    with pytest.raises(SimulationError, match=r"request 1 was preempted .*engine\.num_kv_blocks 25\).*Raise engine"):
        run(rows, bundle, cache, "engine.num_kv_blocks=25")


def test_a_request_that_vidurs_watermark_keeps_out_is_named(tmp_path: Path) -> None:
    overrides = ("engine.num_kv_blocks=200", "engine.block_size=16", "model.max_model_len=4096")
    directory = tables.write_bundle(tmp_path / "b", support.scenario(WIDE_HEADS, *overrides))
    write_small(directory)
    with pytest.raises(
        SimulationError, match=r"request 0 is never admitted: its prompt needs 199 KV blocks.*keeps 1% of"
    ):
        run([(0, 199 * 16, 1)], load_bundle(directory), None, *overrides)
