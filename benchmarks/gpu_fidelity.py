"""How far the simulation is from recorded GPU runs: error cells beside the noise floor, an ablation, and steps with identical composition.

    python benchmarks/gpu_fidelity.py [--write docs/fidelity.md] [--runs NAME=DIR ...]

Each scenario NAME is simulated in both variants with the profile it names and set beside its recorded runs (`data/recorded/NAME`, or run directories
under DIR). Prompt lengths, output lengths and arrivals are those of the runs. A cell passes when its error is within 5 % or within the spread of
the real repeats, whichever is larger. With --write the tables replace what stands between the markers of that file.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gst_assets.contracts import tables
from gst_assets.engine.recorded import expand
from gst_assets.profiling.bundle import Bundle, find_bundle, load_bundle
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_scenario, resolve_path
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate

NAMES = ("h100_spaced", "h100_quarter", "h100_half", "h100_high", "h100_document", "h100_static")
ABLATED = "h100_half"
SEEDS = 5
BAND_PERCENT = 5.0
CELLS = tuple(f"{metric} P{percent}" for metric in ("TTFT", "ITL", "E2E") for percent in (50, 90, 99))
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


@dataclass(frozen=True)
class Run:
    """Tables of one run."""

    requests: pd.DataFrame
    tokens: pd.DataFrame
    iterations: pd.DataFrame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--runs", action="append", default=[], metavar="NAME=DIR")
    arguments = parser.parse_args()
    elsewhere = dict(item.split("=", 1) for item in arguments.runs)
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            recorded = PROJECT_ROOT / "data" / "recorded" / name
            if name in elsewhere:
                folders = sorted(Path(elsewhere[name]).glob(f"{name}-*"))
            elif recorded.is_dir():
                folders = [expand(run, Path(scratch)) for run in sorted(recorded.iterdir())]
            else:
                lines += [f"### {name}", "Not shipped with the repository; give its run directories with --runs.", ""]
                continue
            lines += _section(name, [_read(folder) for folder in folders])
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _read(folder: Path) -> Run:
    return Run(
        tables.read_table(tables.RequestMetrics, folder / "request_metrics.csv"),
        tables.read_table(tables.TokenMetrics, folder / "token_metrics.csv"),
        tables.read_table(tables.Iterations, folder / "iterations.csv"),
    )


def _section(name: str, runs: Sequence[Run]) -> list[str]:
    scenario = load_scenario(name)
    assert scenario.profile.root is not None
    bundle = load_bundle(find_bundle(resolve_path(scenario.profile.root), scenario))
    real = np.array([_cells(run.requests, run.tokens) for run in runs])
    middle = np.median(real, axis=0)
    spread = (real.max(axis=0) - real.min(axis=0)) / middle * 100
    kernels, _ = _simulated(scenario, bundle, runs[0], "kernels")
    seeds = [_simulated(_seeded(scenario, seed), bundle, runs[0], "calibrated") for seed in range(SEEDS)]
    errors = {"kernels": _cells(kernels.requests, kernels.tokens) / middle * 100 - 100}
    calibrated = np.array([_cells(result.requests, result.tokens) for result, _ in seeds])
    errors["calibrated"] = calibrated[0] / middle * 100 - 100
    lines = [
        f"### {name}",
        f"{scenario.description.split(' Played')[0]} {len(runs)} repeats of {len(runs[0].requests)} requests, {len(runs[0].tokens)} output tokens; "
        f"simulated in {seeds[0][1]:.1f} s.",
        "",
        "| cell | real, median [ms] | real spread | kernels | calibrated | calibrated, seeds 0-4 | within |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for place, cell in enumerate(CELLS):
        error = errors["calibrated"][place]
        by_seed = calibrated[:, place] / middle[place] * 100 - 100
        verdict = "5 %" if abs(error) <= BAND_PERCENT else "spread" if abs(error) <= spread[place] else "**no**"
        lines.append(
            f"| {cell} | {middle[place]:.2f} | {spread[place]:.1f} % | {errors['kernels'][place]:+.1f} % | {error:+.1f} % | "
            f"{by_seed.min():+.1f} to {by_seed.max():+.1f} % | {verdict} |"
        )
    shares = [_same_composition(run.iterations, seeds[0][0].iterations) for run in runs]
    between = _same_composition(runs[0].iterations, runs[-1].iterations)
    lines += [
        "",
        f"Steps with identical composition, in order: {np.median(shares):.0%} of the real ones (median over repeats); first against last real repeat {between:.0%}.",
        "",
    ]
    return lines + (_ablation(scenario, bundle, runs[0], middle) if name == ABLATED else [])


def _seeded(scenario: Scenario, seed: int) -> Scenario:
    return scenario.model_copy(update={"simulation": scenario.simulation.model_copy(update={"seed": seed})})


def _simulated(scenario: Scenario, bundle: Bundle, run: Run, variant: str) -> tuple[SimulationResult, float]:
    """The simulation of the workload that `run` was of, and the seconds it took."""
    lengths = run.requests[["request_id", "prompt_id", "num_prefill_tokens", "num_decode_tokens"]]
    arrivals = run.requests["arrival_time_ns"]
    intervals = pd.DataFrame(
        {
            "request_id": run.requests["request_id"],
            "inter_arrival_ns": arrivals.diff().fillna(arrivals),
            "arrival_time_ns": arrivals,
        }
    )
    began = time.perf_counter()
    result = simulate(scenario, lengths, intervals, bundle, variant, cache_dir=None)
    return result, time.perf_counter() - began


def _cells(requests: pd.DataFrame, tokens: pd.DataFrame) -> np.ndarray:
    """P50, P90, P99 in ms of TTFT, gaps between tokens and end-to-end latency."""
    gaps = tokens.loc[tokens["token_index"] > 0, "token_latency_ns"]
    series = (requests["ttft_ns"], gaps, requests["completion_time_ns"] - requests["arrival_time_ns"])
    return np.concatenate([np.percentile(one.to_numpy(dtype=float) / 1e6, [50, 90, 99]) for one in series])


def _same_composition(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Share of the steps of `one` that `other` has with the same prompt requests, prompt tokens and decodes, in the same order."""
    columns = ["num_prefill_requests", "num_prefill_tokens", "num_decode_requests"]
    first, second = (list(map(tuple, table[columns].to_numpy(dtype=int).tolist())) for table in (one, other))
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(first)


