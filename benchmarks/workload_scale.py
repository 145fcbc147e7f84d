"""How long a large workload takes to make and to read back, and how much memory: `python benchmarks/workload_scale.py
[REQUESTS]`.

The workload is made twice, with 1 and with 2 workers, and both must have the same sha256 for every file. Each step of
both runs is a process of its own: it prints the seconds and the processor seconds of the step alone, without the start
of Python; peak memory is that of the whole process, of which Python with the libraries is up to 0.6 GiB. The trace is a
file in Vidur's format that the program writes itself (seeded; prompts of 8 to 40 tokens, outputs of 8 to 248, 100
requests/s) or the one that `--trace` names, repeated until it is long enough.

    --trace FILE       a CSV with Vidur's columns (arrived_at,num_prefill_tokens,num_decode_tokens) to repeat
    --max-tokens N     longest prompt plus output; longer prompts are shortened (8192)
    --share-prompts    one prompt for all requests of its length, instead of one each
    --workers N ...    threads of each run (1 2)
    --write            put the result into docs/workloads.md
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from measuring import Child, machine, measured, positive, table, write_between

from gst_assets.contracts.csv_files import write_csv
from gst_assets.contracts.documents import write_document
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.contracts.tables import (
    Table,
    TraceIntervals,
    TraceLengths,
    read_table,
    validate,
    write_table,
)
from gst_assets.provenance import PROJECT_ROOT, sha256_bytes, sha256_file
from gst_assets.scenario import Arrivals, Gamma, Poisson, Scenario, load_scenario, resolve_path
from gst_assets.workload import load
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.requests import plan_requests, trace_times
from gst_assets.workload.spec import PATHS, workload_meta
from gst_assets.workload.tokenizer import load_tokenizer

T = TypeVar("T")
PAGE = PROJECT_ROOT / "docs" / "workloads.md"
MARKER = "scale"
COLUMNS = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
RATE_PER_S = 100.0
TRACE = "trace.csv"


def main() -> None:
    """Print a table of the steps of all runs, and whether their files are equal."""
    options = _options()
    if options.step:
        _run_step(options)
        return
    with tempfile.TemporaryDirectory(dir=options.area) as name:
        options.area = Path(name)
        trace = write_trace(options.area / TRACE, options.requests, options.trace)
        head = f"{options.requests:,} requests. {trace} {machine()}"
        print(head, file=sys.stderr, flush=True)
        cells: dict[str, list[str]] = {step: [] for step in STEPS}
        digests: dict[int, dict[str, str]] = {}
        for workers in options.workers:
            digests[workers] = {}
            for step in STEPS:
                child = _in_child(options, step, workers)
                told = json.loads(child.output)
                digests[workers] |= told["sha256"]
                if workers == options.workers[0]:
                    cells[step] += [STEPS[step][0], told["made"]]
                cells[step] += [f"{told['seconds']:.1f}", f"{told['cpu_seconds']:.1f}", f"{child.peak_gib:.2f}"]
                print(f"{workers} workers, {step}: {cells[step][-3:]} {told['made']}", file=sys.stderr, flush=True)
    names = [
        f"{what}, {count} worker{'s' if count > 1 else ''}"
        for count in options.workers
        for what in ("s", "CPU s", "peak GiB")
    ]
    first = digests[options.workers[0]]
    differing = sorted(name for name in first if len({one[name] for one in digests.values()}) > 1)
    verdict = f"DIFFERENT: {', '.join(differing)}" if differing else "the same in all runs"
    shown = ", ".join(f"`{name}` {digest[:12]}" for name, digest in first.items())
    text = (
        f"{head}\n\n{table(['step', 'made', *names], list(cells.values()))}\n\nsha256 of every file: {verdict}"
        f" ({shown})."
    )
    print(text)
    if options.write:
        write_between(PAGE, MARKER, text)
    if differing:
        raise SystemExit(f"files differ between the numbers of workers: {', '.join(differing)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=positive(int), nargs="?", default=1_000_000)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--max-tokens", type=positive(int), default=8192)
    parser.add_argument("--share-prompts", action="store_true")
    parser.add_argument("--workers", type=positive(int), nargs="+", default=[1, 2])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--area", type=Path, help="where to work; by default the folder for temporary files")
    parser.add_argument("--step", choices=list(STEPS), help="run one step in this process (internal)")
    options = parser.parse_args()
    if options.max_tokens < 2:
        parser.error("--max-tokens: expected at least 2, a token in and a token out")
    if options.area is not None and not options.area.is_dir():
        parser.error(f"--area {options.area}: no such directory")
    if options.trace is not None:
        try:
            rows = len(pd.read_csv(options.trace, usecols=COLUMNS.strip().split(","), nrows=1))
        except (OSError, ValueError) as error:
            parser.error(f"--trace {options.trace}: {error}. Expected a CSV with columns {COLUMNS.strip()}")
        if not rows:
            parser.error(f"--trace {options.trace}: no rows")
    return options


def _in_child(options: argparse.Namespace, step: str, workers: int) -> Child:
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        str(options.requests),
        "--step",
        step,
        "--workers",
        str(workers),
    ]
    command += ["--area", str(options.area), "--max-tokens", str(options.max_tokens)]
    return measured([*command, *(["--share-prompts"] if options.share_prompts else [])])


def write_trace(path: Path, num_requests: int, given: Path | None) -> str:
    """Write a trace of `num_requests` rows in Vidur's format; returns what it is in words."""
    with path.open("w", encoding="utf-8") as handle:
        handle.write(COLUMNS)
        if given is None:
            random = np.random.Generator(np.random.PCG64(1))
            times = np.cumsum(random.integers(1, round(2e6 / RATE_PER_S), num_requests))
            prompts, outputs = random.integers(8, 41, num_requests), random.integers(8, 249, num_requests)
            _write_rows(handle, times, prompts, outputs)
            return f"Trace: seeded, {prompts.sum():,} prompt and {outputs.sum():,} output tokens."
        frame = pd.read_csv(given)
        micros = (frame["arrived_at"] * 1e6).round().astype("int64").to_numpy()
        span = int(micros[-1]) + 1
        prompts, outputs = (frame[name].to_numpy() for name in COLUMNS.strip().split(",")[1:])
        total = 0
        for turn in range(-(-num_requests // len(frame))):
            count = min(len(frame), num_requests - turn * len(frame))
            _write_rows(handle, micros[:count] + turn * span, prompts[:count], outputs[:count])
            total += int(prompts[:count].sum())
        return (
            f"Trace: a published one of {len(frame):,} rows, repeated; {total:,} prompt tokens before any is shortened."
        )


def _write_rows(handle: Any, micros: np.ndarray, prompts: np.ndarray, outputs: np.ndarray) -> None:
    handle.writelines(
        f"{time // 1_000_000}.{time % 1_000_000:06d},{prompt},{output}\n"
        for time, prompt, output in zip(micros.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    )


# --- steps ------------------------------------------------------------------------------------------------------------


class Step:
    """One step of a run: times a function, and knows where the run's files are."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.workers: int = options.workers[0]
        self.folder: Path = options.area / f"run-{self.workers}"
        self.folder.mkdir(exist_ok=True)
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self.sha256: dict[str, str] = {}

    def timed(self, function: Callable[[], T]) -> T:
        """Result of `function`, whose time is that of the step."""
        started, cpu = time.perf_counter(), time.process_time()
        result = function()
        self.seconds, self.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        return result

    def scenario(self) -> Scenario:
        """The scenario of the trace, at the trace's own times."""
        shared, limit = str(self.options.share_prompts).lower(), self.options.max_tokens
        trace = (
            f"path: {self.options.area / TRACE}, licence: see the trace, over_length: truncate, share_prompts: {shared}"
        )
        none = [f"workload.{name}=null" for name in ("prompts", "num_requests", "num_decode_tokens")]
        lengths = [f"model.max_model_len={limit}", f"model.geometry.max_position_embeddings={limit}"]
        return load_scenario(
            "smoke", [*none, f"workload.trace={{{trace}}}", "workload.arrivals={kind: trace}", *lengths]
        )

    def digest(self, path: Path) -> None:
        """The file must come out the same in every run."""
        self.sha256[path.name] = sha256_file(path)

    def tables(self) -> dict[type[Table], pd.DataFrame]:
        """Both tables of the workload, read from the run's files."""
        return {model: read_table(model, self.folder / model.file_name()) for model in (TraceLengths, TraceIntervals)}


def _schedule(arrivals: Arrivals) -> Callable[[Step], str]:
    def step(run: Step) -> str:
        frame = run.timed(lambda: build_trace_intervals(arrivals, run.options.requests, seed=1))
        run.sha256[arrivals.kind] = sha256_bytes(frame["arrival_time_ns"].to_numpy(dtype="int64").tobytes())
        return f"{len(frame):,} arrivals"

    return step


def _lengths(run: Step) -> str:
    chosen = run.scenario()
    tokenizer = load_tokenizer(chosen.model.tokenizer)
    plan = run.timed(lambda: plan_requests(chosen, tokenizer))
    return f"{len(plan.prefill):,} requests out of {(run.options.area / TRACE).stat().st_size / 1e6:.0f} MB"


def _prompts(run: Step) -> str:
    chosen, path = run.scenario(), run.folder / PATHS.prompts
    tokenizer, seed = load_tokenizer(chosen.model.tokenizer), chosen.workload.seed
    plan = plan_requests(chosen, tokenizer)
    requests = run.timed(lambda: plan.write_prompts(path, tokenizer, seed, workers=run.workers))
    run.digest(path)
    # The tables that the steps below write, check and read.
    times = trace_times(requests, plan.source)
    intervals = build_trace_intervals(chosen.workload.arrivals, len(requests), seed, times)
    write_table(TraceIntervals, intervals, run.folder)
    write_table(TraceLengths, requests[list(TraceLengths.column_types()[0])], run.folder)
    tokens = int(requests.drop_duplicates("prompt_id")["num_prefill_tokens"].sum())
    return f"{tokens:,} tokens, {path.stat().st_size / 1e6:.0f} MB"


def _writing(run: Step) -> str:
    frames = run.tables()
    run.timed(lambda: [write_csv(frame, run.folder / model.file_name()) for model, frame in frames.items()])
    for model in frames:
        run.digest(run.folder / model.file_name())
    size = sum((run.folder / model.file_name()).stat().st_size for model in frames) / 1e6
    return f"trace_lengths.csv and trace_intervals.csv, {size:.0f} MB"


def _validation(run: Step) -> str:
    frames = run.tables()
    run.timed(lambda: [validate(model, frame, model.file_name()) for model, frame in frames.items()])
    return "both tables, every rule of the contract"


def _reading(run: Step) -> str:
    run.timed(run.tables)
    return "both tables, validated"


def _committing(run: Step) -> str:
    chosen, store = run.scenario(), ArtifactStore(run.folder)
    tokenizer_sha256 = sha256_file(resolve_path(chosen.model.tokenizer) / "tokenizer.json")

    def commit() -> str:
        with store.stage(Kind.WORKLOAD, "unnamed") as staging:
            for name in (PATHS.prompts, PATHS.trace_lengths, PATHS.trace_intervals):
                shutil.copyfile(run.folder / name, staging.path / name)
            meta = workload_meta(chosen, tokenizer_sha256, staging.digests(), run.options.requests)
            staging.artifact_id = meta.workload_id
            write_document(meta, staging.path / Kind.WORKLOAD.meta_name)
            staging.commit()
        return meta.workload_id

    workload = run.timed(commit)
    run.sha256["workload_id"] = workload
    return f"`{workload}`, digests of all files"


def _loading(run: Step) -> str:
    store = ArtifactStore(run.folder)
    loaded = run.timed(lambda: load(store.path(Kind.WORKLOAD, store.list(Kind.WORKLOAD)[0])))
    return f"{len(loaded.prompt_ids):,} prompts, both tables, digests, what joins them"


STEPS: dict[str, tuple[str, Callable[[Step], str]]] = {
    "poisson": ("schedule, Poisson", _schedule(Poisson(kind="poisson", rate_per_s=RATE_PER_S))),
    "gamma": (
        "schedule, gamma (burstiness 0.5)",
        _schedule(Gamma(kind="gamma", rate_per_s=RATE_PER_S, burstiness=0.5)),
    ),
    "lengths": ("lengths and times of the trace", _lengths),
    "prompts": ("prompts of exactly these lengths, each encoded again", _prompts),
    "writing": ("writing CSV", _writing),
    "validation": ("validating the tables", _validation),
    "reading": ("reading CSV", _reading),
    "committing": ("the workload directory, complete", _committing),
    "loading": ("loading it with every check", _loading),
}


def _run_step(options: argparse.Namespace) -> None:
    run = Step(options)
    made = STEPS[options.step][1](run)
    told = {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "made": made, "sha256": run.sha256}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
