"""Trace files as they are published, and as they go wrong on the way to a user: read and planned, or named for what
they are."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.requests import RequestPlan, plan_requests, trace_times
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer
from gst_assets.workload.traces import FORMATS, open_trace
from gst_assets_tests.workload.published import PUBLISHED, WITHOUT_TIMES

TIMED = sorted(PUBLISHED.keys() - WITHOUT_TIMES)
POISSON = "workload.arrivals={kind: poisson, rate_per_s: 2.0}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("data/tokenizer/qwen3")


def scenario(path: Path, *overrides: str) -> Scenario:
    common = [
        "workload.prompts=null",
        "workload.num_requests=10",
        "workload.num_decode_tokens=null",
        "workload.trace.unusable=drop",
    ]
    times = "workload.arrivals={kind: trace, repeated: keep}"
    return load_scenario(
        "smoke", [*common, f"workload.trace.path={path}", times, "workload.trace.licence=own", *overrides]
    )


def plan(folder: Path, content: bytes, tokenizer: Tokenizer, *overrides: str) -> RequestPlan:
    path = folder / "trace"
    path.write_bytes(content)
    return plan_requests(scenario(path, *overrides), tokenizer)


def error_of(folder: Path, content: bytes, tokenizer: Tokenizer, *overrides: str) -> str:
    with pytest.raises(WorkloadError) as error:
        plan(folder, content, tokenizer, *overrides)
    return str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_as_published_gives_ten_requests(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    form, content = PUBLISHED[name]
    planned = plan(tmp_path, content, tokenizer, *[POISSON] * (name in WITHOUT_TIMES))
    assert (planned.source.format, planned.source.publication) == (form, FORMATS[form].publication)
    assert len(planned.prefill) == 10 and planned.prefill.min() > 0 and planned.decode.min() > 0
    assert (planned.time_ns is None) == (name in WITHOUT_TIMES)
    # The failed request of BurstGPT, the empty talk of ShareGPT; all rows were seen, the last one too.
    assert planned.source.unusable_dropped == {"burstgpt": 1, "sharegpt": 1, "sharegpt_one_line": 1}.get(name, 0)
    assert planned.source.rows == (13 if "sharegpt" in name else 12)


@pytest.mark.parametrize("name", TIMED)
def test_times_are_read_only_where_arrivals_are_the_traces(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The same requests, with another schedule, from a file whose times are no times."""
    form, content = PUBLISHED[name]
    planned = plan(tmp_path, content, tokenizer)
    assert planned.time_ns is not None and planned.time_ns[0] == 0 and (np.diff(planned.time_ns) >= 0).all()
    spoiled = {
        "azure_2023": content.replace(b"18:17:46.6805902", b"no time"),
        "azure_2024": content.replace(b"00:00:02.5+00:00", b"00:00:02.5-07"),
        "mooncake": content.replace(b'"timestamp": 3000', b'"timestamp": null'),
    }.get(form) or content.replace(content.split(b"\n")[3].split(b",")[0] + b",", b"-,", 1)
    assert spoiled != content
    assert "expected a time" in error_of(tmp_path, spoiled, tokenizer)
    other = plan(tmp_path, spoiled, tokenizer, POISSON)
    assert other.time_ns is None and other.source.span_ns is None
    assert other.prefill.tolist() == planned.prefill.tolist() and other.decode.tolist() == planned.decode.tolist()


