"""Mooncake's hash_ids as prompts: equal ids are equal tokens, and a list that does not fit its row is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from gst_assets.errors import ScenarioError, WorkloadError
from gst_assets.scenario import Scenario, load_scenario
from gst_assets.vidur_adapter.prefix_keys import prompt_block_keys
from gst_assets.workload.building import build
from gst_assets.workload.requests import plan_requests
from gst_assets.workload.tokenized import requests_of
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer
from gst_assets_tests.workload.published import PUBLISHED

ROWS: list[tuple[int, list[int]]] = [
    (1300, [46, 47, 2353]),
    (1200, [46, 47, 2354]),
    (1024, [46, 47]),
    (700, [46, 9]),
    (700, [46, 9]),
    (600, [10**15 - 1, 47]),
    (31, [46]),
    (512, [8]),
    (513, [8, 9]),
]
"""Tokens of the prompt and its hash ids: a cut last block of another's whole one, one row twice, an id behind another
one, a whole last block."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("data/tokenizer/qwen3")


def lines(rows: Sequence[tuple[object, object]]) -> str:
    return "".join(
        json.dumps({"timestamp": 3000 * at, "input_length": tokens, "output_length": 4, "hash_ids": ids}) + "\n"
        for at, (tokens, ids) in enumerate(rows)
    )


def scenario(path: Path, content: str, *overrides: str) -> Scenario:
    path.write_text(content)
    return load_scenario(
        "smoke",
        [
            "workload.prompts=null",
            "workload.num_requests=null",
            "workload.num_decode_tokens=null",
            "workload.arrivals={kind: trace}",
            f"workload.trace.path={path}",
            "workload.trace.shared_prefixes=true",
            "model.max_model_len=2048",
            *overrides,
        ],
    )


def tokens_of(tmp_path: Path, of: Scenario, tokenizer: Tokenizer, name: str) -> list[list[int]]:
    (tmp_path / name).mkdir()
    built = build(of, tmp_path / name, tokenizer=tokenizer)
    return [request.prompt_token_ids for request in requests_of(built, of, tokenizer=tokenizer)]


def shared_by_ids(one: tuple[int, list[int]], two: tuple[int, list[int]]) -> int:
    """Tokens that two rows begin with alike, as their ids say."""
    shared = 0
    for at, (first, second) in enumerate(zip(one[1], two[1], strict=False)):
        if first != second:
            break
        shared = min(one[0], two[0], 512 * (at + 1))
    return shared


