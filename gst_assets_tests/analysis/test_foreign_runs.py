"""Runs of other programs with no more than the contract's minimum: what is missing is said, nothing stands in for it.

The first pair has the shape of the published A100 runs of Qwen3-0.6B (Sarathi against Vidur) that this project's
predecessor committed; its request times are those figures, its token times evenly spaced.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gst_assets.contracts.documents import ComparisonMeta, read_document
from gst_assets_tests.gst_command import run_gst

_LATENCIES_NS = {
    "real": [
        (23058042, 880144268), (16598738, 885433132), (16649246, 896383447), (17364572, 890314297),
        (17935641, 885079909), (18742861, 891757119), (16567178, 883875524), (17203353, 892709310),
    ],
    "vidur": [
        (1967610, 116835579), (1967610, 116835579), (1967610, 117164570), (1967610, 117098771),
        (1967610, 117098771), (1967610, 116967175), (1929755, 116666127), (1967610, 116901377),
    ],
}  # fmt: skip
"""TTFT and end-to-end latency of each request; they arrive two seconds apart."""
_PROMPTS = [9, 9, 14, 13, 13, 11, 7, 10]
_NUM_TOKENS = 64


def write_foreign(
    directory: Path,
    run_type: str,
    latencies_ns: Sequence[tuple[int, int]],
    *,
    tokens: bool = True,
    names: Sequence[str] | None = None,
    num_tokens: int = _NUM_TOKENS,
    without: Sequence[str] = ("status",),
    **meta: Any,
) -> Path:
    """A run by csv and json alone, with the keys that the data model calls minimum and the columns in another order."""
    directory.mkdir(parents=True)
    requests, rows = [], []
    for number, (ttft, e2e) in enumerate(latencies_ns):
        arrival = number * 2_000_000_000
        requests.append(
            {
                "request_id": number,
                "arrival_time_ns": arrival,
                "first_token_time_ns": arrival + ttft,
                "ttft_ns": ttft,
                "completion_time_ns": arrival + e2e,
                "num_prefill_tokens": _PROMPTS[number % 8],
                "num_decode_tokens": num_tokens,
                "num_decode_tokens_actual": num_tokens,
                "status": "ok",
                **({"source_request_id": names[number]} if names else {}),
            }
        )
        times = [arrival + ttft + (e2e - ttft) * k // (num_tokens - 1) for k in range(num_tokens)]
        gaps = [0, *(after - before for before, after in pairwise(times))]
        rows += [
            dict(
                zip(("request_id", "token_index", "token_time_ns", "token_latency_ns"), (number, k, *one), strict=True)
            )
            for k, one in enumerate(zip(times, gaps, strict=True))
        ]
    for name, table in (("request_metrics.csv", requests), *([("token_metrics.csv", rows)] if tokens else [])):
        columns = [column for column in table[0] if column not in without]
        with (directory / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    stage = {"backend": "sarathi"} if run_type == "real" else {"profiling_root": "/elsewhere/profiling"}
    document = {
        "schema_version": "v1",
        "run_type": run_type,
        "run_id": directory.name,
        "started_at": "2026-01-02T13:49:03.115248+00:00",
        "ended_at": "2026-01-02T13:49:18.012837+00:00",
        "git_commit": "a404d111",
        "model": "Qwen/Qwen3-0.6B",
        "hydra": {"config_name": run_type, "config_path": "configs"},
        "workload_dir": "/elsewhere/workload",
        **stage,
        **meta,
    }
    (directory / "run_meta.json").write_text(json.dumps(document))
    return directory


def _pair(tmp_path: Path, **changes: dict[str, Any]) -> list[str]:
    return [
        str(write_foreign(tmp_path / kind, kind, _LATENCIES_NS[kind], **changes.get(kind, {})))
        for kind in ("real", "vidur")
    ]


def _report(runs: list[str], out: Path) -> str:
    assert run_gst("compare", *runs, "--out", out).exit_code == 0
    return (out / "summary.md").read_text()


def _error(runs: list[str], out: Path) -> str:
    done = run_gst("compare", *runs, "--out", out)
    assert done.exit_code == 1 and not out.exists()
    return done.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the pair as it is, to read only."""
    folder = tmp_path_factory.mktemp("plain")
    _report(_pair(folder), folder / "out")
    return folder / "out"


