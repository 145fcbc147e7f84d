"""The OpenAI backend against a real vLLM server on the CPU, and against a peer on a real socket that misbehaves."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gst_assets.contracts import tables
from gst_assets.contracts.documents import RealRunMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine import measuring, metric_rows, openai_backend, openai_server
from gst_assets.engine.backends import engine_environment, open_engine
from gst_assets.engine.openai_backend import OpenAiEngine
from gst_assets.engine.plays import Play
from gst_assets.engine.protocol import UNKNOWN_TOKEN_ID, EngineRequest
from gst_assets.engine.replay import PlannedRequest, ReplayResult, replay
from gst_assets.errors import EngineError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario
from gst_assets_tests.engine.server_peer import Behaviour, Peer, serving
from gst_assets_tests.engine.vllm_server import SERVED_MODEL, VllmServer, vllm_server
from gst_assets_tests.engine.workloads import build_workload

MS = 1_000_000


def scenario_of(base_url: str, *overrides: str) -> Scenario:
    server = f"engine.server={{base_url: '{base_url}', read_timeout_s: 20}}"
    return load_scenario("smoke", ["engine.backend=openai", server, *overrides])


def plan(prompts: list[list[int]], num_decode_tokens: int = 4, gap_ms: int = 2) -> list[PlannedRequest]:
    return [
        PlannedRequest(EngineRequest(f"q{index}", prompt, num_decode_tokens, 0), index * gap_ms * MS, "p")
        for index, prompt in enumerate(prompts)
    ]


async def play(scenario: Scenario, planned: list[PlannedRequest], timeout_s: float = 60) -> ReplayResult:
    async with open_engine(scenario) as engine:
        return await replay(engine, planned, request_timeout_s=timeout_s, may_stop_early=False)


def opening(scenario: Scenario) -> str:
    """The one error of opening the scenario's engine."""

    async def enter() -> None:
        async with open_engine(scenario):
            pass

    with pytest.raises(EngineError) as raised:
        asyncio.run(enter())
    return str(raised.value)


# --- a peer that misbehaves -------------------------------------------------------------------------------------------


def with_peer(peer: Peer, planned: list[PlannedRequest], *overrides: str, timeout_s: float = 60) -> ReplayResult:
    async def both() -> ReplayResult:
        async with serving(peer):
            return await play(scenario_of(peer.base_url, *overrides), planned, timeout_s)

    return asyncio.run(both())


def behaving(*behaviours: Behaviour) -> list[PlannedRequest]:
    return plan([[int(behaviour), 5, 6] for behaviour in behaviours])


@pytest.mark.parametrize(
    ("behaviour", "error_type", "message"),
    [
        (Behaviour.CUT, "StreamBroken", "the server broke the connection"),
        (Behaviour.GARBAGE, "StreamBroken", "expected the JSON of a completion in each event, found b'{nonsense'"),
        (Behaviour.NO_END, "StreamBroken", "the stream ended without a finish_reason"),
        (Behaviour.OVERLOADED, "ServerRefused", "HTTP 503: too many requests waiting"),
        (Behaviour.FEWER, "EngineError", "the engine ended the request with 1 tokens, expected 4"),
        (Behaviour.ERROR_EVENT, "ServerRefused", "error inside the stream: the engine is on fire"),
        (Behaviour.OTHER_PROMPT, "StreamBroken", "the server counts 4 prompt_tokens, this client 3"),
        (Behaviour.ABORT, "ServerRefused", "finish_reason 'abort'"),
        (Behaviour.NOT_TOKENS, "StreamBroken", "state neither token_ids nor how many tokens"),
        (Behaviour.ENDLESS, "StreamBroken", "bytes without the end of one"),
        (Behaviour.HTML, "StreamBroken", "the stream ended without a finish_reason"),
    ],
)
def test_a_misbehaving_stream_costs_only_its_request(behaviour: Behaviour, error_type: str, message: str) -> None:
    played = with_peer(Peer(), behaving(Behaviour.GOOD, behaviour, Behaviour.GOOD))
    good, bad, after = played.results
    assert (good.error_type, after.error_type, played.death) == ("", "", None)
    assert good.token_ids == after.token_ids == [100, 101, 102, 103]
    assert bad.error_type == error_type and message in bad.error_msg
    assert bad.token_times_ns == []


