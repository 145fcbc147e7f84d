"""Each published format from a small file written to its specification, and the line of everything that can be wrong
with one."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gst_assets.errors import WorkloadError
from gst_assets.workload.traces import TraceRows, open_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_2023 = AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
AZURE_2024 = AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:00.017335+00:00,2399,6\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURSTGPT = BURST + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
BURSTGPT_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log"
    " Type\n0.5,a,1,ChatGPT,4,8,12,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
    '{"timestamp": 3000, "input_length": 12, "output_length": 3, "hash_ids": []}\n'
)
VIDUR_HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
VIDUR = VIDUR_HEADER + "0.0,374,44\n4.314579,396,109\n"
SHAREGPT = json.dumps(
    [
        {"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello.\nYou?"}]},
        {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
        {"id": "c", "conversations": []},
    ],
    indent=1,
)


def read(
    tmp_path: Path,
    content: str | bytes,
    name: str | None = None,
    *,
    repeated: bool = False,
    block: int = 64,
    times: bool | None = None,
) -> list:
    path = tmp_path / "trace"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    trace = open_trace(path, name)
    return list(
        trace.rows(times=trace.has_times if times is None else times, repeated_times=repeated, block_bytes=block)
    )


def column(blocks: list[TraceRows], name: str) -> list[int]:
    return np.concatenate([getattr(rows, name) for rows in blocks]).tolist()


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("name", "content", "gaps_ns", "prefill", "decode"),
    [
        ("azure_2023", AZURE_2023, [4_314_579_000], [374, 396], [44, 109]),
        ("azure_2024", AZURE_2024, [7_405_000], [2162, 2399], [5, 6]),
        ("burstgpt", BURSTGPT, [40_000_000_000], [472, 1087], [18, 0]),
        ("burstgpt", BURSTGPT_3, [], [4], [8]),
        ("mooncake", MOONCAKE, [3_000_000_000], [6758, 12], [500, 3]),
        ("vidur", VIDUR, [4_314_579_000], [374, 396], [44, 109]),
        ("vidur", VIDUR.replace("\n", "\r\n"), [4_314_579_000], [374, 396], [44, 109]),
        ("vidur", VIDUR_HEADER + "1e-05,1,1\n0.1234567891,2,2\n", [123_446_789], [1, 2], [1, 2]),
    ],
)
def test_each_format_is_told_and_read(
    tmp_path: Path, name: str, content: str, gaps_ns: list, prefill: list, decode: list, block: int
) -> None:
    blocks = read(tmp_path, content, block=block)
    assert open_trace(tmp_path / "trace", None).format.name == name
    assert np.diff(column(blocks, "time_ns")).tolist() == gaps_ns
    assert column(blocks, "prefill") == prefill and column(blocks, "decode") == decode
    first = 1 if name == "mooncake" else 2
    assert column(blocks, "line") == list(range(first, first + len(prefill)))


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_conversations_as_array_and_as_lines(tmp_path: Path, block: int) -> None:
    expected = [("Hi", "Hello.\nYou?"), ("alone", ""), ("", "")]
    blocks = read(tmp_path, SHAREGPT, block=block)
    assert [pair for rows in blocks for pair in rows.texts] == expected
    assert column(blocks, "line")[0] == 2
    lines = "".join(json.dumps(item) + "\n" for item in json.loads(SHAREGPT))
    blocks = read(tmp_path, lines, block=block)
    assert [pair for rows in blocks for pair in rows.texts] == expected
    assert column(blocks, "line") == [1, 2, 3]


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("time,in,out\n1,2,3\n", "line 1: found the header 'time,in,out'"),
        (VIDUR + "5.0,-3,4\n", "line 4, column num_prefill_tokens: found '-3'"),
        (VIDUR + "5.0,3,4.0\n", "line 4, column num_decode_tokens: found '4.0'"),
        (VIDUR + "nan,3,4\n", "line 4, column arrived_at: found 'nan'"),
        (VIDUR + "5.0,,4\n", "line 4, column num_prefill_tokens: found ''"),
        (VIDUR + "5.0,3\n", "line 4: has 2 fields, expected 3"),
        (VIDUR + "\n", "line 4: has 1 field, expected 3"),
        (VIDUR + "4.0,3,4\n", "line 4: its time is 314579000 ns before that of line 3"),
        (VIDUR + "4.314579,3,4\n", "line 4: its time is that of line 3 again"),
        (AZURE_2023 + "2023-13-16 18:15:51.0,3,4\n", "line 4, column TIMESTAMP: found '2023-13-16"),
        (AZURE.lower(), "line 1: found the header 'timestamp,contexttokens,generatedtokens'"),
        (AZURE_2023 + "2023-11-16 18:15:51.0,-3,4\n", "line 4, column ContextTokens: found '-3'"),
        (AZURE_2023 + "2023-11-16 18:15:50.0,3,4\n", "line 4: its time is 995169000 ns before that of line 3"),
        (AZURE_2023 + "2023-11-16 18:15:50.9951690,3,4\n", "line 4: its time is that of line 3 again"),
        (AZURE_2023 + "2023-11-16 18:15:51.0,3", "line 4: has 2 fields, expected 3"),
        (AZURE_2024 + "2024-05-10 00:00:01.0,3,4\n", "line 4, column TIMESTAMP: found '2024-05-10 00:00:01.0'"),
        (AZURE_2024 + "2024-05-10 00:00:01+00:00,3,-4\n", "line 4, column GeneratedTokens: found '-4'"),
        (AZURE_2024 + "NaN,3,4\n", "line 4, column TIMESTAMP: found 'NaN'"),
        (AZURE_2024 + "2024-05-10 00:00:00+00:00,3,4\n", "line 4: its time is 17335000 ns before that of line 3"),
        (AZURE_2024 + "2024-05-10 00:00:00.017335+00:00,3,4\n", "line 4: its time is that of line 3 again"),
        (AZURE_2023 + "NaN,3,4\n", "line 4, column TIMESTAMP: found 'NaN'"),
        (BURSTGPT + "45,x,1,1,2,API log\n", "line 4: its time is that of line 3 again"),
        (BURSTGPT + "44,x,1,1,2,API log\n", "line 4: its time is 1000000000 ns before that of line 3"),
        (BURSTGPT + "46,x,-1,1,0,API log\n", "line 4, column Request tokens: found '-1'"),
        (BURSTGPT + "nan,x,1,1,2,API log\n", "line 4, column Timestamp: found 'nan'"),
        (BURSTGPT.replace("Request tokens", "Prompt tokens"), "line 1: found the header 'Timestamp,Model,Prompt tokens"),
        (MOONCAKE + '{"timestamp": 3001, "input_length": -1, "output_length": 3}\n', "line 3, key input_length: found -1"),
        (MOONCAKE + '{"timestamp": NaN, "input_length": 1, "output_length": 3}\n', "line 3: not valid JSON"),
        (MOONCAKE + '{"timestamp": 3001, "input_length": 1}\n', "line 3, key output_length: found nothing"),
        (MOONCAKE + '{"timestamp": 3001, "inp', "line 3: not valid JSON"),
        (MOONCAKE + '{"timestamp": 2999, "input_length": 1, "output_length": 3}\n', "line 3: its time is 1000000 ns before that of line 2"),
        (MOONCAKE + '{"timestamp": 3000, "input_length": 1, "output_length": 3}\n', "line 3: its time is that of line 2 again"),
        (MOONCAKE.replace("input_length", "input_len"), "line 1: found a JSON object with the keys hash_ids, input_len"),
        (SHAREGPT[:-40], "not valid JSON"),
        (SHAREGPT.replace("conversations", "turns"), "found a JSON array whose first item has the keys id, turns, expected azure_2023"),
        (SHAREGPT.replace('"alone"', "NaN"), "line 15, item 2: not valid JSON (NaN is no JSON value)"),
        (SHAREGPT.replace('"alone"', "-1"), "line 15, item 2: expected turns with a text under value, found -1"),
        (VIDUR_HEADER, "no requests"),
        ("", "empty file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str, message: str, block: int) -> None:
    with pytest.raises(WorkloadError) as error:
        read(tmp_path, content, block=block)
    assert message in str(error.value) and str(tmp_path / "trace") in str(error.value)


def test_repeated_times_may_be_kept_and_a_named_format_must_be_that_of_the_file(tmp_path: Path) -> None:
    assert column(read(tmp_path, VIDUR + "4.314579,3,4\n", repeated=True), "prefill") == [374, 396, 3]
    with pytest.raises(WorkloadError, match=r"line 1: found times without a zone .*expected azure_2024"):
        read(tmp_path, AZURE_2023, "azure_2024")
    with pytest.raises(WorkloadError, match="no such trace"):
        open_trace(tmp_path / "none", None)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.decimals(0, 999_999_999, places=12, allow_nan=False).map(lambda one: f"{one:f}")
        | st.from_regex(r"\A[0-9]{1,9}(\.[0-9]{1,20})?\Z")
        | st.from_regex(r"\A[1-9](\.[0-9]{1,10})?e-[0-9]{2}\Z")
        | st.sampled_from(["0.1", "0.3", "1.1", "4.314579", "2.5e-09", "0.0000000005", "0.0000000015", "7"]),
        min_size=1,
        max_size=20,
    )
)
def test_decimal_seconds_become_the_nearest_nanosecond_exactly(tmp_path: Path, seconds: list[str]) -> None:
    """Decimal is the oracle: through a binary float 0.1 s and its like would be off."""
    seconds.sort(key=Decimal)
    blocks = read(tmp_path, VIDUR_HEADER + "".join(f"{one},1,1\n" for one in seconds), repeated=True, block=1 << 20)
    exact = [int((Decimal(one) * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN)) for one in seconds]
    assert column(blocks, "time_ns") == exact
    assert column(read(tmp_path, VIDUR_HEADER + "0.1,1,1\n"), "time_ns") == [100_000_000]