def shared_by_tokens(one: list[int], two: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def test_prompts_share_as_many_tokens_as_their_ids_say(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens = tokens_of(tmp_path, scenario(tmp_path / "t", lines(ROWS)), tokenizer, "all")
    assert [len(one) for one in tokens] == [length for length, _ in ROWS]
    found = {pair: shared_by_tokens(tokens[pair[0]], tokens[pair[1]]) for pair in combinations(range(len(ROWS)), 2)}
    assert found == {(a, b): shared_by_ids(ROWS[a], ROWS[b]) for a, b in found}
    assert found[0, 1] == 1024 and found[0, 6] == 31 and found[3, 4] == 700 and found[0, 5] == 0
    # The same block behind another one has the same tokens, but no KV block in common.
    assert tokens[5][512:] == tokens[0][512:600]
    keys = prompt_block_keys(tokens, 16)
    for (a, b), shared in found.items():
        assert len(set(keys[a]) & set(keys[b])) == shared // 16


def test_tokens_follow_from_seed_and_id_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    of = scenario(tmp_path / "t", lines(ROWS))
    tokens = tokens_of(tmp_path, of, tokenizer, "all")
    later = ["workload.trace.start_row=3", "workload.num_requests=2", f"workload.seed={of.workload.seed}"]
    assert tokens_of(tmp_path, scenario(tmp_path / "t", lines(ROWS), *later), tokenizer, "later") == tokens[3:5]
    dropped = scenario(
        tmp_path / "t", lines(ROWS), "workload.trace.over_length=drop", "workload.trace.max_total_tokens=1000"
    )
    assert tokens_of(tmp_path, dropped, tokenizer, "dropped") == tokens[3:]
    cut = scenario(
        tmp_path / "t", lines(ROWS), "workload.trace.over_length=truncate", "workload.trace.max_total_tokens=604"
    )
    assert tokens_of(tmp_path, cut, tokenizer, "cut") == [one[:600] for one in tokens]
    other = scenario(tmp_path / "t", lines(ROWS), f"workload.seed={of.workload.seed + 1}")
    assert tokens_of(tmp_path, other, tokenizer, "other")[0][:20] != tokens[0][:20]
    # In blocks of one line, and with a float among the times, which is read line by line.
    assert (
        plan_requests(of, tokenizer, block_bytes=1).words.word.tolist()
        == plan_requests(of, tokenizer).words.word.tolist()
    )
    slow = scenario(
        tmp_path / "t", lines(ROWS).replace('"timestamp": 3000,', '"timestamp": 3000.5,'),
        "workload.trace.format=mooncake",
    )  # fmt: skip
    assert tokens_of(tmp_path, slow, tokenizer, "slow") == tokens


def test_a_file_as_published_is_read_and_its_ids_count_as_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    content = PUBLISHED["mooncake"][1].decode()
    repeated = "workload.arrivals={kind: trace, repeated: keep}"
    plan = plan_requests(scenario(tmp_path / "t", content, repeated), tokenizer)
    assert plan.source.unused_columns == [] and plan.words is not None
    assert plan.words.num_tokens.tolist() == plan.prefill.tolist()
    assert np.diff(np.unique(plan.words.word)).min() >= 512  # no two ids share a word's place
    unread = plan_requests(
        scenario(tmp_path / "t", content, repeated, "workload.trace.shared_prefixes=false"), tokenizer
    )
    assert unread.source.unused_columns == ["hash_ids"] and unread.words is None


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((6955, [1, 2]), "found 2 for 6955 input tokens, expected 14: one for every 512 tokens, the last one for the rest"),
        ((512, [1, 2]), "found 2 for 512 input tokens, expected 1:"),
        ((513, [1]), "found 1 for 513 input tokens, expected 2:"),
        ((600, [1, 2.5]), "item 2: found 2.5, expected an integer of at least 0 and below 1e+15"),
        ((600, [1, 2.0]), "item 2: found 2.0, expected an integer"),
        ((600, [True, 2]), "item 1: found True, expected an integer"),
        ((600, [1, None]), "item 2: found None, expected an integer"),
        ((600, ["1", 2]), "item 1: found '1', expected an integer"),
        ((600, [1, -2]), "item 2: found -2, expected an integer"),
        ((600, [10**15, 2]), "item 1: found 1000000000000000, expected an integer"),
        ((600, [2**64, 2]), "item 1: found 18446744073709551616, expected an integer"),
        ((600, None), "found None, expected a list of 2 integers"),
        ((600, 7), "found 7, expected a list of 2 integers"),
        ((600, {"1": 2}), "found {'1': 2}, expected a list of 2 integers"),
    ],
)  # fmt: skip
def test_a_list_that_does_not_fit_its_row_is_named(
    row: tuple[int, object], says: str, block: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    of = scenario(tmp_path / "t", lines([*ROWS[:2], row, ROWS[2]]))
    with pytest.raises(WorkloadError) as error:
        plan_requests(of, tokenizer, block_bytes=block)
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 't'}: line 3, key hash_ids") and says in said
    assert "set workload.trace.shared_prefixes=false to leave them unread" in said


def test_a_row_without_the_key_and_other_formats_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lacking = lines(ROWS[:2]) + '{"timestamp": 9000, "input_length": 12, "output_length": 3}\n'
    with pytest.raises(WorkloadError, match=r"line 3, key hash_ids: found nothing, expected a list of 1 integers"):
        plan_requests(scenario(tmp_path / "t", lacking), tokenizer)
    vidur = scenario(tmp_path / "t", PUBLISHED["vidur"][1].decode(), "workload.trace.licence=own")
    with pytest.raises(WorkloadError, match=r"only the format mooncake .* this file is of the format vidur"):
        plan_requests(vidur, tokenizer)
    with pytest.raises(ScenarioError, match="share_prompts and shared_prefixes both say which tokens are shared"):
        scenario(tmp_path / "t", lines(ROWS), "workload.trace.share_prompts=true")


def test_a_scenario_without_it_is_recorded_as_before(tmp_path: Path) -> None:
    unset = scenario(tmp_path / "t", lines(ROWS), "workload.trace.shared_prefixes=false")
    assert "shared_prefixes" not in unset.workload.model_dump_json()
    assert "shared_prefixes" in scenario(tmp_path / "t", lines(ROWS)).workload.model_dump_json()
