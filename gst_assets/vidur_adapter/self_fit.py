"""A bundle checked against its own calibration: the calibration traffic simulated with the bundle, compared with what
was measured.

Needs neither Vidur nor pandera, so the profile command uses it on a bare GPU host. Reading a bundle belongs to
`step_costs.bundle`. `gst self-fit BUNDLE` simulates again, with the tables as they are now.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import EngineSettings
from gst_assets.errors import ProfileError
from gst_assets.scenario.profile_section import SHARED_TRAFFIC
from gst_assets.step_costs.engine_costs import EngineCosts, HostSpeedTrace, RequestWays
from gst_assets.step_costs.shapes import CapturedGraphs
from gst_assets.vidur_adapter.core import Limits
from gst_assets.vidur_adapter.request_times import delivered_ns, seen_ns
from gst_assets.vidur_adapter.simulation_loop import RequestColumns, SimulationLoop
from gst_assets.vidur_adapter.step_log import tokens_of

BAND = 0.03
_NUM_NULL_BLOCKS = 1
_STATISTICS = {"p50": 50, "p90": 90}


def self_fit(tables: Mapping[str, pd.DataFrame], settings: EngineSettings, *, device_is_host: bool) -> pd.DataFrame:
    """The table `contracts.tables.SelfFit`. `tables` are overheads.csv, host_speed.csv and calibration_traffic.csv by
    file name, `settings` those of the engine that was calibrated. Each stretch is simulated on its own, with its number
    as seed; not those whose prompts begin alike, since the table does not say which tokens they share.

    Raises:
        ProfileError: a term has no row.
        SimulationError: a request can never be scheduled.
    """
    traffic = tables["calibration_traffic.csv"]
    found: dict[tuple[str, str, str], list[tuple[float, float, int]]] = {}
    for seed, (stretch, requests) in enumerate(traffic.groupby("stretch", sort=False)):
        if SHARED_TRAFFIC in str(stretch):
            continue
        simulated = _simulated(requests, tables, settings, seed, device_is_host=device_is_host)
        sort = str(stretch).split(" ", 2)[2]  # without its round
        for name, percent in _STATISTICS.items():
            for metric in ("ttft", "e2e", "itl"):
                column = f"itl_{name}_ns" if metric == "itl" else f"{metric}_ns"
                measured = requests[column].dropna().to_numpy(dtype=float)
                ours = simulated[column].dropna().to_numpy(dtype=float)
                if len(measured):
                    found.setdefault((sort, metric, name), []).append(
                        (float(np.percentile(measured, percent)), float(np.percentile(ours, percent)), len(measured))
                    )
    rows = []
    for (sort, metric, name), seen in found.items():
        measured_ns, simulated_ns, counts = (np.array(values) for values in zip(*seen, strict=True))
        # The rounds' traffic differs, so that errors are taken round by round.
        errors = simulated_ns / measured_ns - 1
        error, spread = float(np.median(errors)), float(np.ptp(errors))
        rows.append(
            {
                "traffic": sort,
                "metric": metric,
                "statistic": name,
                "num_requests": int(counts.sum()),
                "measured_ns": round(float(np.median(measured_ns))),
                "spread": round(spread, 4),
                "simulated_ns": round(float(np.median(simulated_ns))),
                "relative_error": round(error, 4),
                "fits": abs(error) <= max(BAND, spread),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(("num_requests", "measured_ns", "simulated_ns"), "Int64"))


def misfits(table: pd.DataFrame) -> list[str]:
    """What does not fit, in words, worst first."""
    wrong = table[~table["fits"]]
    wrong = wrong.reindex(wrong["relative_error"].abs().sort_values(ascending=False).index)
    return [
        f"{metric.upper()} {statistic.upper()} of calibration's {traffic}: simulated {error:+.1%}"
        for metric, statistic, traffic, error in zip(
            *(wrong[name].tolist() for name in ("metric", "statistic", "traffic", "relative_error")), strict=True
        )
    ]


def _simulated(
    requests: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    settings: EngineSettings,
    seed: int,
    *,
    device_is_host: bool,
) -> pd.DataFrame:
    where, overheads = "overheads.csv", tables["overheads.csv"]
    graphs = CapturedGraphs(settings.cudagraph_capture_sizes)
    speed = HostSpeedTrace(tables["host_speed.csv"], seed)
    costs = EngineCosts(
        overheads,
        graphs,
        graphs.reachable_kinds(settings.max_num_batched_tokens),
        where,
        speed=speed,
        device_is_host=device_is_host,
    )
    ways = RequestWays(overheads, where, speed)
    arrivals = requests["arrival_time_ns"].to_numpy(dtype="int64")
    prompts = requests["num_prefill_tokens"].to_numpy(dtype="int64")
    columns = RequestColumns(
        requests["request_id"].tolist(),
        seen_ns(arrivals, prompts, ways).tolist(),
        prompts.tolist(),
        requests["num_decode_tokens"].tolist(),
    )
    limits = Limits(
        settings.block_size,
        settings.num_kv_blocks,
        _NUM_NULL_BLOCKS,
        settings.max_num_seqs,
        settings.max_num_batched_tokens,
    )
    most = settings.max_num_batched_tokens
    loop = SimulationLoop(columns, limits, costs.tables(most, 2 if settings.async_scheduling else 1))
    loop.run()
    spans = loop.history.spans()
    got = tokens_of(spans)
    times = delivered_ns(spans, loop.history.steps(), ways)[got.step]
    rows = []
    for request_id, arrival_ns in zip(columns.request_id, arrivals.tolist(), strict=True):
        mine = times[got.request_id == request_id]
        gaps = np.diff(mine)
        rows.append(
            {
                "ttft_ns": float(mine[0] - arrival_ns),
                "e2e_ns": float(mine[-1] - arrival_ns),
                **{
                    f"itl_{name}_ns": float(np.percentile(gaps, percent)) if len(gaps) else None
                    for name, percent in _STATISTICS.items()
                },
            }
        )
    return pd.DataFrame(rows)


def bundle_fit(directory: Path) -> pd.DataFrame:
    """`self_fit` of a complete bundle, from its own calibration.

    Raises:
        ArtifactError, ContractError, ProfileError: no complete bundle, or one without calibration.
    """
    from gst_assets.scenario import CPU
    from gst_assets.step_costs.bundle import load_bundle

    bundle = load_bundle(directory)
    if bundle.overheads is None or bundle.host_speed is None or bundle.traffic is None:
        raise ProfileError(f"{directory}: a bundle without calibration has nothing to be compared with.")
    tables = {
        "overheads.csv": bundle.overheads,
        "host_speed.csv": bundle.host_speed,
        "calibration_traffic.csv": bundle.traffic,
    }
    is_host = bundle.meta.hardware.hardware_id == CPU
    return self_fit(tables, bundle.meta.engine_settings, device_is_host=is_host)
