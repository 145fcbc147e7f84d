"""How long the host is kept busy by forming and launching a step, read off the `host` rows of overheads.csv; and how fast the host was, when.

For engines that schedule asynchronously (`async_steps`). Numpy only: it serves the measuring host and the Vidur adapter. A host shared with
other programs has fast and slow moments of a second or so, which weigh in every percentile above the median; `speed_trace` keeps their sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gst_assets.errors import ProfileError
from gst_assets.profiling.async_steps import COLUMNS, Key

Floats = NDArray[np.float64]

_BIN_RATIO = 1.15
"""Decode batches are put together within this ratio of sizes."""
_MIN_BIN_SAMPLES = 5
_ITERATIONS = 80
_SHORTEST_RESIDUAL_NS = 10_000.0


class HostModel:
    """Nanoseconds by composition.

    Decode steps: linear between the medians of batch sizes put together; the outermost median holds beyond. Steps with prompts: for each kind
    the line in prompt tokens, prompt requests and decodes with the least sum of absolute residuals over all samples, a median in the sense of
    quantile regression (Koenker and Bassett 1978), found by iteratively reweighted least squares.
    """

    def __init__(self, overheads: pd.DataFrame, where: str) -> None:
        """Raises:
        ProfileError: no `host` row of decode steps, or of steps with prompts.
        """
        rows = overheads[overheads["term"] == "host"]
        decode = rows[rows["step_kind"] == "decode"]
        if decode.empty or len(decode) == len(rows):
            raise ProfileError(
                f"{where}: no row of term host with step_kind {'decode' if decode.empty else 'mixed'}, which variant calibrated needs of an "
                "engine with async_scheduling. Profile again with calibration."
            )
        self._batches, self._decode_ns = _medians(
            decode["num_decode_requests"].to_numpy(dtype=float),
            decode["median_ns"].to_numpy(dtype=float),
            decode["num_samples"].to_numpy(dtype=float),
        )
        self._lines: dict[str, Floats] = {}
        for kind, found in rows[rows["step_kind"] != "decode"].groupby("step_kind"):
            self._lines[str(kind)] = _least_absolute_line(
                found[list(COLUMNS[1:])].to_numpy(dtype=float),
                found["median_ns"].to_numpy(dtype=float),
                found["num_samples"].to_numpy(dtype=float),
            )

    def ns(self, key: Key) -> float:
        """Median time of a composition. Kinds that were not calibrated raise KeyError; `kinds` has the others."""
        kind, prefill_requests, prefill_tokens, decodes = key
        if kind == "decode":
            return float(np.interp(decodes, self._batches, self._decode_ns))
        line = self._lines[kind]
        return float(line[0] + line[1] * prefill_requests + line[2] * prefill_tokens + line[3] * decodes)

    @property
    def kinds(self) -> set[str]:
        """Step kinds that were calibrated."""
        return {"decode", *self._lines}

    @property
    def largest_decode_batch(self) -> float:
        """Beyond it the median of the largest batches holds."""
        return float(self._batches[-1])


def _medians(sizes: Floats, values: Floats, samples: Floats) -> tuple[Floats, Floats]:
    """Mean size and weighted median of values of the sizes that fall together; in order of size."""
    place = np.round(np.log(sizes) / np.log(_BIN_RATIO)).astype(int)
    bins = [place == each for each in np.unique(place)]
    kept = [where for where in bins if samples[where].sum() >= _MIN_BIN_SAMPLES] or bins
    return (
        np.array([np.average(sizes[where], weights=samples[where]) for where in kept]),
        np.array([_weighted_median(values[where], samples[where]) for where in kept]),
    )


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _least_absolute_line(features: Floats, values: Floats, samples: Floats) -> Floats:
    design = np.column_stack([np.ones(len(values)), features])
    # Columns of like size, so that a direction that the samples do not tell apart stays at 0 rather than at noise.
    scale = np.maximum(np.abs(design).max(axis=0), 1.0)
    scaled, weights = design / scale, samples
    solution = np.zeros(design.shape[1])
    for _ in range(_ITERATIONS):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(scaled * root, values * root[:, 0], rcond=1e-6)[0]
        weights = samples / np.maximum(np.abs(values - scaled @ solution), _SHORTEST_RESIDUAL_NS)
    return solution / scale


def speed_trace(samples: Sequence[tuple[int, Key, float]], model: HostModel, longest_gap_ns: int) -> pd.DataFrame:
    """The table `contracts.tables.HostSpeed` of host samples (when, composition, ns) in order of time.

    `ratio` is the sample over the model's median. Times count from the first sample; gaps longer than `longest_gap_ns`, in which the engine had
    nothing to do, are shortened to it.
    """
    when = np.array([at for at, _, _ in samples], dtype=np.int64)
    steps = np.minimum(np.diff(when, prepend=when[:1]), longest_gap_ns)
    return pd.DataFrame(
        {
            "time_ns": pd.array(np.cumsum(steps), dtype="Int64"),
            "has_prefill": [key[0] != "decode" for _, key, _ in samples],
            "ratio": [round(ns / model.ns(key), 4) for _, key, ns in samples],
        }
    )
