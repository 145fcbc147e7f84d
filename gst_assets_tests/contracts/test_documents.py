"""JSON documents: what is written reads back, and each wrong key, line or file is named."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gst_assets.contracts.documents import (
    CapacityMeta,
    ComparisonMeta,
    Document,
    HistoryMeta,
    NightMeta,
    OwnRunMeta,
    ProfileMeta,
    PublishedForests,
    RealRunFacts,
    RealRunMeta,
    RegressionMeta,
    RunMeta,
    SimulationFacts,
    SweepMeta,
    SweepPartMeta,
    VidurRunMeta,
    WorkloadMeta,
    read_document,
    timestamp_slug,
    write_document,
)
from gst_assets.errors import ContractError

_HYDRA = {"config_path": "scenarios/s.yaml", "config_name": "s", "overrides": ["a=1"]}
_ENGINE = {
    "backend": "vllm",
    "engine_version": "1",
    "dtype": "bfloat16",
    "max_model_len": 10,
    "max_num_seqs": 2,
    "max_num_batched_tokens": 8,
    "block_size": 16,
    "num_kv_blocks": 4,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "enforce_eager": True,
    "attention_backend": "TORCH_SDPA",
}
_RUN = {
    "run_id": "r",
    "started_at": "2026-01-02T03:04:05Z",
    "ended_at": "2026-01-02T03:04:06.5+02:00",
    "git_commit": None,
    "git_dirty": None,
    "model": "m",
    "hardware": {"hardware_id": "cpu", "device_name": "é", "device_count": 1},
    "env": {"x": [1, {"y": 2.5}]},
    "params": {},
    "hydra": _HYDRA,
    "sha256": {"a.csv": "00"},
}
_IMPORTED = {
    "format": "vidur",
    "source": "s",
    "source_sha256": {"request_metrics.csv": "00"},
    "written_by": "Vidur",
    "mapping": {"ttft_ns": "prefill_e2e_time"},
    "clock": "c",
    "arrivals": "a",
    "joined_by": "Request Id",
}
_VALID: dict[type[BaseModel], dict[str, Any]] = {
    WorkloadMeta: {
        "workload_id": "w",
        "created_at": "2026-01-02T03:04:05+00:00",
        "model": "m",
        "seed": 7,
        "tokenizer_ref": "t",
        "tokenizer_sha256": "00",
        "git_commit": "abc",
        "git_dirty": True,
        "sha256": {},
        "num_requests": 1,
        "params": {},
        "hydra": _HYDRA,
    },
    RunMeta: {**_RUN, "run_type": "real"},
    OwnRunMeta: {**_RUN, "run_type": "real"},
    RealRunFacts: {**_RUN, "backend": "sarathi"},
    SimulationFacts: {**_RUN, "imported": _IMPORTED},
    RealRunMeta: {
        **_RUN,
        "workload_dir": "d",
        "workload_id": "w",
        "workload_sha256": {},
        "backend": "vllm",
        "group_id": "g",
        "repeat_index": 0,
        "num_repeats": 1,
        "engine_settings": _ENGINE,
        "warmup": {},
        "lateness_ns": {"p50": 1},
        "degraded": False,
        "num_bunched_messages": 0,
        "num_errors": 0,
    },
    VidurRunMeta: {
        **_RUN,
        "workload_dir": "d",
        "workload_id": "w",
        "workload_sha256": {},
        "profiling_root": "p",
        "profile_sha256": {},
        "variant": "kernels",
        "predictor": "interpolation",
        "simulated_settings": {},
        "num_preemptions": 0,
    },
    ProfileMeta: {**_RUN, "profiling_root": "p", "profile_key": "k", "engine_settings": _ENGINE},
    PublishedForests: {"versions": {}, "search": {}, "csv_sha256": {}, "chosen": {"add": {"max_depth": 8}}},
    ComparisonMeta: {
        **_RUN,
        "real_run_dir": "d",
        "sim_run_dir": "s",
        "real_run_dirs": ["d"],
        "sim_run_dirs": {"kernels": "s"},
        "workload_id": "w",
        "headline_variant": "kernels",
        "verdict": "pass",
    },
    CapacityMeta: {
        **_RUN,
        "criterion": "c",
        "found": {"engine": {"status": "found", "capacity_per_s": 2.0, "upper_per_s": 2.1, "num_probes": 3}},
    },
    NightMeta: {"comparison_id": "c", "sha256": {}},
    HistoryMeta: {"scenario": "s", "num_comparisons": 1, "sha256": {}},
    RegressionMeta: {"scenario": "s", "verdict": "ok", "rule": {}, "nights": ["c"], "history_sha256": {}, "sha256": {}},
    SweepMeta: {
        **_RUN,
        "workload_id": "w",
        "variant": "kernels",
        "num_configurations": 2,
    },
    SweepPartMeta: {"sha256": {}},
}
each_document = pytest.mark.parametrize("model", list(_VALID), ids=lambda model: model.__name__)


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def _error(model: type[BaseModel], path: Path) -> str:
    with pytest.raises(ContractError) as error:
        read_document(model, path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_every_document_has_a_valid_example() -> None:
    named: set[type] = set()
    waiting: list[type] = [Document]
    while waiting:
        children = waiting.pop().__subclasses__()
        named |= set(children)
        waiting += children
    assert named == set(_VALID)


@each_document
def test_round_trip_keeps_everything_and_its_bytes_are_stable(model: type[BaseModel], tmp_path: Path) -> None:
    document = read_document(model, _write(tmp_path / "in.json", _VALID[model]))
    write_document(document, tmp_path / "out.json")
    first = (tmp_path / "out.json").read_bytes()
    again = read_document(model, tmp_path / "out.json")
    assert again == document
    write_document(again, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == first
    assert first.endswith(b"}\n")
    # A run that was not imported does not say that it was not.
    names = [name for name in model.model_fields if name != "imported" or "imported" in _VALID[model]]
    assert list(json.loads(first))[: len(names)] == names
    assert json.loads(first)["schema_version"] == "v1"


@each_document
def test_a_missing_key_is_named(model: type[BaseModel], tmp_path: Path) -> None:
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    assert required
    for name in required:
        value = {key: item for key, item in _VALID[model].items() if key != name}
        message = _error(model, _write(tmp_path / "meta.json", value))
        assert message == f"key {name} missing. Write the file with the keys of the contract."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_errors": "0"}, "key num_errors: Input should be a valid integer (found '0')"),
        ({"num_errors": 1.0}, "key num_errors: Input should be a valid integer"),
        ({"num_errors": True}, "key num_errors: Input should be a valid integer"),
        ({"num_errors": -1}, "key num_errors: Input should be greater than or equal to 0 (found -1)"),
        ({"degraded": "no"}, "key degraded: Input should be a valid boolean"),
        ({"run_type": "vidur"}, "key run_type: Input should be 'real' (found 'vidur')"),
        ({"schema_version": "v2"}, "key schema_version: Input should be 'v1' (found 'v2')"),
        ({"started_at": "2026-01-02T03:04:05"}, "key started_at: Input should have timezone info"),
        ({"started_at": 1767323045}, "key started_at: "),
        ({"lateness_ns": {"p50": 0.5}}, "key lateness_ns.p50: Input should be a valid integer"),
        ({"engine_settings": {**_ENGINE, "block_size": None}}, "key engine_settings.block_size: "),
        ({"hardware": []}, "key hardware: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_value_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert _error(RealRunMeta, _write(tmp_path / "run_meta.json", _VALID[RealRunMeta] | change)).startswith(says)


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    value = _VALID[RunMeta] | {"theirs": {"deep": [1, None]}, "hardware": {**_RUN["hardware"], "rack": 7}}
    document = read_document(RunMeta, _write(tmp_path / "in.json", value))
    write_document(document, tmp_path / "out.json")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored["theirs"] == {"deep": [1, None]}
    assert stored["hardware"]["rack"] == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1: not valid JSON (Expecting value)"),
        (b'{\n "run_id": "r",\n', "line 3: not valid JSON (Expecting property name"),
        (b'{\n "run_id": "r"\n "model": 1}', "line 3: not valid JSON (Expecting ',' delimiter)"),
        (b'{"seed": NaN}', "not valid JSON (NaN is no JSON value)"),
        (b'{"a": "\xff"}', "line 1: not UTF-8"),
        (b"[]", "Input should be an object; expected a JSON object"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "run_meta.json"
    path.write_bytes(content)
    assert _error(RunMeta, path).startswith(says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"started_at": "0001-01-01T00:00:00+14:00"},
            "key started_at: in UTC this is beyond the years 1 to 9999",
        ),
        ({"ended_at": "9999-12-31T23:59:59-14:00"}, "key ended_at: in UTC this is beyond"),
        ({"params": {"a": [{"b": 2**63}]}}, "params holds an integer that does not fit 64 bits"),
        ({"env": {"a": 10**400}}, "env holds an integer that does not fit 64 bits"),
    ],
)
def test_times_without_utc_and_integers_beyond_64_bits_are_refused(change: dict, says: str, tmp_path: Path) -> None:
    assert _error(RunMeta, _write(tmp_path / "in.json", _VALID[RunMeta] | change)).startswith(says)
    largest = _VALID[RunMeta] | {"started_at": "0001-01-01T00:00:00-01:00", "params": {"a": -(2**63)}}
    assert timestamp_slug(read_document(RunMeta, _write(tmp_path / "in.json", largest)).started_at).endswith(
        "0101T010000Z"
    )


_OF_ONE_DEVICE = {"engine": {"backend": "vllm"}}
_EIGHT = {"hardware_id": "h100", "device_name": "NVIDIA H100", "device_count": 8, "driver": "580"}


@pytest.mark.parametrize(
    "model", [RealRunMeta, RealRunFacts, ProfileMeta, VidurRunMeta, SimulationFacts, ComparisonMeta, CapacityMeta, SweepMeta]
)  # fmt: skip
def test_the_gpus_of_a_host_are_read_as_the_one_that_was_used(model: type[RunMeta], tmp_path: Path) -> None:
    """Written before engines could have several devices, on a host with eight."""
    path = _write(tmp_path / "in.json", _VALID[model] | {"params": _OF_ONE_DEVICE, "hardware": _EIGHT})
    before, document = path.read_bytes(), read_document(model, path)
    assert document.hardware is not None
    assert document.hardware.model_dump() == _EIGHT | {"device_count": 1, "stated": False}
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (RealRunMeta, {"params": {"engine": {"backend": "vllm", "tensor_parallel_size": 8}}}),
        (ProfileMeta, {"params": {"engine": {"backend": "vllm", "tensor_parallel_size": 8}}}),
        (RealRunMeta, {"params": _OF_ONE_DEVICE, "engine_settings": _ENGINE | {"tensor_parallel_size": 8}}),
        (VidurRunMeta, {"params": _OF_ONE_DEVICE, "simulated_settings": {"tensor_parallel_size": 8}}),
        (RealRunFacts, {"engine_settings": _ENGINE}),
        (RealRunFacts, {"params": {"engine": {"devices": 8}}}),
    ],
)
def test_devices_that_were_used_and_those_of_other_programs_are_counted_as_stated(
    model: type[RunMeta], change: dict[str, Any], tmp_path: Path
) -> None:
    document = read_document(model, _write(tmp_path / "in.json", _VALID[model] | {"hardware": _EIGHT} | change))
    assert document.hardware is not None and document.hardware.device_count == 8


@pytest.mark.parametrize("count", [0, -8, "8", 8.0])
def test_a_count_that_breaks_the_contract_is_not_mended(count: object, tmp_path: Path) -> None:
    broken = _VALID[ProfileMeta] | {"params": _OF_ONE_DEVICE, "hardware": _EIGHT | {"device_count": count}}
    assert _error(ProfileMeta, _write(tmp_path / "in.json", broken)).startswith(
        "key hardware.device_count: Input should"
    )


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert "is not a complete artifact" in _error(RunMeta, tmp_path / "run_meta.json")
    assert _error(RunMeta, tmp_path).startswith("is a directory, expected a readable JSON file")


@pytest.mark.parametrize("key", ["params", "env", "hardware"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_a_value_that_json_cannot_hold_is_not_written(key: str, value: object, tmp_path: Path) -> None:
    """NaN least of all as null."""
    document = RunMeta.model_validate(_VALID[RunMeta] | {key: _VALID[RunMeta][key] | {"x": value}})
    path = tmp_path / "run_meta.json"
    with pytest.raises(ContractError, match="RunMeta holds a value that JSON cannot"):
        write_document(document, path)
    assert not path.exists()


def test_timestamp_slug_is_utc() -> None:
    moment = datetime(2026, 1, 2, 1, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp_slug(moment) == "20260101T230405Z"
    with pytest.raises(ValueError, match="no zone"):
        timestamp_slug(datetime(2026, 1, 2))
