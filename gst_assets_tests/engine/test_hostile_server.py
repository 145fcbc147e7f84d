"""Two hundred ways in which a server can answer badly, against the real client over real sockets: none hangs, none
raises what is no error of this project, none takes memory, and each costs its own request only."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gst_assets.contracts import csv_files
from gst_assets.engine import metric_rows
from gst_assets.engine.backends import open_engine
from gst_assets.engine.protocol import EngineRequest
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay
from gst_assets.errors import EngineError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets_tests.engine.hostile_server import DESCRIPTIONS, HARMLESS, NUM_TOKENS, STREAMS, serving

FAULTS = {"ServerRefused", "ServerSilent", "ServerOverran", "StreamBroken", "RequestTimeout", "EngineError"}
SILENCE_S, LIMIT_S, PATIENCE_S = 1.0, 2.0, 300.0
PEAK_BYTES = 400 << 20
GAP_NS = 5_000_000


@dataclass(frozen=True)
class Limits:
    """Only what falls silent or drips is ended by a clock, each by a clock of its own; all else ends by itself, on a
    busy machine too."""

    read_s: float
    request_s: float


LIMITS = {
    "ends": Limits(PATIENCE_S, PATIENCE_S),
    "silent": Limits(SILENCE_S, PATIENCE_S),
    "drips": Limits(PATIENCE_S, LIMIT_S),
}


def ended_by(name: str) -> str:
    """Which of `LIMITS` is for the answer of that name."""
    if "silence" in name or name == "no end after all":
        return "silent"
    # The client's library reads a chunk's extension without a limit.
    return "drips" if "drip" in name or name == "endless chunk extension" else "ends"


def scenario_of(base_url: str, limits: Limits) -> Scenario:
    server = f"engine.server={{base_url: '{base_url}', connect_timeout_s: 60, read_timeout_s: {limits.read_s}}}"
    timeout = f"replay.request_timeout_s={limits.request_s}"
    return load_scenario("smoke", ["engine.backend=openai", server, timeout, "engine.num_kv_blocks=77"])


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """The block ends, with other work on the machine too, and the memory this process holds never rises by more than
    `PEAK_BYTES`."""
    status = Path("/proc/self/status")

    def kib(name: str) -> int:
        return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1])  # type: ignore[index]

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
    before, began = kib("VmRSS"), time.monotonic()
    yield
    taken_s, risen = time.monotonic() - began, (kib("VmHWM") - before) << 10
    print(f"{taken_s:.1f} s, memory up by {risen >> 20} MiB at the peak")
    assert taken_s < seconds
    assert risen < PEAK_BYTES


@pytest.fixture(scope="module")
def played() -> ReplayResult:
    """One result for each name, in order, whatever they were played with."""
    names = [*STREAMS, *HARMLESS]
    planned = [
        PlannedRequest(EngineRequest(name, [index, 1, 2], NUM_TOKENS, 0), index * GAP_NS, "p")
        for index, name in enumerate(names)
    ]

    async def play() -> ReplayResult:
        results = {}
        async with serving() as base_url:
            for kind, limits in LIMITS.items():
                chosen = [item for item in planned if ended_by(item.request.request_id) == kind]
                async with open_engine(scenario_of(base_url, limits)) as engine:
                    one = await replay(engine, chosen, request_timeout_s=limits.request_s, may_stop_early=False)
                assert one.death is None
                results |= dict(zip((item.request.request_id for item in chosen), one.results, strict=True))
        return dataclasses.replace(one, planned=planned, results=[results[name] for name in names])

    with bounded(600):
        return asyncio.run(play())


def test_each_bad_stream_costs_its_own_request_only(played: ReplayResult, tmp_path: Path) -> None:
    ended = {item.request.request_id: result for item, result in zip(played.planned, played.results, strict=True)}
    assert {name: ended[name].error_msg for name in HARMLESS} == dict.fromkeys(HARMLESS, "")
    odd = {name: ended[name].error_type for name in STREAMS if ended[name].error_type not in FAULTS}
    assert odd == {}
    assert [name for name in STREAMS if not ended[name].error_msg.strip()] == []
    assert max(len(result.error_msg) for result in played.results) < 1000
    csv_files.write_csv(metric_rows.request_metrics(played, "openai"), tmp_path / "requests.csv")
    csv_files.write_csv(metric_rows.token_metrics(played), tmp_path / "tokens.csv")


@pytest.mark.parametrize(
    ("name", "error_type", "message"),
    [
        ("ids texts", "StreamBroken", "token_ids[0]: expected a whole number from 0 to 2147483647, found \"7\""),
        ("ids null", "StreamBroken", "token_ids[0]: expected a whole number from 0 to 2147483647, found null"),
        ("ids bool", "StreamBroken", "token_ids[0]: expected a whole number from 0 to 2147483647, found true"),
        ("ids 2**63", "StreamBroken", "found 9223372036854775808"),
        ("ids a text", "StreamBroken", 'token_ids: expected a list, found "777"'),
        ("ids too many", "ServerOverran", "the server sent token 51 of a request for 4"),
        ("one token more", "ServerOverran", "the server sent token 5 of a request for 4: it exceeds max_tokens"),
        ("endless tokens", "ServerOverran", "the server sent token"),
        ("message choices absent", "StreamBroken", "an event has neither choices nor usage"),
        ("usage huge", "StreamBroken", "usage.completion_tokens: expected a whole number"),
        ("usage other", "StreamBroken", "the server counts 4 prompt_tokens, this client 3"),
        ("message error object", "ServerRefused", "error inside the stream: KV cache is full"),
        ("message message alone", "StreamBroken", "neither choices nor usage, in b'{\"message\": \"on fire\"}'"),
        ("message control in error", "ServerRefused", "error inside the stream: \ufffd[2J\ufffd\ufffd"),
        ("event error", "ServerRefused", "error inside the stream: KV cache is full"),
        ("event error, no JSON", "ServerRefused", "error inside the stream: out of blocks"),
        ("header HTML", "StreamBroken", "It holds no event; it begins '<html>log in</html>'"),
        ("header gzip", "StreamBroken", "the reply is packed (gzip), which was not asked for"),
        ("status 429", "ServerRefused", "HTTP 429: Rate limit reached"),
        ("status 302", "ServerRefused", "HTTP 302: redirects to https://elsewhere.example. What is measured is one server"),
        ("status 307 relative", "ServerRefused", "set engine.server.base_url to the address at which it answers itself"),
        ("silence", "ServerSilent", "the server said nothing for 1 s (engine.server.read_timeout_s)"),
        ("endless line", "StreamBroken", "bytes without the end of one"),
        ("endless comments", "StreamBroken", "the reply is longer than"),
    ],
)  # fmt: skip
def test_the_row_says_what_was_wrong(name: str, error_type: str, message: str, played: ReplayResult) -> None:
    result = played.results[[*STREAMS].index(name)]
    assert (result.error_type, message in result.error_msg) == (error_type, True), result.error_msg
    assert "secret" not in result.error_msg


@pytest.mark.parametrize("name", ["drip of bytes", "drip of headers"])
def test_what_drips_is_ended_by_the_replay_or_by_the_connection(name: str, played: ReplayResult) -> None:
    """Both have `replay.request_timeout_s`, one from the intended arrival and one from sending: after a stall of the
    machine either may be first."""
    result = played.results[[*STREAMS].index(name)]
    said = {
        "RequestTimeout": "not finished 2 s after its intended arrival",
        "ServerSilent": "the reply did not end within 2 s (replay.request_timeout_s)",
    }
    assert said[result.error_type] in result.error_msg


@pytest.fixture(scope="module")
def opened() -> dict[str, str]:
    """By name, the error of opening an engine on a server that describes itself so; empty where it was opened."""

    a_few = asyncio.Semaphore(8)  # server and client share this thread: all at once, none would be served in time

    async def message(base_url: str, limits: Limits) -> str:
        try:
            async with a_few, open_engine(scenario_of(base_url, limits)):
                return ""
        except EngineError as error:
            return str(error)

    async def all_of_them() -> dict[str, str]:
        found = {}
        async with serving() as base_url:
            for kind, limits in LIMITS.items():
                places = {name: place for place, name in enumerate(DESCRIPTIONS) if ended_by(name) == kind}
                told = await asyncio.gather(*(message(f"{base_url}/b{place}", limits) for place in places.values()))
                found |= dict(zip(places, told, strict=True))
        return found

    with bounded(600):
        return asyncio.run(all_of_them())


def test_each_bad_description_is_one_error_before_anything_is_measured(opened: dict[str, str]) -> None:
    assert [name for name, message in opened.items() if not message] == []
    assert [name for name, message in opened.items() if "\n" in message or len(message) > 1500] == []
    assert [name for name, message in opened.items() if "secret" in message] == []
    for message in opened.values():
        message.encode()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models id null", "GET /v1/models gave no list of models but"),
        ("models length a text", 'GET /v1/models.max_model_len: expected a whole number above 0, found "2048"'),
        ("models ten thousand", "serves m0, m1, m2, m3, m4, m5, m6, m7, m8, m9 and 9990 more. Name one of them"),
        ("models an adapter", "runs with lora (/v1/models lists m as adapters)"),
        ("models 302", "GET /v1/models gave HTTP 302: redirects to https://elsewhere.example. "),
        ("models 500", "GET /v1/models gave HTTP 500: \ufffd down"),
        ("models endless", "GET /v1/models: the reply is longer than 4194304 bytes"),
        ("/metrics endless", "GET /metrics: the reply is longer than 4194304 bytes"),
        ("models drip", "the reply did not end within 2 s (replay.request_timeout_s)"),
        ("/metrics drip", "the reply did not end within 2 s (replay.request_timeout_s)"),
        ("/version silence", "the server said nothing for 1 s (engine.server.read_timeout_s)"),
        ("info tensor parallel", "engine.tensor_parallel_size: the scenario asks for 1, but openai"),
        (
            "info pipeline parallel",
            "runs with pipeline_parallel (pipeline_parallel_size 2). A comparison knows one engine",
        ),
        ("info data parallel", "runs with data_parallel"),
        ("info interval", "runs with stream_interval (10 tokens a message)"),
        ("info speculation", "runs with speculative_decoding"),
        ("info lora", "runs with lora"),
        ("info quantization", "runs with quantization (quantization is set)"),
        ("info cache", "runs with quantization (cache_dtype fp8_e4m3)"),
        ("info transfer", "runs with kv_transfer"),
        ("info context parallel", "runs with context_parallel (decode_context_parallel_size 2)"),
        ("info of SGLang, tp 2", "engine.tensor_parallel_size: the scenario asks for 1, but openai"),
        ("metrics two engines", "runs with data_parallel (/metrics reports 2 engines, 0, 1)"),
        ("metrics drafts", "runs with speculative_decoding (/metrics counts drafts)"),
        ("metrics adapters", "runs with lora (/metrics counts adapters)"),
        ("info seqs a text", 'vllm_config.scheduler_config.max_num_seqs: expected a whole number above 0, found "32"'),
        ("version a surrogate", "GET /version.version: expected a text of 1 to 100 characters"),
    ],
)
def test_the_error_says_what_was_wrong(name: str, message: str, opened: dict[str, str]) -> None:
    assert message in opened[name]
