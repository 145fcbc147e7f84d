"""Search for the engine's capacity: `gst probe`, and the child process in which the Dagster asset searches.

One engine start. `--scenario` may be given several times; the scenarios must then agree about model, hardware and
engine, and differ in their workloads or in the search (`capacity:` of the scenario). Each search becomes a complete
directory `OUT/<scenario>-<time>-capacity/`. What a probe consists of and what it means is in `search`. Needs no
Dagster, pandera, Vidur or (with FILE.json) OmegaConf, so it runs on a bare GPU host.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from gst_assets.capacity.capacity_report import TABLE, write_report
from gst_assets.capacity.search import (
    CapacitySearch,
    Seen,
    criterion,
    drawn_rows,
    probe_intervals,
    probe_told,
    probes_table,
    result_sentence,
    seen_in_tables,
)
from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import CapacityMeta, Hardware, run_facts, timestamp_slug, write_document
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.engine import metric_rows
from gst_assets.engine.backends import engine_environment, engine_hardware, open_engine
from gst_assets.engine.launch import die_with_parent, exit_status
from gst_assets.engine.plays import check_one_engine, check_output, lone_warm_up_requests, warm_up_requests
from gst_assets.engine.protocol import Engine, EngineRequest
from gst_assets.engine.replay import PlannedRequest, replay, schedule_s, warm_up
from gst_assets.engine.run import add_scenario_options
from gst_assets.engine.run_directory import staged_run
from gst_assets.errors import EngineError, ScenarioError
from gst_assets.progress import Progress
from gst_assets.scenario import Capacity, Scenario, read_reference
from gst_assets.workload import build
from gst_assets.workload.tokenized import WorkloadRequest, requests_of
from gst_assets.workload.tokenizer import load_tokenizer

ENGINE_SIDE = "engine"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. See `launch.exit_status`."""
    die_with_parent()
    arguments = _parser().parse_args(argv)

    def work() -> None:
        scenarios = [read_reference(reference, arguments.override) for reference in arguments.scenario]
        check_one_engine(scenarios)
        os.environ.update(engine_environment(scenarios[0]))
        asyncio.run(measure(scenarios, arguments.out, arguments.group_id))

    return exit_status(work, arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gst_assets.capacity.engine_probe", description=__doc__)
    add_scenario_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory in which the search directories appear")
    parser.add_argument("--group-id", help="name of the directory (one scenario only); default: scenario name and time")
    return parser


async def measure(scenarios: Sequence[Scenario], out: Path, group_id: str | None = None) -> list[Path]:
    """Search each scenario's capacity on one engine start; returns the directories in order.

    Raises:
        ScenarioError: a scenario without a `capacity` section.
        EngineError: a directory of that name exists, hardware or settings differ from the scenario, or the engine
            failed. When it died during a search, that search is written first, as undetermined.
        WorkloadError: the scenario's workload cannot be built.
    """
    asked: list[tuple[Scenario, Capacity, str]] = []
    now = timestamp_slug(datetime.now(timezone.utc))
    if group_id and len(scenarios) > 1:
        raise EngineError("--group-id names one search. Leave it out to name them after their scenarios.")
    for scenario in scenarios:
        if scenario.capacity is None:
            raise ScenarioError(
                f"scenario {scenario.name}: has no capacity section, which says where to search. Add one, e.g."
                " capacity: {max_p99_delay_ms: 100, low_rate_per_s: 16, high_rate_per_s: 128, seed: 1}."
            )
        if scenario.engine.backend == "openai":
            raise EngineError(
                f"scenario {scenario.name}: a server does not report when it first scheduled a request. Search on"
                " backend vllm or transformers."
            )
        asked.append((scenario, scenario.capacity, group_id or f"{scenario.name}-{now}-capacity"))
    for _, _, name in asked:
        if (out / name).exists():
            raise EngineError(
                f"{out / name}: already exists. Searches are never overwritten; use another --group-id or --out."
            )
    hardware = engine_hardware(scenarios[0])
    print(f"hardware: {hardware.device_name}", flush=True)
    pools = [workload_requests(scenario) for scenario in scenarios]
    check_output([name for _, _, name in asked], out)
    written = []
    print(f"opening {scenarios[0].engine.backend}", flush=True)
    async with open_engine(scenarios[0]) as engine:
        for (scenario, settings, name), pool in zip(asked, pools, strict=True):
            started_at = datetime.now(timezone.utc)
            print(f"{scenario.name}: {criterion(settings)}; lengths of {len(pool)} requests", flush=True)
            await warm_up(
                engine,
                _renamed(warm_up_requests(scenario, pool), name),
                _renamed(lone_warm_up_requests(scenario), name),
                request_timeout_s=scenario.replay.request_timeout_s,
            )
            search = CapacitySearch(settings, ENGINE_SIDE)
            death = None
            while (rate := search.next_rate_per_s()) is not None:
                seen = await _play(engine, scenario, settings, pool, rate, f"{name}-{len(search.probes)}")
                print(probe_told(search.record(seen)), flush=True)
                death = seen.death
            written.append(_write(search, scenario, settings, hardware, engine, started_at, name, out))
            print(f"{result_sentence(ENGINE_SIDE, search.result())} {written[-1]}", flush=True)
            if death:
                raise EngineError(
                    f"{death} {written[-1]} holds the probes made until then. See the engine's lines above."
                )
    return written


def workload_requests(scenario: Scenario) -> list[WorkloadRequest]:
    """The scenario's requests, built and tokenized as `workload_spec` and `engine.run` do it. A probe has arrival times
    of its own.

    Raises:
        WorkloadError: as `workload.build` and `workload.tokenized.requests_of`.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(scenario.model.tokenizer)
        built = build(scenario, Path(folder), tokenizer=tokenizer, contract=False, keep_token_ids=True)
        return requests_of(built, scenario, tokenizer=tokenizer, where=f"scenario {scenario.name}")


def _renamed(requests: Sequence[EngineRequest], prefix: str) -> list[EngineRequest]:
    """Ids that no other search on the same engine has."""
    return [
        EngineRequest(f"{prefix}-{one.request_id}", one.prompt_token_ids, one.num_decode_tokens, one.seed)
        for one in requests
    ]


async def _play(
    engine: Engine,
    scenario: Scenario,
    settings: Capacity,
    pool: Sequence[WorkloadRequest],
    rate_per_s: float,
    name: str,
) -> Seen:
    """Play one probe."""
    arrivals = probe_intervals(settings, rate_per_s)["arrival_time_ns"].tolist()
    seed = scenario.engine.sampling.seed
    planned = [
        PlannedRequest(
            EngineRequest(f"{name}-{index}", pool[row].prompt_token_ids, pool[row].num_decode_tokens, seed + index),
            arrival,
            pool[row].prompt_id,
        )
        for index, (row, arrival) in enumerate(zip(drawn_rows(len(pool), settings).tolist(), arrivals, strict=True))
    ]
    await engine.forget()
    with Progress(f"{scenario.name}: probe at {rate_per_s:.4g} requests/s", schedule_s(planned)) as progress:
        played = await replay(
            engine,
            planned,
            request_timeout_s=scenario.replay.request_timeout_s,
            may_stop_early=scenario.engine.sampling.may_stop_early,
            realtime=scenario.replay.realtime_priority,
            progress=progress,
        )
    requests = metric_rows.request_metrics(played, engine.backend)
    return seen_in_tables(requests, has_lateness=True, death=played.death)


def _write(
    search: CapacitySearch,
    scenario: Scenario,
    settings: Capacity,
    hardware: Hardware,
    engine: Engine,
    started_at: datetime,
    name: str,
    out: Path,
) -> Path:
    table: pd.DataFrame = probes_table(search.probes)
    found = {ENGINE_SIDE: search.result()}
    with staged_run(out / name) as folder:
        csv_files.write_csv(table, folder / TABLE)
        write_report(table, found, settings, name, folder)
        meta = CapacityMeta(
            run_id=name,
            **run_facts(scenario, started_at),
            hardware=hardware,
            sha256=directory_digests(folder, Kind.CAPACITY.meta_name),
            criterion=criterion(settings),
            found=found,
            engine_settings=engine.settings(),
        )
        write_document(meta, folder / Kind.CAPACITY.meta_name)
    return out / name


if __name__ == "__main__":
    sys.exit(main())