def test_a_server_that_never_answers_or_falls_silent_ends_by_the_read_timeout() -> None:
    peer = Peer()
    silent = behaving(Behaviour.HANG, Behaviour.STALL)

    async def both() -> ReplayResult:
        async with serving(peer):
            server = f"engine.server={{base_url: '{peer.base_url}', read_timeout_s: 1}}"
            return await play(load_scenario("smoke", ["engine.backend=openai", server]), silent, 3600)

    began = time.monotonic()
    played = asyncio.run(both())
    assert time.monotonic() - began < 600  # far from the requests' own hour
    assert [result.error_type for result in played.results] == ["ServerSilent", "ServerSilent"]
    assert "said nothing for 1 s (engine.server.read_timeout_s)" in played.results[0].error_msg
    assert "(1 tokens had arrived)" in played.results[1].error_msg


def test_the_requests_own_timeout_comes_first_where_it_is_shorter() -> None:
    """The one that hangs was due long ago, so that it has half a second left and the other has a minute."""
    hanging, good = behaving(Behaviour.HANG, Behaviour.GOOD)
    hanging = dataclasses.replace(hanging, arrival_time_ns=-59_500 * MS)
    played = with_peer(Peer(), [hanging, good], timeout_s=60)
    assert [result.error_type for result in played.results] == ["RequestTimeout", ""]


def test_events_in_pieces_and_events_together_are_read_alike() -> None:
    played = with_peer(Peer(), behaving(Behaviour.IN_PIECES, Behaviour.TOGETHER))
    assert [result.error_msg for result in played.results] == ["", ""]
    assert [result.token_ids for result in played.results] == [[100, 101, 102, 103]] * 2
    assert [result.num_bunched_messages for result in played.results] == [0, 1]
    assert len(set(played.results[1].token_times_ns)) == 1


def test_a_server_without_token_ids_is_counted_and_the_ids_stay_empty() -> None:
    peer = Peer(counts_only=True)
    played = with_peer(peer, behaving(Behaviour.GOOD))
    assert played.results[0].token_ids == [UNKNOWN_TOKEN_ID] * 4
    assert metric_rows.token_metrics(played)["token_id"].isna().all()
    assert peer.bodies[-1]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_what_is_asked_is_exact_and_connections_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # An idle connection is closed after some seconds, which a busy machine may take between two requests.
    monkeypatch.setattr("gst_assets.engine.openai_http._KEEPALIVE_S", 600.0)
    peer = Peer()

    async def one_after_another() -> None:
        async with (
            serving(peer),
            open_engine(
                scenario_of(peer.base_url, "engine.sampling.temperature=0.7", "engine.sampling.seed=3")
            ) as engine,
        ):
            for _ in range(3):
                played = await replay(engine, plan([[7, 8, 9]]), request_timeout_s=60, may_stop_early=False)
                assert played.results[0].error_msg == ""

    asyncio.run(one_after_another())
    assert peer.connections == 1
    body = peer.bodies[-1]
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"]) == ([7, 8, 9], 4, True)
    assert (body["temperature"], body["seed"], body["stream"], body["return_token_ids"]) == (0.7, 0, True, True)
    assert "stop_token_ids" not in body
    assert not any("authorization" in head.lower() for head in peer.headers)


def test_a_plain_server_tells_little_and_the_rest_is_marked_as_stated() -> None:
    async def read() -> OpenAiEngine:
        async with serving(Peer()) as peer, open_engine(scenario_of(peer.base_url)) as engine:
            assert isinstance(engine, OpenAiEngine)
            return engine

    settings = asyncio.run(read()).settings()
    unknown = {
        "architecture", "quantization", "quantized_kernels", "tensor_parallel_size", "all_reduce", "expert_kernel",
    }  # fmt: skip
    assert all(getattr(settings, name) is None for name in unknown)
    others = {"backend", "transport", "not_read_back", "not_told", *unknown}
    assert set(settings.not_read_back) == set(type(settings).model_fields) - others
    assert settings.not_told == list(openai_server.ASKED_ABOUT)
    assert (settings.engine_version, settings.max_num_seqs, settings.transport) == ("unknown", 32, "http")