def test_the_published_rates_are_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Milliseconds of Mooncake, seconds of BurstGPT, dates of Azure: what the schedule lasts, in seconds, is what the
    file says."""
    for name, seconds in (
        ("mooncake", 6.0),
        ("burstgpt", 40 - 5),
        ("azure_2023", 9 * 60.000_0001),
        ("azure_2024", 6.0),
    ):
        _, content = PUBLISHED[name]
        planned = plan(tmp_path, content, tokenizer, "workload.num_requests=10")
        arrivals = scenario(tmp_path / "trace").workload.arrivals
        requests = planned.write_prompts(tmp_path / "prompts.jsonl", tokenizer, 0)
        intervals = build_trace_intervals(arrivals, 10, 0, trace_times(requests, planned.source))
        assert intervals["arrival_time_ns"].iloc[-1] == round(seconds * 1e9), name


MOONCAKE = PUBLISHED["mooncake"][1]
SECONDS = b"".join(
    f'{{"timestamp": {index}, "input_length": 10, "output_length": 5, "user": "u"}}\n'.encode() for index in range(12)
)
STATED = "workload.trace.format=mooncake"


def test_a_file_that_is_like_a_format_needs_the_format_and_a_licence(tmp_path: Path, tokenizer: Tokenizer) -> None:
    said = error_of(tmp_path, SECONDS, tokenizer)
    assert (
        "has user besides and lacks hash_ids" in said
        and "whose times are milliseconds, set workload.trace.format=mooncake" in said
    )
    assert "no licence is known for a file that is not as mooncake publishes it" in error_of(
        tmp_path, SECONDS, tokenizer, STATED, "workload.trace.licence=null"
    )
    planned = plan(tmp_path, SECONDS, tokenizer, STATED)
    assert (planned.source.licence, planned.source.publication, planned.source.unused_columns) == (
        "own",
        None,
        ["user"],
    )
    assert planned.time_ns is not None and planned.time_ns[9] == 9_000_000
    surplus = b"arrived_at,num_prefill_tokens,num_decode_tokens,user\n0.5,1,2,x\n"
    assert "which is like vidur but has user besides" in error_of(tmp_path, surplus, tokenizer)
    assert plan(
        tmp_path, surplus, tokenizer, "workload.trace.format=vidur", "workload.num_requests=1"
    ).prefill.tolist() == [1]


def test_fractional_or_missing_times_of_mooncake(tmp_path: Path, tokenizer: Tokenizer) -> None:
    fraction = MOONCAKE.replace(b'"timestamp": 3000', b'"timestamp": 3000.25')
    assert "line 5, key timestamp: found 3000.25, a fraction, so these may be seconds" in error_of(
        tmp_path, fraction, tokenizer
    )
    stated = plan(tmp_path, fraction, tokenizer, STATED)
    assert stated.time_ns is not None and stated.time_ns[4] == 3_000_250_000
    without = b"".join(
        json.dumps({k: v for k, v in json.loads(one).items() if k != "timestamp"}).encode() + b"\n"
        for one in MOONCAKE.splitlines()
    )
    assert "this file of the format mooncake has no times" in error_of(tmp_path, without, tokenizer)
    partly = MOONCAKE[: MOONCAKE.index(b"\n") + 1] + without
    assert "line 2, key timestamp: found nothing" in error_of(tmp_path, partly, tokenizer)
    same = plan(tmp_path, MOONCAKE, tokenizer).prefill.tolist()
    for content in (fraction, without):
        assert plan(tmp_path, content, tokenizer, POISSON).prefill.tolist() == same


def test_what_is_not_used_is_not_checked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    half = MOONCAKE.replace(b'"hash_ids": [0', b'"hash_ids": ["\\ud83d", 1e999, 18446744073709551616, 0')
    assert plan(tmp_path, half, tokenizer).prefill.tolist() == plan(tmp_path, MOONCAKE, tokenizer).prefill.tolist()
    lengths = PUBLISHED["vidur_lengths"][1].replace(b"8.5", b"\xff")
    assert plan(tmp_path, lengths, tokenizer, POISSON).prefill[0] == 374


def test_a_first_line_of_any_length_tells_the_format(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = (
        json.dumps({"timestamp": 0, "input_length": 9, "output_length": 6, "hash_ids": list(range(20_000))}).encode()
        + b"\n"
    )
    assert len(long) > 64 << 10
    assert plan(tmp_path, long + MOONCAKE, tokenizer).prefill[0] == 9


def test_the_place_is_a_line_or_an_item(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = MOONCAKE.splitlines(keepends=True)
    lines[6] = lines[6].replace(b'"output_length": 142', b'"output_length": "\\ud83d"')
    assert "line 7, key output_length: found '\\ud83d'" in error_of(tmp_path, b"".join(lines), tokenizer)
    _, talk = PUBLISHED["sharegpt_one_line"]
    said = error_of(tmp_path, talk.replace(b"Second 7", b"\\ud800"), tokenizer, POISSON)
    assert "line 1, item 10: holds half of a surrogate pair" in said
    assert "line 1, item 10: not valid JSON" in error_of(
        tmp_path, talk.replace(b"Second 7", b"\x01"), tokenizer, POISSON
    )
    _, talk = PUBLISHED["sharegpt"]
    assert "item 7: 0 prompt and 0 output tokens" in error_of(
        tmp_path, talk, tokenizer, POISSON, "workload.trace.unusable=error"
    )


def test_epoch_times_are_times(tmp_path: Path, tokenizer: Tokenizer) -> None:
    header = b"arrived_at,num_prefill_tokens,num_decode_tokens\n"
    two = plan(tmp_path, header + b"1787267980.0827403,8,53\n1787267981.5,10,5\n", tokenizer, "workload.num_requests=2")
    assert two.time_ns is not None and two.time_ns.tolist() == [0, 1_417_259_700]
    said = error_of(tmp_path, header + b"1787267980082,8,53\n", tokenizer)
    assert (
        "line 2, column arrived_at: found '1787267980082', expected a time in seconds of at least 0 and below 9e+09"
        in said
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4bb3\nsize 52283111\n", "is a Git LFS pointer, which stands for a file that was not fetched. Run `git lfs pull`"),
        (gzip.compress(PUBLISHED["vidur"][1]), "is compressed (gzip). Unpack it."),
        (b"PK\x03\x04" + bytes(30), "is compressed (zip)"),
        (b"PAR1" + bytes(30), "is a Parquet file"),
        (PUBLISHED["vidur"][1].decode().encode("utf-16"), "is UTF-16 text. Save it as UTF-8."),
        (PUBLISHED["vidur"][1].decode().encode("utf-16-le"), "is UTF-16 text. Save it as UTF-8."),
        (b"\xef\xbb\xbf" + PUBLISHED["vidur"][1], "begins with a byte order mark. Save it as UTF-8 without one"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "is an HTML page, such as a login or an error page. Download the file itself."),
        (b'<?xml version="1.0"?><Error><Code>AuthorizationHeaderMalformed</Code></Error>', "is an XML document, such as a server's error"),
        (PUBLISHED["vidur"][1].replace(b"\n", b"\r"), "holds a carriage return"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n48\n", "no time below it that shows which. Set workload.trace.format."),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00-07:00,3,4\n2024-05-10\x0b,3,4\n", "line 3, column TIMESTAMP: found '2024-05-10\\x0b'"),
        (b"a" * (65 << 20), "line 1: more than 64 MiB without an end"),
        (b'[{"conversations": [], "x": "' + b"a" * (70 << 20), "line 1: more than 64 MiB without an end"),
        (b"[]", "no requests: an empty JSON array"),
        (b"\n" + PUBLISHED["vidur"][1], "line 1 is blank, expected a header"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_named_for_what_it_is(
    content: bytes, says: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    said = error_of(tmp_path, content, tokenizer)
    assert says in said and said.startswith(str(tmp_path / "trace")) and len(said) < 800


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, says in (
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is a named pipe"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path / "x\0", "NUL character"),
    ):
        with pytest.raises(WorkloadError, match=f"{says}.*workload.trace.path"):
            open_trace(name, None)
