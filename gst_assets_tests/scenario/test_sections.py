"""What the sections of a scenario say of themselves, and which values they refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from gst_assets.errors import ScenarioError
from gst_assets.scenario import (
    load_scenario,
)
from gst_assets_tests.scenario.written import error_of, load


def test_a_scenario_is_frozen(directory: Path) -> None:
    with pytest.raises(ValidationError):
        load(directory).workload.seed = 1  # type: ignore[misc]


def test_digest_depends_on_the_named_sections_alone(directory: Path) -> None:
    one, other = load(directory), load(directory, "replay.repeats=2")
    assert one.digest("engine", "model") == other.digest("engine", "model")
    assert one.digest("replay") != other.digest("replay")
    assert len(one.digest("engine")) == 16


def test_early_stop_is_known(directory: Path) -> None:
    assert not load(directory).engine.sampling.may_stop_early
    assert load(directory, "engine.sampling.stop_token_id_below=1").engine.sampling.may_stop_early
    assert load(directory, "engine.sampling.ignore_eos=false").engine.sampling.may_stop_early


def test_a_profile_without_traffic_is_refused(directory: Path) -> None:
    path = directory / "_parent.yaml"
    path.write_text(path.read_text().replace("  traffic_rates_per_s: [2.0, 5.0]\n", ""))
    assert "profile.traffic_rates_per_s: required key is missing." in error_of(directory)


@pytest.mark.parametrize(
    "url", ["http://me:sesame@gpu-host:8000", "https://sesame@gpu-host/v1", "ftp://me:sesame@h", "http://me:x/sesame@h"]
)
def test_a_password_in_the_servers_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ScenarioError, match=r"engine\.server\.base_url: ") as raised:
        load_scenario("smoke", ["engine.backend=openai", f"engine.server.base_url='{url}'"])
    assert "sesame" not in str(raised.value) and "***@" in str(raised.value)


@pytest.mark.parametrize("address", ["h:99999", "h:0", "h:-1", "h:x", "[::1", ":8000", "h:8000:1"])
def test_an_impossible_port_names_the_setting(address: str) -> None:
    with pytest.raises(ScenarioError, match=r"engine\.server\.base_url: .*impossible host or port.*from 1 to 65535"):
        load_scenario("smoke", ["engine.backend=openai", f"engine.server.base_url='http://{address}/v1'"])
    load_scenario("smoke", ["engine.backend=openai", "engine.server.base_url='http://[::1]:65535/v1'"])


_GAMMA = "workload.arrivals={kind: gamma, rate_per_s: 5, burstiness: 1}"
_LENGTHS = "workload.synthetic={prefill_tokens: {kind: fixed, tokens: 5}, decode_tokens: {kind: fixed, tokens: 5}}"
_SYNTHETIC = ["workload.prompts=null", "workload.num_decode_tokens=null", _LENGTHS]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["workload.num_requests=1000000000000"], "workload.num_requests"),
        ([f"workload.num_decode_tokens={2**63 - 1}"], "workload.num_decode_tokens"),
        ([_GAMMA, "workload.arrivals.burstiness=1e-300"], "workload.arrivals.burstiness"),
        ([_GAMMA, "workload.arrivals.burstiness=1e300"], "workload.arrivals.burstiness"),
        ([_GAMMA, "workload.arrivals.rate_per_s=1e-320"], "workload.arrivals.rate_per_s"),
        ([_GAMMA, "workload.arrivals.rate_per_s=1e300"], "workload.arrivals.rate_per_s"),
        (["workload.arrivals={kind: ramp, start_rate_per_s: 0, end_rate_per_s: 1, duration_s: 1e-320}"], "workload.arrivals.duration_s"),
        (["workload.arrivals={kind: ramp, start_rate_per_s: 1e300, end_rate_per_s: 1, duration_s: 1}"], "workload.arrivals.start_rate_per_s"),
        (["workload.arrivals={kind: piecewise, pieces: [{duration_s: 1e300, rate_per_s: 1}]}"], "workload.arrivals.pieces.0.duration_s"),
        ([f"workload.arrivals={{kind: fixed_interval, interval_ns: {2**63}}}"], "workload.arrivals.interval_ns"),
        ([*_SYNTHETIC, f"workload.synthetic.prefill_tokens.tokens={2**63 - 1}"], "workload.synthetic.prefill_tokens.tokens"),
        ([*_SYNTHETIC, f"workload.synthetic.prefill_tokens={{kind: empirical, tokens: [{2**62}]}}"], "workload.synthetic.prefill_tokens.tokens.0"),
        ([*_SYNTHETIC, f"workload.synthetic.prefill_tokens={{kind: zipf, min_tokens: 1, max_tokens: {2**31 - 1}, exponent: 1}}"], "workload.synthetic.prefill_tokens"),
    ],
)  # fmt: skip
def test_numbers_that_would_overflow_or_fill_the_memory_are_refused(overrides: list[str], key: str) -> None:
    """Two lengths whose sum wraps below max_model_len, a schedule of numbers that are none, tables of a thousand
    gigabytes."""
    with pytest.raises(ScenarioError, match=rf"scenario smoke: {re.escape(key)}: "):
        load_scenario("smoke", overrides)


_GPU = ["hardware.hardware_id=h100", "hardware.device_name=H100"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.dtype=fp8"], "model.dtype: fp8 is none of activations. For FP8 weights set model.quantization=fp8"),
        (["model.quantization=int8"], "model.quantization: Input should be 'fp8' (found 'int8')"),
        (["model.quantization=fp8"], "model.quantization: fp8 needs a GPU, found hardware_id cpu: vLLM's CPU build"),
        (["model.quantization=fp8", *_GPU], "model.quantization: fp8 needs model.dtype bfloat16 or float16, found float32"),
        (["model.quantization=fp8", "model.dtype=float16", "engine.backend=transformers", *_GPU],
         "model.quantization: fp8 needs engine.backend vllm, or runs of it that were recorded; found transformers"),
        (["model.quantization=fp8", "model.dtype=float16", "engine.backend=openai", "engine.server={base_url: 'http://h:1'}", *_GPU],
         "found openai"),
    ],
)  # fmt: skip
def test_fp8_is_refused_where_no_engine_has_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        load_scenario("smoke", overrides)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_fp8_is_a_setting_of_the_model_and_leaves_others_as_they_were() -> None:
    half, fp8 = load_scenario("h100_8b_half"), load_scenario("h200_8b_fp8_half")
    assert fp8.model.quantization == "fp8" and fp8.model.model_dump()["quantization"] == "fp8"
    assert "quantization" not in half.model.model_dump()
    assert fp8.model.geometry == half.model.geometry and fp8.workload == half.workload
    assert fp8.model.name != half.model.name  # it names the bundle's folder
