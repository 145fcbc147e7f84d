"""Cached tokens of both sides, request by request: what the table, the sentence, the report and the UI say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gst_assets.analysis.cached_tokens import cached_tokens_sentence
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import write_comparison
from gst_assets.analysis.run_reading import load_run
from gst_assets.assets.comparisons import _prefix_cache
from gst_assets.contracts.tables import CachedTokens, read_table
from gst_assets.scenario import Bands
from gst_assets_tests.analysis.run_directories import ENGINE_SETTINGS, Recipe, steady, write_real, write_simulation

CACHE_ON = ENGINE_SETTINGS | {"enable_prefix_caching": True}
ENGINE = CACHE_ON | {
    "backend": "vllm",
    "engine_version": "0.32.0",
    "max_model_len": 2048,
    "attention_backend": "CPU_ATTN",
}
NOBODY: list[int | None] = [0] * 30
"""Thirty requests with prompts of 8 tokens: 240 prompt tokens."""


def run(cached: Sequence[int | None] | None, **meta: Any) -> Recipe:
    columns = {} if cached is None else {"num_cached_tokens": cached}
    return replace(steady(30, 3), columns=columns).with_meta(**meta)


def real(cached: Sequence[int | None] | None, **meta: Any) -> Recipe:
    return run(cached, **({"engine_settings": ENGINE} | meta))


def sim(cached: Sequence[int | None] | None, **meta: Any) -> Recipe:
    return run(cached, **({"simulated_settings": CACHE_ON} | meta))


def first(*tokens: int | None) -> list[int | None]:
    """These of the first requests, none of the rest."""
    return [*tokens, *NOBODY[len(tokens) :]]


def compared(folder: Path, reals: Sequence[Recipe], **sims: Recipe) -> Comparison:
    repeats = [load_run(write_real(folder / f"r{k}", one), "real") for k, one in enumerate(reals)]
    simulations = {name: load_run(write_simulation(folder / name, one, name), "vidur") for name, one in sims.items()}
    return compare(repeats, simulations, bands=Bands())


def rows(comparison: Comparison) -> pd.DataFrame:
    return comparison.cached_tokens.set_index(["run_id", "compared_with"])


def summary(comparison: Comparison, folder: Path) -> str:
    folder.mkdir()
    write_comparison(comparison, folder, None)
    return (folder / "summary.md").read_text()


def test_every_repeat_stands_beside_the_simulations_and_the_repeats_before_it(tmp_path: Path) -> None:
    comparison = compared(
        tmp_path,
        [real(first(8, 8, 8)), real(first(8, 8, 2)), real(first(8, 8, 8))],
        kernels=sim(first(8, 8, 8)),
        calibrated=sim(first(8, 7, 4)),
    )
    table = rows(comparison)
    assert table.index.tolist() == [
        ("r0", "kernels"), ("r0", "calibrated"),
        ("r1", "kernels"), ("r1", "calibrated"), ("r1", "r0"),
        ("r2", "kernels"), ("r2", "calibrated"), ("r2", "r0"), ("r2", "r1"),
    ]  # fmt: skip
    assert (table["num_requests"] == 30).all()
    assert table["num_equal"].tolist() == [30, 28, 29, 28, 29, 30, 28, 30, 29]
    assert table["max_difference_tokens"].tolist() == [0, 4, 6, 2, 6, 0, 4, 0, 6]
    middle = table["median_difference_tokens"]
    assert middle["r0", "calibrated"] == 2.5 and middle["r1", "calibrated"] == 1.5 and pd.isna(middle["r0", "kernels"])
    one = table.loc["r1", "calibrated"]
    assert (one["num_real_cached_tokens"], one["num_other_cached_tokens"]) == (18, 19)
    assert one["real_hit_rate"] == 18 / 240 and one["other_hit_rate"] == 19 / 240
    text = summary(comparison, tmp_path / "out")
    sentence = (
        "Hit rate of the prefix cache: real 10.0 % (7.5 % to 10.0 %), `calibrated` 7.9 %; cached tokens are equal in"
        " 28 of 30 requests (real repeats among each other: 29 to 30 of 30), and differ in the others by 2.5 tokens at"
        " the median, 4 at most."
    )
    assert sentence in text and _prefix_cache(comparison)["prefix_cache"].value == sentence
    for line in (
        "| kernels | 10.0 % (7.5 % to 10.0 %) | 10.0 % | 29 to 30 of 30 | 0 to 1 | 6 | 6 |",
        "| calibrated | 10.0 % (7.5 % to 10.0 %) | 7.9 % | 28 of 30 | 2 | 2.5 | 4 |",
        "| the other real repeats | – | – | 29 to 30 of 30 | 0 to 1 | 6 | 6 |",
    ):
        assert line in text, text
    assert "What else is known" not in text
    read = read_table(CachedTokens, tmp_path / "out" / "tables" / "cached_tokens.csv")
    pd.testing.assert_frame_equal(read, comparison.cached_tokens)
    assert sentence.split("`")[0] in (tmp_path / "out" / "report.html").read_text()


def test_all_equal_has_no_difference_to_tell(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [real(first(8))], calibrated=sim(first(8)))
    assert cached_tokens_sentence(comparison.cached_tokens, "calibrated") == (
        "Hit rate of the prefix cache: real 3.3 %, `calibrated` 3.3 %; cached tokens are equal in 30 of 30 requests."
    )
    assert "| calibrated | 3.3 % | 3.3 % | 30 of 30 | 0 | – | – |" in summary(comparison, tmp_path / "out")


def test_without_a_prefix_cache_nothing_is_said(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [run(None), run(None)], calibrated=run(None))
    assert comparison.cached_tokens.empty and _prefix_cache(comparison) == {}
    text = summary(comparison, tmp_path / "out")
    assert "refix cache" not in text and "cached" not in text
    assert not (tmp_path / "out" / "tables" / "cached_tokens.csv").exists()


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (real(None), sim(first(8)), "real not known, `calibrated` 3.3 %"),
        (real(first(8)), sim(None), "real 3.3 %, `calibrated` not known"),
        (real(None), sim(None), "real not known, `calibrated` not known"),
    ],
)
def test_what_a_side_does_not_state_is_not_known(ours: Recipe, theirs: Recipe, told: str, tmp_path: Path) -> None:
    comparison = compared(tmp_path, [ours, ours], calibrated=theirs)
    assert comparison.cached_tokens["num_equal"].isna().tolist()[0]
    text = summary(comparison, tmp_path / "out")
    assert f"Hit rate of the prefix cache: {told}; how many requests are equal is not known." in text
    (line,) = [line for line in text.splitlines() if line.startswith("| calibrated |") and "not known" in line]
    assert line.endswith("| not known | not known | not known | not known |")


def test_a_server_whose_setting_is_only_stated_is_not_known(tmp_path: Path) -> None:
    stated = ENGINE | {"enable_prefix_caching": False, "not_read_back": ["enable_prefix_caching"]}
    comparison = compared(tmp_path, [real(None, engine_settings=stated)], calibrated=sim(first(8)))
    assert pd.isna(rows(comparison).loc[("r0", "calibrated"), "real_hit_rate"])


def test_a_run_of_another_program_that_states_no_settings_is_not_known(tmp_path: Path) -> None:
    silent = load_run(write_real(tmp_path / "r0", run(None)), "real")
    silent = replace(silent, meta=silent.meta.model_copy(update={"engine_settings": None}))
    other = load_run(write_simulation(tmp_path / "calibrated", sim(first(8))), "vidur")
    table = compare([silent], {"calibrated": other}, bands=Bands()).cached_tokens
    assert pd.isna(table["num_equal"][0]) and pd.isna(table["real_hit_rate"][0])
    plain = load_run(write_simulation(tmp_path / "plain", run(None, simulated_settings={})), "vidur")
    assert compare([silent], {"calibrated": plain}, bands=Bands()).cached_tokens.empty, "nobody speaks of a cache"


def test_a_side_without_a_prefix_cache_has_no_cached_tokens(tmp_path: Path) -> None:
    """That is known, and not equal to the other side's."""
    comparison = compared(tmp_path, [real(first(8, 4))], calibrated=run(None))
    one = rows(comparison).loc["r0", "calibrated"]
    assert one["other_hit_rate"] == 0 and one["num_equal"] == 28
    text = summary(comparison, tmp_path / "out")
    assert "What else is known of the two caches: enable_prefix_caching: engine True, calibrated False" in text


