"""The engine's search for capacity: its command line, and what an engine that fails leaves. The real engine is searched
by test_pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gst_assets.capacity import engine_probe
from gst_assets.contracts.documents import CapacityMeta, read_document
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.contracts.tables import CapacityProbes, read_table
from gst_assets.errors import EngineError, ScenarioError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload import load
from gst_assets.workload.tokenized import requests_of
from gst_assets.workload.tokenizer import Tokenizer
from gst_assets_tests.engine.memory_engine import MemoryEngine
from gst_assets_tests.engine.workloads import build_workload

# A bound that no stall of the machine exceeds: this engine takes every request at once.
SEARCH = "capacity={max_p99_delay_ms: 60000, low_rate_per_s: 200, high_rate_per_s: 400, num_requests: 20, seed: 1}"
SMALL = [
    "workload.num_requests=6",
    "workload.num_decode_tokens=3",
    "replay.warmup_requests=2",
    "replay.warmup_decode_tokens=2",
]
SCENARIO = load_scenario("smoke", [*SMALL, SEARCH])


def opened(monkeypatch: pytest.MonkeyPatch, engine: MemoryEngine) -> None:
    @asynccontextmanager
    async def opening(_: Scenario) -> AsyncIterator[MemoryEngine]:
        yield engine

    monkeypatch.setattr(engine_probe, "open_engine", opening)


def test_two_searches_on_one_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = MemoryEngine()
    opened(monkeypatch, engine)
    other = SCENARIO.model_copy(update={"name": "other"})
    written = asyncio.run(engine_probe.measure([SCENARIO, other], tmp_path))
    assert [path.name.split("-")[0] for path in written] == ["smoke", "other"]
    for path in written:
        open_directory(path, Kind.CAPACITY)
        meta = read_document(CapacityMeta, path / "run_meta.json")
        probes = read_table(CapacityProbes, path / "capacity_probes.csv")
        assert meta.hydra.overrides == [*SMALL, SEARCH]
        assert meta.found["engine"].status == "above_high" and meta.engine_settings is not None
        assert probes["rate_per_s"].tolist() == [200, 400] and set(probes["num_requests"]) == {20}
        assert (probes["p99_lateness_ns"] >= 0).all() and (
            probes["p99_delay_ns"] >= probes["p99_lateness_ns"] * 0.5
        ).all()
        # 20 requests of 3 tokens each over the time from the first arrival to the last token.
        assert probes["tokens_per_s"].to_numpy() == pytest.approx(3 * probes["requests_per_s"].to_numpy())
    names = [name for event, name in engine.log if event == "begin"]
    assert len(names) == len(set(names)) == 2 * (SCENARIO.replay.warmup_requests + 2 * 20)


def test_an_engine_that_dies_leaves_its_probes_and_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warm = SCENARIO.replay.warmup_requests * SCENARIO.replay.warmup_decode_tokens
    opened(monkeypatch, MemoryEngine(die_at_token=warm + 20 * 3 + 10))
    with pytest.raises(EngineError, match=r"the engine was killed .* holds the probes made until then"):
        asyncio.run(engine_probe.measure([SCENARIO], tmp_path, "dying"))
    meta = read_document(CapacityMeta, open_directory(tmp_path / "dying", Kind.CAPACITY) / "run_meta.json")
    found = meta.found["engine"]
    assert (found.status, found.capacity_per_s, found.upper_per_s) == ("undetermined", 200, None)
    assert "the engine died: the engine was killed" in found.reason
    assert read_table(CapacityProbes, tmp_path / "dying" / "capacity_probes.csv")["verdict"].tolist() == [
        "kept",
        "unjudged",
    ]


def test_requests_are_those_of_the_workload_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = build_workload(tmp_path / "wl", SCENARIO)
    expected = requests_of(load(directory), SCENARIO)
    encode, encoded = Tokenizer._each, []

    def counted(self: Tokenizer, texts: Sequence[str], *others: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, *others)

    monkeypatch.setattr(Tokenizer, "_each", counted)
    found = engine_probe.workload_requests(SCENARIO)
    assert len(encoded) == len(set(encoded)) > 0  # no text is tokenized twice
    assert [(one.prompt_id, one.prompt_token_ids, one.num_decode_tokens) for one in found] == [
        (one.prompt_id, one.prompt_token_ids, one.num_decode_tokens) for one in expected
    ]
    drawn = load_scenario(
        "smoke",
        [
            "workload.prompts=null",
            "workload.num_decode_tokens=null",
            "workload.num_requests=3",
            "workload.synthetic={prefill_tokens: {kind: fixed, tokens: 17}, decode_tokens: {kind: fixed, tokens: 2}}",
        ],
    )
    assert [(len(one.prompt_token_ids), one.num_decode_tokens) for one in engine_probe.workload_requests(drawn)] == [
        (17, 2)
    ] * 3


def test_what_cannot_be_searched_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="has no capacity section"):
        asyncio.run(engine_probe.measure([load_scenario("smoke")], tmp_path))
    server = load_scenario("openai_server", [SEARCH])
    with pytest.raises(EngineError, match="does not report when it first scheduled"):
        asyncio.run(engine_probe.measure([server], tmp_path))
    (tmp_path / "kept").mkdir()
    with pytest.raises(EngineError, match=r"kept: already exists\. Searches are never overwritten"):
        asyncio.run(engine_probe.measure([SCENARIO], tmp_path, "kept"))
    with pytest.raises(EngineError, match="name each scenario once"):
        engine_probe.check_one_engine([SCENARIO, SCENARIO])
    with pytest.raises(ScenarioError, match=r"high_rate_per_s 5\.0 is not above low_rate_per_s 9\.0"):
        load_scenario("smoke", ["capacity={max_p99_delay_ms: 50, low_rate_per_s: 9, high_rate_per_s: 5, seed: 1}"])
