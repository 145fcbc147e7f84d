"""How far the simulation is from real runs: error cells with the noise floor, an ablation, and steps with identical
composition.

    python benchmarks/fidelity_tables.py [SCENARIO ...] [--override KEY=VALUE ...] [--runs NAME=DIR ...] [--profile DIR]
    [--band 10] [--percentiles 50 90]
        [--ablate NAME] [--write PAGE]

Each SCENARIO (default: those whose runs ship with the project) is simulated in every variant (`published` where the
bundle has its forests) with the profile it names, or with the bundle --profile, and compared with its real runs:
`data/recorded/SCENARIO`, or the run directories `DIR/SCENARIO-*`. Prompt lengths, output lengths and arrivals are those
of the runs, and so are the settings of the engine; model and simulation are the scenario's, with the overrides. A cell
passes when its error is within the band or within the spread of the real repeats, whichever is larger.
`benchmarks/cpu_fidelity.py` measures the runs of the CPU engine. With --write the tables replace what stands between
the markers of that page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import around, positive, write_between

from gst_assets.analysis.run_reading import RealRun, load_run
from gst_assets.analysis.stages import same_composition
from gst_assets.engine.recorded import expand
from gst_assets.errors import GstError, ProfileError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import EngineSection, Scenario, load_scenario, resolve_path
from gst_assets.step_costs.bundle import Bundle, check_bundle, find_bundle, load_bundle
from gst_assets.vidur_adapter.simulate import SimulationResult, simulate
from gst_assets.workload.building import build
from gst_assets.workload.tokenized import prompts_of

NAMES = ("h100_8b_single", "h100_8b_quarter", "h100_8b_half", "h100_8b_high", "h100_8b_document")
"""Those with runs under data/recorded and a profile."""
ABLATED = "h100_8b_half"
SEEDS = 5
ABLATED_TERMS = (
    "prepare",
    "launch",
    "prepare_after_idle",
    "launch_after_idle",
    "lead_in",
    "drain",
    "copy_out",
    "process",
    "handover",
    "delivery",
)
METRICS = ("TTFT", "ITL", "E2E")


@dataclass(frozen=True)
class Judged:
    """Which cells there are, and the band an error may have, in per cent."""

    percentiles: tuple[int, ...]
    band: float | None
    """None: 2 % for ITL and E2E, 5 % for TTFT, 10 % at P99."""

    @property
    def bands(self) -> list[float]:
        """One per cell, in per cent."""
        if self.band is not None:
            return [self.band for _ in self.names]
        return [
            10.0 if percent > 90 else 5.0 if metric == "TTFT" else 2.0
            for metric in METRICS
            for percent in self.percentiles
        ]

    @property
    def names(self) -> list[str]:
        """The cells, in the order of `values_ms`."""
        return [f"{metric} P{percent}" for metric in METRICS for percent in self.percentiles]

    def values_ms(self, requests: pd.DataFrame, tokens: pd.DataFrame) -> np.ndarray:
        """Percentiles in ms of TTFT, gaps between tokens and end-to-end latency."""
        gaps = tokens.loc[tokens["token_index"] > 0, "token_latency_ns"]
        series = (requests["ttft_ns"], gaps, requests["completion_time_ns"] - requests["arrival_time_ns"])
        return np.concatenate([np.percentile(one.to_numpy(dtype=float) / 1e6, self.percentiles) for one in series])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=NAMES, metavar="SCENARIO")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="for every scenario")
    parser.add_argument("--runs", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--profile", type=Path, help="bundle directory to simulate with; default: the scenario's")
    parser.add_argument(
        "--band", type=positive(float), help="per cent; default: 2 for ITL and E2E, 5 for TTFT, 10 at P99"
    )
    parser.add_argument("--percentiles", type=int, nargs="+", default=[50, 90, 99])
    parser.add_argument("--ablate", default=ABLATED, metavar="NAME", help="scenario of the ablation")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    elsewhere = _directories(arguments.runs, arguments.scenarios)
    if not all(0 < percent < 100 for percent in arguments.percentiles):
        parser.error("--percentiles: expected numbers between 0 and 100")
    if arguments.ablate not in arguments.scenarios and arguments.ablate != ABLATED:
        parser.error(f"--ablate {arguments.ablate}: not among the scenarios {', '.join(arguments.scenarios)}")
    if arguments.write:
        around(arguments.write, "figures")
    judged = Judged(tuple(arguments.percentiles), arguments.band)
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.scenarios:
            recorded = PROJECT_ROOT / "data" / "recorded" / name
            if name in elsewhere:
                folders = sorted(elsewhere[name].glob(f"{name}-*"))
                if not folders:
                    sys.exit(f"error: --runs {name}: {elsewhere[name]} has no directory {name}-*")
            elif recorded.is_dir():
                folders = [expand(run, Path(scratch)) for run in sorted(recorded.iterdir()) if run.is_dir()]
            else:
                sys.exit(
                    f"error: {name}: its runs are not shipped with the repository. Give their directory with --runs"
                    f" {name}=DIR."
                )
            runs = [load_run(folder, "real") for folder in folders]
            scenario, bundle = _scenario_of(load_scenario(name, arguments.override), runs, arguments.profile)
            lines += _section(scenario, bundle, runs, judged, ablate=name == arguments.ablate)
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        write_between(arguments.write, "figures", text)


def _directories(given: Sequence[str], scenarios: Sequence[str]) -> dict[str, Path]:
    """What `--runs` says, by scenario."""
    found = {}
    for item in given:
        name, equals, directory = item.partition("=")
        if not equals or name not in scenarios:
            sys.exit(f"error: --runs {item}: expected NAME=DIR with one of {', '.join(scenarios)}")
        found[name] = Path(directory)
    return found


def _scenario_of(scenario: Scenario, runs: Sequence[RealRun], profile: Path | None) -> tuple[Scenario, Bundle]:
    """The scenario with the engine's settings of the runs, and the bundle it is simulated with."""
    engine = EngineSection.model_validate(runs[0].meta.params["engine"]).model_copy(
        update={"num_kv_blocks": runs[0].meta.engine_settings.num_kv_blocks}
    )
    if profile is None:
        if scenario.profile.root is None:
            sys.exit(f"error: {scenario.name}: the scenario names no profile.root. Give the bundle with --profile.")
        profile = find_bundle(resolve_path(scenario.profile.root), scenario)
    # What the operators' grids lack is said where a variant needs it.
    alone = scenario.simulation.model_copy(update={"variants": ("calibrated",)})
    scenario = scenario.model_copy(update={"engine": engine, "simulation": alone})
    bundle = load_bundle(profile)
    check_bundle(bundle, scenario, runs[0].requests)
    return scenario, bundle


