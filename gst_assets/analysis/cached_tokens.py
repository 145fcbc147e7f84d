"""Prompt tokens that came from the prefix cache: each real repeat compared with every simulation, and with the repeats
before it, request by request.

Counting, and the sentence about it. The report's table of it is in `report_tables`, what a difference does to latencies
in `causes`. A run that does not state its cached tokens stays unknown, unless it states that it has no prefix cache:
then none came from one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.contracts.documents import RealRunFacts
from gst_assets.formats import unsigned_percent, value_range

_CACHED = "num_cached_tokens"
_SETTING = "enable_prefix_caching"
NOT_KNOWN = "not known"


def cached_token_rows(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[dict[str, Any]]:
    """Rows of `contracts.tables.CachedTokens`. None where no run has a prefix cache, as far as they state. Requests of
    all runs are in the same order."""
    every: list[RealRun | SimulatedRun] = [*real_repeats, *simulations.values()]
    if not any(_CACHED in run.requests or _is_cache_on(run) for run in every):
        return []
    rows = []
    for place, run in enumerate(real_repeats):
        rows += [_row(run, variant, sim) for variant, sim in simulations.items()]
        rows += [_row(run, other.meta.run_id, other) for other in real_repeats[:place]]
    return rows


def _row(run: RealRun, name: str, other: RealRun | SimulatedRun) -> dict[str, Any]:
    ours, theirs = _cached(run), _cached(other)
    prompts = run.requests["num_prefill_tokens"]
    stated = [one.notna() for one in (ours, theirs) if one is not None]
    # What one side alone states has a hit rate too.
    known = stated[0] & stated[-1] if stated else pd.Series(False, index=prompts.index)
    num_prompt_tokens = int(prompts[known].sum())
    found: dict[str, Any] = {"run_id": run.meta.run_id, "compared_with": name, "num_requests": 0}
    for side, cached in (("real", ours), ("other", theirs)):
        is_stated = cached is not None and num_prompt_tokens > 0
        total = int(cached[known].sum()) if cached is not None and is_stated else None
        found[f"num_{side}_cached_tokens"] = total
        found[f"{side}_hit_rate"] = math.nan if total is None else total / num_prompt_tokens
    if ours is None or theirs is None or not known.any():
        return found
    apart = (ours - theirs)[known].abs().astype("int64")
    differing = apart[apart > 0]
    return found | {
        "num_requests": len(apart),
        "num_equal": len(apart) - len(differing),
        "median_difference_tokens": float(differing.median()) if len(differing) else math.nan,
        "max_difference_tokens": int(apart.max()),
    }


def _cached(run: RealRun | SimulatedRun) -> pd.Series | None:
    """By request, empty where it is not known; None where the run states none."""
    if _CACHED in run.requests:
        return run.requests[_CACHED]
    return pd.Series(0, index=run.requests.index, dtype="Int64") if _is_cache_on(run) is False else None


def _is_cache_on(run: RealRun | SimulatedRun) -> bool | None:
    """Whether the run states that it has a prefix cache, or that it has none; None: neither."""
    meta = run.meta
    if not isinstance(meta, RealRunFacts):
        stated = meta.simulated_settings.get(_SETTING)
        return stated if isinstance(stated, bool) else None
    settings = meta.engine_settings
    return None if settings is None or _SETTING in settings.not_read_back else settings.enable_prefix_caching


def cached_tokens_sentence(table: pd.DataFrame, variant: str) -> str:
    """What a `CachedTokens` table with rows says of one variant."""
    rows = table[table["compared_with"] == variant]
    repeats = set(table["run_id"])
    among = table[table["compared_with"].isin(repeats)]
    told = (
        f"Hit rate of the prefix cache: real {hit_rates(rows['real_hit_rate'])},"
        f" `{variant}` {hit_rates(rows['other_hit_rate'])}"
    )
    if rows["num_equal"].isna().any():
        return f"{told}; how many requests are equal is not known."
    told += f"; cached tokens are equal in {equal_of(rows)} requests"
    if len(among) and among["num_equal"].notna().all():
        told += f" (real repeats among each other: {equal_of(among)})"
    largest = int(rows["max_difference_tokens"].max())
    if largest:
        middle = float(rows["median_difference_tokens"].median())
        told += f", and differ in the others by {middle:,g} tokens at the median, {largest:,} at most"
    return f"{told}."


def equal_of(rows: pd.DataFrame) -> str:
    """How many requests of rows are equal, as `204 to 206 of 206`; `not known` where that of one row is."""
    known = rows["num_equal"].notna().all()
    return f"{counts(rows['num_equal'])} of {counts(rows['num_requests'])}" if known else NOT_KNOWN


def counts(values: pd.Series) -> str:
    """Their range, as `204 to 206`; `not known` where one of them is."""
    return NOT_KNOWN if values.isna().any() else value_range(values.tolist(), 0)


def hit_rates(values: pd.Series) -> str:
    """Their median and, where they differ, their range; `not known` where one of them is."""
    if values.isna().any():
        return NOT_KNOWN
    low, middle, high = (unsigned_percent(float(one)) for one in (values.min(), values.median(), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"
