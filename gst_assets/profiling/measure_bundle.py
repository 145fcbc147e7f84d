"""Measure a profiling bundle: `gst profile`, and the child process in which the Dagster asset measures.

One engine start serves the operators and the calibration; DIR appears complete or not at all. The same command given
again after an interruption, `kill -9` included, continues where it was: see `partial`. Also how the Dagster asset
measures, in a child process. Needs no Dagster, pandera, Vidur or (with FILE.json) OmegaConf, so it runs on a bare GPU
host.

The only module of this package that simulates: at the end its calibration traffic is simulated with the fresh tables
(`vidur_adapter.self_fit`, which needs no Vidur), and what does not fit is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path

from gst_assets.contracts import csv_files
from gst_assets.contracts.documents import (
    Hardware,
    MachineRecord,
    ProfileMeta,
    run_facts,
    timestamp_slug,
    write_document,
)
from gst_assets.contracts.store import Kind, directory_digests
from gst_assets.engine import machine
from gst_assets.engine.hardware import check_hardware
from gst_assets.engine.launch import die_with_parent, exit_status
from gst_assets.engine.plays import Play
from gst_assets.engine.vllm_backend import engine_environment, open_vllm_engine
from gst_assets.errors import ProfileError
from gst_assets.profiling import calibration
from gst_assets.profiling.coverage import operator_coverage
from gst_assets.profiling.interleaved import InterleavedRuns
from gst_assets.profiling.operator_tables import measure_operators
from gst_assets.profiling.partial import PartialProfile, subject
from gst_assets.profiling.served_experts import served_experts
from gst_assets.progress import Progress
from gst_assets.provenance import git_state
from gst_assets.scenario import CPU, Sampling, Scenario, read_reference
from gst_assets.staging import staged_directory
from gst_assets.step_costs.bundle import FORMAT_VERSION, check_place, profile_key
from gst_assets.step_costs.operators import OperatorTimes, WholeStepOperators
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.vidur_adapter.self_fit import misfits, self_fit

_WORKER_EXTENSION = "gst_assets.profiling.worker_ops.OperatorTimer"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. See `launch.exit_status`."""
    die_with_parent()
    arguments = _parser().parse_args(argv)

    def work() -> None:
        scenario = read_reference(arguments.scenario, arguments.override)
        os.environ.update(engine_environment(scenario))
        plays = _plays(arguments.between, arguments.override)
        if bool(plays) != bool(arguments.runs):
            raise ProfileError(
                "--between and --runs belong together: what is played between rounds, and where its runs go."
            )
        asyncio.run(
            measure(
                scenario,
                arguments.out,
                arguments.profiling_root,
                plays,
                arguments.runs,
                arguments.stamps,
            )
        )

    return exit_status(work, arguments.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gst_assets.profiling.measure_bundle", description=__doc__)
    parser.add_argument(
        "--scenario", required=True, help="scenario name, or a resolved scenario (gst show NAME --json)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle's directory; must be absent or empty")
    parser.add_argument(
        "--profiling-root",
        help=(
            "recorded as the root the bundle belongs to, where OUT is not yet its final place; default: two levels"
            " above OUT"
        ),
    )
    parser.add_argument(
        "--between",
        action="append",
        default=[],
        nargs=2,
        metavar=("WORKLOAD", "SCENARIO"),
        help=(
            "a workload directory and its scenario, whose repeats are measured between the calibration rounds on the"
            " same engine start"
        ),
    )
    parser.add_argument("--runs", type=Path, help="directory in which the runs of --between appear")
    parser.add_argument(
        "--stamps",
        type=Path,
        help=(
            "directory for the recorded stamps of every calibration step, from which the bundle's tables were derived;"
            " default: they are not stored"
        ),
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="applied to scenarios given by name; a resolved scenario has its own inside",
    )
    return parser


def _plays(between: Sequence[Sequence[str]], overrides: Sequence[str]) -> list[Play]:
    now = timestamp_slug(datetime.now(timezone.utc))
    plays = []
    for workload, reference in between:
        scenario = read_reference(reference, overrides)
        plays.append(Play(scenario, Path(workload).resolve(), f"{scenario.name}-{now}"))
    return plays


async def measure(
    scenario: Scenario,
    out: Path,
    profiling_root: str | None = None,
    plays: Sequence[Play] = (),
    runs: Path | None = None,
    stamps: Path | None = None,
) -> Path:
    """Measure the scenario's bundle into `out`; returns it. `profiling_root` is only recorded. The repeats of `plays`
    are measured between the calibration rounds, into `runs`. The rounds' stamps are copied to `stamps`.

    Raises:
        EngineError: hardware or settings differ from the scenario, or the engine failed.
        ProfileError: `out` exists and is not empty (names what differs of a profile of other steps there), or a
            measurement is not what was designed.
    """
    out = out.resolve()
    check_place(out, scenario)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ProfileError(f"{out}: already exists. Bundles are never overwritten; remove it or use another --out.")
    hardware = check_hardware(scenario.hardware, scenario.engine.tensor_parallel_size)
    git_state()  # what is wrong with the revision, which the bundle records, is to be found out now
    between = InterleavedRuns(plays, scenario, hardware, runs) if plays and runs else None
    begun_with = subject(scenario, hardware, between.described() if between else [])
    with PartialProfile.opened(out, begun_with) as partial:
        if measured := partial.described():
            print(f"continuing {partial.folder}: {measured}", flush=True)
        if between is not None:
            between.rename(partial.group_ids())
        return await _measure(scenario, out, profiling_root, hardware, between, partial, stamps)


async def _measure(
    scenario: Scenario,
    out: Path,
    profiling_root: str | None,
    hardware: Hardware,
    between: InterleavedRuns | None,
    partial: PartialProfile,
    stamps: Path | None,
) -> Path:
    print(f"hardware: {hardware.device_name}; starting {scenario.engine.backend}", flush=True)
    started_at = datetime.now(timezone.utc)
    clock = _Clock()
    async with open_vllm_engine(_without_early_stops(scenario), worker_extension_cls=_WORKER_EXTENSION) as engine:
        clock.phase_ends("engine_start")
        partial.check_settings(engine.settings())
        # First, while the engine's process is as a serving one is: capturing graphs of operators leaves memory and
        # caches changed.
        calibrator = calibration.Calibrator(engine, scenario, is_gpu=hardware.hardware_id != CPU)
        taken_over = 0
        seen: list[MachineRecord | None] = []
        for index in range(calibration.ROUNDS):
            if (kept := partial.round(index)) is not None:
                calibrator.take_over(calibration.Round.of(*kept))
                taken_over += 1
                seen.append(None)
                print(f"calibration: round {index + 1} of {calibration.ROUNDS} was measured before", flush=True)
            else:
                clock.progress("calibration", index / calibration.ROUNDS)
                began_ns = time.monotonic_ns()
                with machine.watched(hardware) as watch:
                    played = await calibrator.play_round(index, clock.progress)
                seen.append(watch.record(began_ns))
                partial.keep_round(index, played.as_text(), played.as_array())
            if between is not None:
                await between.play_after(engine, index)
        driven = calibrator.driven()
        clock.phase_ends("calibration")
        has_experts = scenario.model.geometry.num_experts is not None
        served = await served_experts(engine, scenario, partial) if has_experts else None
        if has_experts:
            clock.phase_ends("served experts")
        tables, facts = await measure_operators(engine, scenario, clock.progress, partial)
        clock.phase_ends("operators")
    try:
        tables |= driven.tables()
    except ProfileError:
        partial.drop_rounds()  # else the same rounds would fail again
        raise
    graphs, layers = CapturedGraphs(driven.settings.cudagraph_capture_sizes), facts["num_layers"]
    mlp, attention, unmodelled = (tables[name] for name in ("mlp.csv", "attention.csv", "unmodelled.csv"))
    per_step = OperatorTimes(
        mlp, attention, layers, graphs, all_reduce=tables.get("all_reduce.csv"), experts=tables.get("experts.csv")
    )
    operators = WholeStepOperators(per_step, attention, unmodelled, layers, graphs)
    tables["operator_coverage.csv"] = operator_coverage(driven.watched(), operators)
    tables |= {"served_experts.csv": served} if served is not None else {}
    tables["self_fit.csv"] = self_fit(tables, driven.settings, device_is_host=hardware.hardware_id == CPU)
    clock.phase_ends("tables")
    for line in misfits(tables["self_fit.csv"]):
        print(f"does not fit its own calibration: {line}", flush=True)
    with _staged(out) as folder:
        for name, table in tables.items():
            csv_files.write_csv(table, folder / name)
        meta = ProfileMeta(
            run_id=f"{scenario.hardware.hardware_id}-{scenario.model.name}-{timestamp_slug(started_at)}",
            **run_facts(scenario, started_at),
            hardware=hardware,
            sha256=directory_digests(folder, Kind.PROFILE.meta_name),
            profiling_root=profiling_root or str(out.parent.parent),
            format_version=FORMAT_VERSION,
            profile_key=profile_key(scenario),
            engine_settings=driven.settings,
            calibration_sha256=driven.digests(),
            worker=facts,
            seconds=clock.seconds,
            calibration_rounds_taken_over=taken_over,
            machine=seen,
        )
        write_document(meta, folder / Kind.PROFILE.meta_name)
    if stamps is not None:
        partial.copy_rounds(stamps)
    partial.remove()
    print(f"profile written: {out}; seconds: {clock.seconds}", flush=True)
    return out


def _without_early_stops(scenario: Scenario) -> Scenario:
    """The scenario with every request running to its end, so that calibration batches keep their size; tokens are still
    drawn as it says."""
    sampling = scenario.engine.sampling
    kept = Sampling(temperature=sampling.temperature, seed=sampling.seed)
    return scenario.model_copy(
        update={
            "engine": scenario.engine.model_copy(update={"sampling": kept}),
            "replay": scenario.replay.model_copy(update={"record_iterations": True}),
        }
    )


class _Clock:
    """Seconds by phase, and progress lines with an estimate of the time left in the phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._shown: Progress | None = None

    def phase_ends(self, name: str) -> None:
        """Book the time since the last phase ended."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._began, 2)
        self._began = now
        if self._shown is not None:
            self._shown.end()
            self._shown = None
        print(f"{name}: done in {self.seconds[name]:.1f} s", flush=True)

    def progress(self, what: str, share: float) -> None:
        """Print how far the phase is. The first call of a phase says what share of it was done before."""
        if self._shown is None:
            self._shown = Progress(what, 1, before=share)
        self._shown.at(share)


def _staged(out: Path) -> AbstractContextManager[Path]:
    def refused(error: OSError) -> ProfileError:
        return ProfileError(
            f"{out}: cannot be created ({error.strerror}). Bundles are never overwritten; remove it or use another"
            " --out."
        )

    return staged_directory(out, refused)


if __name__ == "__main__":
    sys.exit(main())