def _ablation(scenario: Scenario, bundle: Bundle, run: Run, middle: np.ndarray) -> list[str]:
    """Each modelling term taken away in turn: errors at the median over seeds."""

    def without(*terms: str) -> Callable[[], Bundle]:
        def changed() -> Bundle:
            assert bundle.overheads is not None
            table = bundle.overheads.copy()
            rows = table["term"].isin(terms)
            table.loc[rows, ["p10_ns", "median_ns", "p90_ns"]] = 1
            table.loc[rows, "overhead_ns"] = 1 - table.loc[rows, "operators_ns"]
            return replace(bundle, overheads=table)

        return changed

    def one_kind() -> Bundle:
        assert bundle.overheads is not None
        table = bundle.overheads.copy()
        table.loc[table["term"] == "host", "step_kind"] = table["step_kind"].replace("mixed_eager", "mixed")
        eager = table[(table["term"] == "host") & (table["step_kind"] == "mixed")].copy()
        eager["step_kind"] = "mixed_eager"
        return replace(bundle, overheads=pd.concat([table, eager], ignore_index=True))

    still = scenario.model_copy(
        update={"simulation": scenario.simulation.model_copy(update={"host_variability": False})}
    )
    cases: list[tuple[str, Scenario, Callable[[], Bundle]]] = [
        ("all terms", scenario, lambda: bundle),
        ("host always at its median speed", still, lambda: bundle),
        ("steps beyond the captured graphs cost as those within", scenario, one_kind),
        ("no time to process tokens", scenario, without("process")),
        ("no hand-over", scenario, without("handover")),
        ("no delivery", scenario, without("delivery")),
        ("no device beyond its operators", scenario, without("device")),
    ]
    lines = [
        f"Ablation on {scenario.name}: error at the median of {SEEDS} seeds with one term taken away.",
        "",
        f"| taken away | {' | '.join(CELLS)} |",
        f"| --- | {' | '.join('---:' for _ in CELLS)} |",
    ]
    for label, used, make in cases:
        changed = make()
        found = np.array(
            [
                _cells(result.requests, result.tokens)
                for result, _ in (_simulated(_seeded(used, seed), changed, run, "calibrated") for seed in range(SEEDS))
            ]
        )
        errors = np.median(found, axis=0) / middle * 100 - 100
        lines.append(f"| {label} | {' | '.join(f'{error:+.1f} %' for error in errors)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
