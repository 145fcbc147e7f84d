"""Each mistake in a scenario names its key, its file or override, and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets_tests.scenario.written import MINE, error_of

_EXPECTED_FORM = "expected dotted.key=value, e.g. workload.num_decode_tokens=32"
_ARRIVALS = "workload.arrivals"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("workload.num_decode_tokens", _EXPECTED_FORM),
        ("=3", _EXPECTED_FORM),
        ("workload..seed=3", _EXPECTED_FORM),
        ("profile.num_tokens[0]=3", f"{_EXPECTED_FORM} or profile.num_tokens=[1, 2, 4] (a list is given whole)"),
        ("profile.num_tokens.0=3", _EXPECTED_FORM),
        ("name=other", "name cannot be overridden"),
        ("extends=_parent", "extends cannot be overridden"),
        ("overrides=[]", "overrides cannot be overridden; give the overrides one by one"),
        ("foo=1", "foo: unknown key. Allowed here: capacity, comparison, description, engine, hardware, model, nightly, profile, regression, replay, simulation, sweep, workload."),
        ("model.foo=1", "model.foo: unknown key. Allowed here: checkpoint, config, dtype, fold_token_ids, geometry, max_model_len, name, quantization, tokenizer."),
        ("workload.foo=1", "workload.foo: unknown key. Allowed here: arrivals, num_decode_tokens, num_requests, prompts, seed, sessions, synthetic, trace."),
        (f"{_ARRIVALS}.rate=1", f"{_ARRIVALS}.rate: unknown key. Allowed here: kind, rate_per_s."),
        (f"{_ARRIVALS}.rate_per_s=-1", f"{_ARRIVALS}.rate_per_s: Input should be greater than 0 (found -1)."),
        (f"{_ARRIVALS}.rate_per_s=0", f"{_ARRIVALS}.rate_per_s: Input should be greater than 0 (found 0)."),
        (f"{_ARRIVALS}.rate_per_s=.inf", f"{_ARRIVALS}.rate_per_s: Input should be a finite number"),
        (f"{_ARRIVALS}.rate_per_s='6'", f"{_ARRIVALS}.rate_per_s: Input should be a valid number (found '6')."),
        (f"{_ARRIVALS}.kind=weibull", f"{_ARRIVALS}.kind: expected one of fixed_interval, poisson, gamma, static, ramp, piecewise, trace, found 'weibull'."),
        (f"{_ARRIVALS}.kind=null", f"{_ARRIVALS}.kind: expected one of fixed_interval, poisson, gamma, static, ramp, piecewise, trace, found 'None'."),
        (f"{_ARRIVALS}=5", f"{_ARRIVALS}: expected a mapping of settings, found 5."),
        (f"{_ARRIVALS}=", f"{_ARRIVALS}: expected a mapping of settings, found None."),
        ("engine=1", "engine: expected a mapping of settings, found 1."),
        ("engine.max_num_seqs=true", "engine.max_num_seqs: Input should be a valid integer (found True)."),
        ("engine.max_num_seqs=2.0", "engine.max_num_seqs: Input should be a valid integer (found 2.0)."),
        ("engine.backend=sglang", "engine.backend: Input should be 'vllm'"),
        ("nightly=1", "nightly: Input should be a valid boolean (found 1)."),
        ("workload.seed=-1", "workload.seed: Input should be greater than or equal to 0 (found -1)."),
        ("workload.seed=???", "workload.seed: Missing mandatory value"),
        ("workload.seed=${nope}", "workload.seed: Interpolation key 'nope' not found."),
        ("workload.seed=${workload.seed}", "workload.seed: "),
        ("workload.seed=${nope", "workload.seed: not a valid interpolation"),
        ("profile.num_tokens=[1,2", "profile.num_tokens: the value is not valid YAML"),
        ("profile.num_tokens=1,2", "profile.num_tokens: Input should be a valid array (found '1,2')."),
        ("profile.num_tokens=[1,x]", "profile.num_tokens.1: Input should be a valid integer (found 'x')."),
        ("profile.traffic_rates_per_s=[0, 5]", "profile.traffic_rates_per_s.0: Input should be greater than 0 (found 0)."),
        ("profile.traffic_segment_s=0", "profile.traffic_segment_s: Input should be greater than 0 (found 0)."),
        ("profile.calibration_steps=5", "profile.calibration_steps: unknown key. Allowed here: calibration_prefill_sizes, "),
        ("profile.calibration_decode_batch_sizes=[1]", "profile.calibration_decode_batch_sizes: unknown key."),
        ("simulation.predictor=forest", "simulation.predictor: unknown key."),
        ("simulation.kv_cache_granularity=8", "simulation.kv_cache_granularity: unknown key."),
        ("engine.sampling.stop_token_ids=[-1]", "engine.sampling.stop_token_ids.0: Input should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_with_its_key(directory: Path, override: str, says: str) -> None:
    message = error_of(directory, "workload.num_decode_tokens=8", override)
    assert message.startswith(f"override {override!r}") and says in message
    assert "num_decode_tokens=8" not in message
    assert "poisson." not in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("engine.max_num_seqs=600", "engine: max_num_batched_tokens 512 is below max_num_seqs 600"),
        ("engine.block_size.x=1", "engine.block_size: Input should be a valid integer (found {'x': 1})."),
        ("model.geometry.num_kv_heads=3", "model.geometry: num_q_heads 4 is not a multiple of num_kv_heads 3."),
        (
            "model.max_model_len=5000",
            "model: max_model_len 5000 exceeds geometry.max_position_embeddings 4096. Set model.max_model_len to 4096 or less.",
        ),
        ("hardware.hardware_id=a100", "hardware: device_name is required for an accelerator, e.g. device_name: A100."),
        ("profile.num_tokens=[2, 1]", "profile: num_tokens must be ascending without repeats, found [2, 1]."),
        ("profile.decode_batch_sizes=[]", "profile: decode_batch_sizes must not be empty."),
        ("profile.decode_batch_sizes=[0, 1]", "profile: decode_batch_sizes must hold values of at least 1, found 0."),
        ("profile.calibration_prefill_sizes=[]", "profile: calibration_prefill_sizes must not be empty."),
        ("profile.traffic_rates_per_s=[]", "profile: traffic_rates_per_s must not be empty."),
        (
            "profile.traffic_rates_per_s=[5, 0.5]",
            "profile: traffic_rates_per_s must be ascending without repeats, found [5.0, 0.5].",
        ),
        ("comparison.warn_band=0.01", "comparison: warn_band 0.01 is below pass_band 0.05."),
        ("workload.arrivals.kind=fixed_interval", "workload.arrivals.interval_ns: required key is missing."),
    ],
)
def test_settings_that_contradict_each_other_name_the_file_and_the_override(
    directory: Path, override: str, says: str
) -> None:
    message = error_of(directory, "replay.repeats=2", override)
    assert (
        message.startswith(f"{directory / 'mine.yaml'} with override {override!r} of scenario mine: ")
        and says in message
    )
    assert "replay.repeats" not in message


def test_several_mistakes_are_counted(directory: Path) -> None:
    assert "(2 settings are wrong in all)" in error_of(directory, "engine.foo=1", "engine.bar=1")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("num_requests: 96", "num_requests: -3", 6, "workload.num_requests: Input should be greater than 0 (found -3)."),
        ("num_requests: 96", "num_requestz: 96", 6, "workload.num_requestz: unknown key. Allowed here: arrivals"),
        ("rate_per_s: 6.0", "rate: 6.0", 8, "workload.arrivals.rate: unknown key. Allowed here: kind, rate_per_s."),
        ("rate_per_s: 6.0", "rate_per_s: fast", 8, "workload.arrivals.rate_per_s: Input should be a valid number (found 'fast')"),
        ("kind: poisson", "kind: weibull", 8, "workload.arrivals.kind: expected one of fixed_interval, poisson, gamma, static"),
        ("seed: 20260101", "seed: ${nope}", 9, "workload.seed: Interpolation key 'nope' not found."),
        ("seed: 20260101", "seed: ${nope", 9, "workload.seed: not a valid interpolation"),
        ("seed: 20260101", "seed: [1", 10, "not valid YAML ("),
        ("extends: _parent", "extends: _parrot", 1, "extends names '_parrot', but"),
        ("extends: _parent", "extends: 3", 1, "extends: expected a scenario name or a list of them, found 3."),
        ("extends: _parent", "extends: [_parent, {a: 1}]", 1, "extends: expected a scenario name or a list of them"),
        ("nightly: true", "overrides: [nightly=true]", 3, "overrides: overrides are given with a run. Write the settings"),
        ("nightly: true", "name: other", 3, "name: the file's name is the scenario's name. Remove the key."),
        ("repeats: 3", "repeats: 0", 11, "replay.repeats: Input should be greater than 0 (found 0)."),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line_and_key(directory: Path, old: str, new: str, line: int, says: str) -> None:
    assert MINE.count(old) == 1
    path = directory / "mine.yaml"
    path.write_text(MINE.replace(old, new))
    message = error_of(directory)
    assert message.startswith(f"{path}: line {line}: ") and says in message, message
    assert ".poisson" not in message


def test_a_mistake_in_a_parent_names_the_parent(directory: Path) -> None:
    path = directory / "_parent.yaml"
    text = path.read_text().replace("block_size: 32", "block_size: 0")
    path.write_text(text)
    line = text[: text.index("block_size: 0")].count("\n") + 1
    message = error_of(directory)
    assert message == f"{path}: line {line}: engine.block_size: Input should be greater than 0 (found 0)."
    assert f"line {line}" not in error_of(directory, "engine.block_size=-1")


def test_a_mistake_over_a_parents_setting_names_the_file_that_made_it(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(MINE + "engine:\n  block_size: 0\n")
    assert error_of(directory).startswith(f"{path}: line 13: engine.block_size: Input should be greater than 0")


def test_a_missing_key_names_the_scenario_file(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(MINE.replace("  seed: 20260101\n", ""))
    assert error_of(directory) == f"{path}: workload.seed: required key is missing."
    path.write_text(MINE.replace("kind: poisson, ", ""))
    assert (
        "workload.arrivals.kind: expected one of fixed_interval, poisson, gamma, static, ramp, piecewise, trace, found"
        " none." in error_of(directory)
    )