def test_the_minimum_compares_and_what_is_missing_is_said(plain: Path) -> None:
    text = (plain / "summary.md").read_text()
    assert "| TTFT P50 | -88.6 % | – | cannot judge | 17.3 | 1.97 | – |" in text
    # 63 gaps a request: index 0 is in no statistic.
    assert "| ITL P50 † | -86.8 % | – | **insufficient** | 13.8 | – | 1.82 | 504 |" in text
    for missing in (
        "hardware not stated", "files not digested", "workload not identified", "status of the requests not stated", "engine settings not stated",
        "simulated settings not stated", "preemptions not stated", "environment not stated",
    ):  # fmt: skip
        assert missing in text, missing
    meta = read_document(ComparisonMeta, plain / "run_meta.json")
    assert (meta.workload_id, meta.measured, meta.hardware) == (None, None, None)
    assert any("settings are not stated" in mark for mark in meta.marks)


def test_hardware_and_models_under_other_names_are_marked_not_refused(tmp_path: Path) -> None:
    pair = _pair(
        tmp_path,
        real={"model": "/models/qwen3-0.6b", "hardware": {"hardware_id": "a100", "device": "cuda:0"}},
        vidur={"hardware": {"hardware_id": "h100"}},
    )
    text = _report(pair, tmp_path / "out")
    assert (
        "vidur: model is named Qwen/Qwen3-0.6B, that of the real run /models/qwen3-0.6b; not checked that they are one"
        in text
    )
    assert "vidur: hardware is h100, that of the real run a100; not checked that they are one" in text
    assert "hardware: device_name and device_count not stated" in text


def test_nobody_is_told_to_remove_a_directory_that_they_named(tmp_path: Path) -> None:
    real, sim = _pair(tmp_path, real={"sha256": {"request_metrics.csv": "0" * 64, "token_metrics.csv": "0" * 64}})
    changed = _error([real, sim], tmp_path / "out")
    assert "content differs from the digest" in changed and "Remove" not in changed
    (tmp_path / "real" / "run_meta.json").unlink()
    missing = _error([real, sim], tmp_path / "out")
    assert "run_meta.json missing" in missing and "Remove" not in missing and "gst import" in missing


# --- without tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["real", "vidur"])
def test_without_token_times_everything_but_itl_compares(plain: Path, tmp_path: Path, side: str) -> None:
    """On either side; the rest is what it is with token times, since these end where the requests do."""
    whole = (plain / "summary.md").read_text()
    text = _report(_pair(tmp_path / "less", **{side: {"tokens": False}}), tmp_path / "without")
    assert "| ITL P50 † | not available | – | – | – | – | – | 0 |" in text
    assert "ITL: not available: token times are not known on both sides" in text
    assert "token times not stated: ITL not available" in text
    for name in ("TTFT P50", "TPOT P50", "E2E P90", "E2E per token mean", "requests/s", "output tokens/s"):
        row = next(
            line for line in whole.splitlines() if line.startswith(f"| {name} †") or line.startswith(f"| {name} |")
        )
        assert row in text, name


def test_without_token_times_and_completion_nothing_ends(tmp_path: Path) -> None:
    pair = _pair(tmp_path, vidur={"tokens": False, "without": ("status", "completion_time_ns")})
    assert "neither token_metrics.csv nor the column completion_time_ns" in _error(pair, tmp_path / "out")


def test_a_simulation_without_token_times_is_not_cut(tmp_path: Path) -> None:
    pair = _pair(tmp_path, real={"num_tokens": 60}, vidur={"tokens": False})
    message = _error(pair, tmp_path / "out")
    assert "knows no token times, so it cannot be cut" in message
    assert "8 of its requests have more of them (request 0, 1, 2, 3, 4, 5, 6, 7)" in message


# --- joined by name ---------------------------------------------------------------------------------------------------