def _section(scenario: Scenario, bundle: Bundle, runs: Sequence[RealRun], judged: Judged, *, ablate: bool) -> list[str]:
    real = np.array([judged.values_ms(run.requests, run.tokens) for run in runs])
    middle = np.median(real, axis=0)
    spread = (real.max(axis=0) - real.min(axis=0)) / middle * 100
    others = [name for name in ("published", "kernels") if name != "published" or has_forests(bundle)]
    errors = {}
    notes = []
    for name in others:
        try:
            result, _ = _simulated(scenario, bundle, runs[0], name)
        except ProfileError as error:
            notes.append(f"`{name}` cannot simulate this workload: {error}")
        else:
            errors[name] = judged.values_ms(result.requests, result.tokens) / middle * 100 - 100
    seeds = [_simulated(_seeded(scenario, seed), bundle, runs[0], "calibrated") for seed in range(SEEDS)]
    calibrated = (
        np.array([judged.values_ms(result.requests, result.tokens) for result, _ in seeds]) / middle * 100 - 100
    )
    errors["calibrated"] = np.median(calibrated, axis=0)
    lines = [
        f"### {scenario.name}",
        (
            f"{scenario.description.split(' Played')[0]} {_rate(runs[0], scenario)}{len(runs)} repeats of"
            f" {len(runs[0].requests)} requests, {len(runs[0].tokens)} output tokens; simulated in {seeds[0][1]:.1f} s."
        ),
        "",
        f"| cell | real, median [ms] | real spread | {' | '.join(errors)} | calibrated, seeds 0-{SEEDS - 1} | within |",
        f"| --- | ---: | ---: | {' | '.join('---:' for _ in errors)} | --- | --- |",
    ]
    for place, cell in enumerate(judged.names):
        error, band = abs(errors["calibrated"][place]), judged.bands[place]
        within = f"{band:g} %" if error <= band else "spread" if error <= spread[place] else "**no**"
        if "kernels" in errors and error > max(abs(errors["kernels"][place]), spread[place]):
            within += ", worse than kernels"
        shown = " | ".join(f"{found[place]:+.1f} %" for found in errors.values())
        lines.append(
            f"| {cell} | {middle[place]:.2f} | {spread[place]:.1f} % | {shown} | {calibrated[:, place].min():+.1f} to "
            f"{calibrated[:, place].max():+.1f} % | {within} |"
        )
    lines += ["", *notes, _composition_line(runs, seeds[0][0]), ""]
    return lines + (_ablation(scenario, bundle, runs[0], middle, judged) if ablate else [])