def test_an_api_key_comes_from_the_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer()

    def played() -> ReplayResult:
        async def both() -> ReplayResult:
            async with serving(peer):
                server = f"engine.server={{base_url: '{peer.base_url}', api_key_variable: GST_TEST_API_KEY}}"
                return await play(load_scenario("smoke", ["engine.backend=openai", server]), behaving(Behaviour.GOOD))

        return asyncio.run(both())

    monkeypatch.delenv("GST_TEST_API_KEY", raising=False)
    with pytest.raises(EngineError, match="the environment variable GST_TEST_API_KEY is not set"):
        played()
    monkeypatch.setenv("GST_TEST_API_KEY", "sesame")
    assert played().results[0].error_type == ""
    assert all("Authorization: Bearer sesame" in head for head in peer.headers)


@pytest.mark.parametrize("key", ["sesame-1", "Basic c2VzYW1lLTE="])
def test_a_key_that_the_server_repeats_is_in_no_table_and_no_error(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GST_TEST_API_KEY", key)
    secret = key.split()[-1]

    def scenario(peer: Peer) -> Scenario:
        server = f"engine.server={{base_url: '{peer.base_url}', api_key_variable: GST_TEST_API_KEY}}"
        return load_scenario("smoke", ["engine.backend=openai", server])

    async def both(peer: Peer) -> ReplayResult:
        async with serving(peer):
            echoes = behaving(Behaviour.ECHO, Behaviour.ECHO_EVENT, Behaviour.ECHO_GARBAGE)
            return await play(scenario(peer), echoes)

    peer = Peer()
    played = asyncio.run(both(peer))
    assert any(f"Authorization: {key if ' ' in key else 'Bearer ' + key}\r\n" in head for head in peer.headers)
    assert [result.error_type for result in played.results] == ["ServerRefused", "ServerRefused", "StreamBroken"]
    for result in played.results:
        assert "***" in result.error_msg and secret not in result.error_msg
    assert secret not in metric_rows.request_metrics(played, "openai").to_csv()

    async def refused() -> None:
        async with serving(Peer(models_status=401)) as peer, open_engine(scenario(peer)):
            pass

    with pytest.raises(EngineError, match="HTTP 401: ") as raised:
        asyncio.run(refused())
    assert secret not in str(raised.value)


def test_what_cannot_be_measured_is_one_error_before_anything_is() -> None:
    with socket.socket() as bound:  # taken, and nobody listens there
        bound.bind(("127.0.0.1", 0))
        message = opening(scenario_of(f"http://127.0.0.1:{bound.getsockname()[1]}"))
    assert "engine.server.base_url http://127.0.0.1" in message and "nothing answers" in message
    assert "Nothing was measured" in message

    async def with_models(*names: str) -> None:
        async with serving(Peer(models=names)) as peer, open_engine(scenario_of(peer.base_url)):
            pass

    with pytest.raises(EngineError, match=r"served_model: the server at .* serves a, b\. Name one of them"):
        asyncio.run(with_models("a", "b"))

    async def open_blocks() -> None:
        async with serving(Peer()) as peer, open_engine(scenario_of(peer.base_url, "engine.num_kv_blocks=null")):
            pass

    with pytest.raises(EngineError, match=r"engine\.num_kv_blocks: the server does not report it"):
        asyncio.run(open_blocks())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key in one file, signed by itself, for 127.0.0.1."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=peer"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path) + ".key", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def tls_peer(certificate: Path) -> Peer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    return Peer(tls=context)


def test_a_certificate_that_is_not_accepted_names_the_setting(certificate: Path) -> None:
    async def played(scheme: str) -> None:
        async with serving(tls_peer(certificate)) as peer:
            address = peer.base_url.replace("https", scheme)
            async with open_engine(scenario_of(address)):
                pass

    with pytest.raises(EngineError, match=r"its TLS certificate is not accepted .*self-signed.*SSL_CERT_FILE"):
        asyncio.run(played("https"))
    with pytest.raises(EngineError, match=r"the server broke the connection|the server is gone"):
        asyncio.run(played("http"))