def test_requests_are_joined_by_their_names(plain: Path, tmp_path: Path) -> None:
    """The simulation lists its requests the other way round, under the same names: every request finds its own."""
    by_number = (plain / "summary.md").read_text()
    real = write_foreign(tmp_path / "r", "real", _LATENCIES_NS["real"], names=[f"q{i}" for i in range(8)])
    sim = write_foreign(tmp_path / "vidur", "vidur", _LATENCIES_NS["vidur"], names=[f"q{i}" for i in range(8)])
    rows = (sim / "request_metrics.csv").read_text().splitlines()
    turned = [",".join([str(7 - int(row.split(",")[0])), *row.split(",")[1:]]) for row in rows[1:]]
    (sim / "request_metrics.csv").write_text("\n".join([rows[0], *reversed(turned)]) + "\n")
    tokens = (sim / "token_metrics.csv").read_text().splitlines()
    moved = [",".join([str(7 - int(row.split(",")[0])), *row.split(",")[1:]]) for row in tokens[1:]]
    (sim / "token_metrics.csv").write_text(
        "\n".join([tokens[0], *sorted(moved, key=lambda row: [*map(int, row.split(","))])]) + "\n"
    )
    text = _report([str(real), str(sim)], tmp_path / "b")
    assert "requests are joined by source_request_id" in text and "requests are joined by request_id" in by_number
    paired = next(line for line in by_number.splitlines() if line.startswith("| E2E | vidur |"))
    assert paired in text


def test_unequal_request_sets_are_listed(tmp_path: Path) -> None:
    many = [(10, 1000)] * 20
    real = write_foreign(tmp_path / "real", "real", many, names=[f"q{i}" for i in range(20)])
    sim = write_foreign(tmp_path / "vidur", "vidur", many, names=[f"q{i}" for i in range(5, 25)])
    message = _error([str(real), str(sim)], tmp_path / "out")
    assert "5 only in " in message and "(q0, q1, q2, q3, q4)" in message and "(q20, q21, q22, q23, q24)" in message
    short = write_foreign(tmp_path / "short", "vidur", many[:5])
    message = _error([str(real), str(short)], tmp_path / "out")
    assert "15 are only in the first (request 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ...)" in message


def test_arrivals_apart_are_told_and_marked(tmp_path: Path) -> None:
    real, sim = _pair(tmp_path)
    path = Path(real) / "request_metrics.csv"
    header, *rows = path.read_text().splitlines()
    shifted = []
    for row in rows:
        fields = row.split(",")
        late = 3_000_000 * (int(fields[0]) > 0)
        shifted.append(
            ",".join(
                [
                    fields[0],
                    *(str(int(fields[k]) + late) for k in (1, 2)),
                    fields[3],
                    str(int(fields[4]) + late),
                    *fields[5:],
                ]
            )
        )
    path.write_text("\n".join([header, *shifted]) + "\n")
    (Path(real) / "token_metrics.csv").unlink()
    text = _report([real, sim], tmp_path / "out")
    assert "Not a pass because: vidur: arrivals are up to 3.00 ms, P50 3.00 ms apart from those of real" in text


# --- several simulations ----------------------------------------------------------------------------------------------


def test_several_simulations_stand_side_by_side_best_first(tmp_path: Path) -> None:
    real, sim = _pair(tmp_path)
    close = [(round(ttft * 1.02), round(e2e * 1.01)) for ttft, e2e in _LATENCIES_NS["real"]]
    blank = [(round(ttft * 0.9), round(e2e * 0.9)) for ttft, e2e in _LATENCIES_NS["real"]]
    two = write_foreign(tmp_path / "two", "vidur", close)
    three = write_foreign(tmp_path / "three", "vidur", blank, tokens=False)
    text = _report([real, f"first={sim}", str(two), f"third={three}"], tmp_path / "out")
    assert "| latency | 1. two | 2. third | 3. first |" in text
    assert "| TTFT P50 | +2.0 % (–), cannot judge | -10.0 % (–), cannot judge | -88.6 % (–), cannot judge |" in text
    # A simulation without token times takes ITL from no other.
    assert "| ITL P50 | +1.0 % (–), cannot judge | not available | -86.8 % (–), cannot judge |" in text
    assert "| **mean size** | 1.5 % | 10.0 % | 88.1 % |" in text


def test_two_simulations_of_one_name_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    real, sim = _pair(tmp_path)
    again = shutil.copytree(sim, tmp_path / "again")
    message = _error([real, f"one={sim}", f"one={again}"], tmp_path / "out")
    assert "both of variant 'one' with seed 0" in message and "name different simulations apart: NAME=DIR" in message
    assert "only simulations have a name" in _error([f"name={real}", sim], tmp_path / "out")