def _rate(run: RealRun, scenario: Scenario) -> str:
    """The rate of the runs, where they were measured at another than the scenario's."""
    measured = run.meta.params["workload"]["arrivals"].get("rate_per_s")
    if measured is None or measured == scenario.workload.arrivals.model_dump().get("rate_per_s"):
        return ""
    return f"Measured at {measured:.3g} requests/s. "


def _composition_line(runs: Sequence[RealRun], simulated: SimulationResult) -> str:
    recorded = [run.iterations for run in runs if run.iterations is not None]
    if len(recorded) < len(runs):
        return "The runs recorded no steps, so their composition is not compared."
    share = np.median([same_composition(one, simulated.iterations) for one in recorded])
    between = same_composition(recorded[0], recorded[-1])
    return (
        f"Steps with identical composition, in order (longest common subsequence): {share:.0%} of the real ones (median"
        f" over repeats); first against last real repeat {between:.0%}."
    )


def has_forests(bundle: Bundle) -> bool:
    """Whether `published` can be simulated without searching for its forests first."""
    return (bundle.directory / "published_forests.json").is_file()


def _seeded(scenario: Scenario, seed: int) -> Scenario:
    return scenario.model_copy(update={"simulation": scenario.simulation.model_copy(update={"seed": seed})})


def _simulated(scenario: Scenario, bundle: Bundle, run: RealRun, variant: str) -> tuple[SimulationResult, float]:
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
    prompts = _prompts(scenario, run.meta.workload_id)
    began = time.perf_counter()
    result = simulate(scenario, lengths, intervals, bundle, variant, cache_dir=None, prompts=prompts)
    return result, time.perf_counter() - began


_built: dict[str, list[list[int]] | None] = {}


def _prompts(scenario: Scenario, workload_id: str) -> list[list[int]] | None:
    """Token ids of the workload's prompts, built again from the scenario; None where no time depends on them."""
    if scenario.engine.enable_prefix_caching and workload_id not in _built:
        with tempfile.TemporaryDirectory() as folder:
            workload = build(scenario, Path(folder))
            if workload.meta.workload_id != workload_id:
                sys.exit(
                    f"error: scenario {scenario.name} gives workload {workload.meta.workload_id}, the run was of"
                    f" {workload_id}."
                )
            _built[workload_id] = prompts_of(workload, scenario)
    return _built.get(workload_id)


def _ablation(scenario: Scenario, bundle: Bundle, run: RealRun, middle: np.ndarray, judged: Judged) -> list[str]:
    """Each modelling term taken away in turn: errors at the median over seeds."""

    def without(term: str, *features: str) -> Bundle:
        assert bundle.overheads is not None
        table = bundle.overheads.copy()
        rows = (table["term"] == term) & (table["feature"].isin(features) if features else True)
        table.loc[rows, "ns"] = 0.0
        return replace(bundle, overheads=table)

    still = scenario.model_copy(
        update={"simulation": scenario.simulation.model_copy(update={"host_variability": False})}
    )
    cases = [("all terms", scenario, bundle), ("host always at its median speed", still, bundle)]
    cases += [(f"no {term}", scenario, without(term)) for term in ABLATED_TERMS]
    cases.append(("device blind to contexts", scenario, without("device", "decode_context_token", "attention_pair")))
    lines = [
        f"Ablation on {scenario.name}: error at the median of {SEEDS} seeds with one term taken away.",
        "",
        f"| taken away | {' | '.join(judged.names)} |",
        f"| --- | {' | '.join('---:' for _ in judged.names)} |",
    ]
    for label, used, changed in cases:
        results = [_simulated(_seeded(used, seed), changed, run, "calibrated")[0] for seed in range(SEEDS)]
        found = np.array([judged.values_ms(result.requests, result.tokens) for result in results])
        errors = np.median(found, axis=0) / middle * 100 - 100
        lines.append(f"| {label} | {' | '.join(f'{error:+.1f} %' for error in errors)} |")
    return [*lines, ""]


if __name__ == "__main__":
    try:
        main()
    except GstError as error:
        sys.exit(f"error: {error}")