def test_https_to_a_server_that_speaks_none_says_so() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def played() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, open_engine(scenario_of(f"https://127.0.0.1:{port}")):
            pass

    with pytest.raises(EngineError, match=r"no TLS connection .*write http:// in engine\.server\.base_url"):
        asyncio.run(played())


def test_the_certificate_file_that_the_message_names_works(certificate: Path) -> None:
    """In a process of its own: the variable is read when the client's library is loaded."""
    code = f"""
import asyncio
from pathlib import Path
from gst_assets_tests.engine.test_openai_backend import behaving, play, scenario_of, serving, tls_peer
from gst_assets_tests.engine.server_peer import Behaviour
async def main():
    async with serving(tls_peer(Path({str(certificate)!r}))) as peer:
        print((await play(scenario_of(peer.base_url), behaving(Behaviour.GOOD))).results[0].token_ids)
asyncio.run(main())
"""
    environment = {**os.environ, "SSL_CERT_FILE": str(certificate)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert "[100, 101, 102, 103]" in ended.stdout, ended.stderr


def test_an_http_client_needs_no_environment() -> None:
    assert engine_environment(scenario_of("http://127.0.0.1:1", "engine.cpu_threads=4096")) == {}


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with vllm_server(load_scenario("smoke"), tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.mark.engine
def test_the_servers_settings_are_read_back(server: VllmServer) -> None:
    async def read() -> OpenAiEngine:
        async with open_engine(scenario_of(server.base_url)) as engine:
            assert isinstance(engine, OpenAiEngine)
            return engine

    settings = asyncio.run(read()).settings()
    assert (settings.not_read_back, settings.not_told) == (["attention_backend"], [])
    assert settings.engine_version.startswith("vLLM 0.")
    expected = load_scenario("smoke").engine
    for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_kv_blocks", "enforce_eager"):
        assert getattr(settings, name) == getattr(expected, name)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.max_num_seqs=16", "engine.max_num_seqs: the scenario asks for 16, but openai vLLM"),
        ("engine.num_kv_blocks=77", "engine.num_kv_blocks: the scenario asks for 77"),
        ("model.max_model_len=1024", "model.max_model_len: the scenario asks for 1024"),
        ("engine.server.served_model=other", f"served_model 'other': the server at .* serves {SERVED_MODEL}. Name one"),
    ],
)
def test_a_server_that_runs_otherwise_is_not_measured(server: VllmServer, override: str, message: str) -> None:
    import re

    assert re.search(message, opening(scenario_of(server.base_url, override)))


@pytest.mark.engine
def test_tokens_are_streamed_one_by_one_and_repeat(server: VllmServer) -> None:
    planned = plan([[(7 * index + k) % 8000 for k in range(40)] for index in range(6)], 12, gap_ms=150)
    first, second = (asyncio.run(play(scenario_of(f"{server.base_url}/v1/"), planned)) for _ in range(2))
    assert [result.error_msg for result in first.results] == [""] * 6
    assert [result.token_ids for result in first.results] == [result.token_ids for result in second.results]
    assert all(result.token_times_ns == sorted(result.token_times_ns) for result in first.results)
    assert all(len(set(result.token_times_ns)) > 1 for result in first.results)


@pytest.mark.engine
def test_counted_tokens_of_a_real_server_are_as_many(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_backend, "_TOKEN_IDS", {})
    played = asyncio.run(play(scenario_of(server.base_url), plan([[1, 2, 3]] * 2, 12)))
    assert [result.error_msg for result in played.results] == ["", ""]
    assert [result.token_ids for result in played.results] == [[UNKNOWN_TOKEN_ID] * 12] * 2


@pytest.mark.engine
def test_a_request_the_server_refuses_carries_its_message(server: VllmServer) -> None:
    planned = plan([[1] * 40, [1] * 2100, [1] * 2040, [1] * 40], 12)
    played = asyncio.run(play(scenario_of(server.base_url), planned))
    assert [result.error_type for result in played.results] == ["", "ServerRefused", "EngineError", ""]
    assert "HTTP 400" in played.results[1].error_msg and "2048" in played.results[1].error_msg
    # The server shortens what would not fit, without a word.
    assert "ended the request with 8 tokens, expected 12" in played.results[2].error_msg