def test_requests_that_a_side_does_not_state_are_in_no_figure(tmp_path: Path) -> None:
    comparison = compared(tmp_path, [real(first(None, 4))], calibrated=sim(first(8, 8)))
    one = rows(comparison).loc["r0", "calibrated"]
    assert (one["num_requests"], one["num_equal"]) == (29, 28)
    assert one["other_hit_rate"] == 8 / 232, "of the same requests"
    other = rows(compared(tmp_path / "a", [real(first(8, 8))], calibrated=sim(first(8, None)))).loc["r0", "calibrated"]
    assert (other["num_requests"], other["num_equal"], other["real_hit_rate"]) == (29, 29, 8 / 232)
    none = compared(tmp_path / "b", [real([None] * 30)], calibrated=sim(first(8)))
    assert none.cached_tokens["num_equal"].isna().all() and none.cached_tokens["real_hit_rate"].isna().all()


def test_caches_of_another_size_and_preemptions_are_told_with_it(tmp_path: Path) -> None:
    small = sim(first(8), simulated_settings=CACHE_ON | {"num_kv_blocks": 100}, num_preemptions=3)
    ours = real(first(8))
    ours = replace(ours, columns={**ours.columns, "num_preemptions": [1, *[0] * 29]})
    text = summary(compared(tmp_path, [ours], calibrated=small), tmp_path / "out")
    assert (
        "What else is known of the two caches: num_kv_blocks: engine 1024, calibrated 100; simulation calibrated: 3"
        " preemptions, real 1." in text
    )