@pytest.mark.engine
def test_stop_tokens_end_a_request_early(server: VllmServer) -> None:
    async def stopped(scenario: Scenario) -> ReplayResult:
        async with open_engine(scenario) as engine:
            return await replay(engine, plan([[3] * 9], 200), request_timeout_s=60, may_stop_early=True)

    full = asyncio.run(stopped(scenario_of(server.base_url))).results[0].token_ids
    stop = full[20]
    override = f"engine.sampling.stop_token_ids=[{stop}]"
    ended = asyncio.run(stopped(scenario_of(server.base_url, override))).results[0].token_ids
    assert len(full) == 200 and ended == full[: full.index(stop) + 1]


def measured(
    server: VllmServer, folder: Path, *overrides: str, on_line: Callable[[str], None] = lambda _: None
) -> tuple[Path, str]:
    """Play a workload as the command does, in this process; the run directory and the error that ended it, if one
    did."""
    scenario = scenario_of(server.base_url, "replay.repeats=1", "replay.warmup_requests=2", *overrides)
    workload = build_workload(folder / "workload", scenario)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_say", on_line)
        try:
            asyncio.run(measuring.measure([Play(scenario, workload, "g")], folder / "out"))
            error = ""
        except EngineError as problem:
            error = str(problem)
    open_directory(folder / "out" / "g-r0", Kind.REAL_RUN)
    return folder / "out" / "g-r0", error


def finished_by(server: VllmServer) -> int:
    """Requests that the server has finished since it started."""
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total")))


@pytest.mark.engine
def test_a_measured_run_says_that_http_is_inside_and_what_was_only_stated(server: VllmServer, tmp_path: Path) -> None:
    directory, error = measured(server, tmp_path, "workload.num_requests=8", "workload.num_decode_tokens=8")
    assert error == ""
    requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
    tokens = tables.read_table(tables.TokenMetrics, directory / "token_metrics.csv")
    tables.check_run_tables(requests, tokens, directory)
    assert requests["status"].tolist() == ["ok"] * 8 and set(requests["backend"]) == {"openai"}
    assert not (directory / "iterations.csv").exists()
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert meta.hardware.stated and meta.engine_settings.transport == "http"
    summary = (directory / "summary.md").read_text()
    assert "**HTTP is inside the measurement**" in summary
    assert "not read back from the engine: attention_backend." in summary
    assert "stated by the scenario, not detected" in summary


@pytest.mark.engine
def test_a_server_killed_in_mid_run_leaves_what_had_finished(server: VllmServer, tmp_path: Path) -> None:
    """Once it has finished some; so many are still to come that none but a dead server stops there."""

    def kill_later(before: int) -> None:
        hung = time.monotonic() + 300
        while finished_by(server) < before + 5 and time.monotonic() < hung:
            time.sleep(0.1)
        os.kill(server.pid, signal.SIGKILL)

    def watch(line: str) -> None:
        if "playing" in line:
            threading.Thread(target=kill_later, args=(finished_by(server),)).start()

    overrides = ["workload.num_requests=400", "workload.num_decode_tokens=64", "workload.arrivals.rate_per_s=1"]
    directory, error = measured(server, tmp_path, *overrides, on_line=watch)
    requests = tables.read_table(tables.RequestMetrics, directory / "request_metrics.csv")
    tokens = tables.read_table(tables.TokenMetrics, directory / "token_metrics.csv")
    tables.check_run_tables(requests, tokens, directory)
    finished = requests[requests["status"] == "ok"]
    assert 0 < len(finished) < len(requests) == 400
    assert requests["send_time_ns"].isna().any()  # the workload was not played to its end
    assert len(tokens) == 64 * len(finished)
    assert set(requests.loc[requests["status"] == "error", "error_type"]) <= {
        "EngineDied",
        "StreamBroken",
        "ServerSilent",
    }
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    assert meta.degraded and meta.num_errors == 400 - len(finished)
    assert "of 1 repeats of the scenario none could be finished" in error
