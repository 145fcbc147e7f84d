"""Profiles in the making, without an engine: what is kept, what is continued, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gst_assets.contracts.documents import Hardware
from gst_assets.errors import ProfileError
from gst_assets.profiling.calibration import Round
from gst_assets.profiling.operator_tables import time_batches
from gst_assets.profiling.partial import PartialProfile, subject
from gst_assets.scenario import load_scenario
from gst_assets_tests.engine.memory_engine import SETTINGS
from gst_assets_tests.profiling.calibration.made_rounds import made_round

HARDWARE = Hardware(hardware_id="cpu", device_name="Test CPU", device_count=1)
SCENARIO = load_scenario("smoke")
PLAYS = [{"scenario": "smoke", "settings": "s", "workload": "wl", "group_id": "first"}]


def begun_with(**changes: Any) -> dict[str, Any]:
    return subject(SCENARIO, HARDWARE, PLAYS) | changes


def test_a_round_is_kept_to_the_last_bit(tmp_path: Path) -> None:
    done = made_round(1)
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        partial.keep_round(1, done.as_text(), done.as_array())
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        assert partial.round(0) is None
        kept = partial.round(1)
        assert kept is not None
        again = Round.of(*kept)
        assert again.as_text() == done.as_text() and np.array_equal(again.as_array(), done.as_array())
        assert [one.digest() for one in again.stretches] == [one.digest() for one in done.stretches]
        assert partial.described() == "1 calibration rounds and 0 blocks of operators measured"
        partial.remove()
    assert list(tmp_path.iterdir()) == []


def test_rounds_are_copied_as_they_were_kept_and_can_be_dropped(tmp_path: Path) -> None:
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        for index in (0, 2):
            partial.keep_round(index, f"round {index}", np.full((1, 20), index))
        partial.keep_operator_block("k", [])
        for _ in range(2):  # into a directory that is not there, and into one that is
            partial.copy_rounds(tmp_path / "kept" / "stamps")
        for index in (0, 2):
            name = f"round-{index}.npz"
            assert (tmp_path / "kept" / "stamps" / name).read_bytes() == (partial.folder / name).read_bytes()
        partial.drop_rounds()
        assert partial.round(0) is None and partial.round(2) is None
        assert partial.described() == "0 calibration rounds and 1 blocks of operators measured"
    assert {path.name for path in (tmp_path / "kept" / "stamps").iterdir()} == {"round-0.npz", "round-2.npz"}


class Worker:
    """Times every batch with the number of calls so far, and stops at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.stop_at = stop_at

    async def collective_rpc(self, method: str, *arguments: Any) -> list[Any]:
        assert method == "gst_time_batches"
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(arguments)
        batches, _, repeats, names = arguments
        return [[[{name: len(self.calls) for name in names} for _ in range(repeats)] for _ in batches]]


WANTED = {((index, 1),): ("attn",) for index in range(40)}  # three blocks


def test_what_was_timed_of_other_operators_is_not_taken_over(tmp_path: Path) -> None:
    """As a version of this program would that has other operators, or other batches in a block."""
    others = dict.fromkeys(WANTED, ("attn", "attn_kv_cache_save"))
    shifted = {((index + 1, 1),): ("attn",) for index in range(40)}
    shares: list[float] = []
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        for wanted, num_calls in ((WANTED, 3), (others, 3), (shifted, 3), (WANTED, 0)):
            shares.clear()
            worker = Worker()
            found = asyncio.run(time_batches(worker, wanted, 1, lambda _, share: shares.append(share), partial=partial))
            assert (len(worker.calls), shares[0]) == (num_calls, 0 if num_calls else 1)
            assert {batch: tuple(times[0]) for batch, times in found.items()} == wanted


def test_operators_go_on_where_they_were_and_shapes_are_warmed_again(tmp_path: Path) -> None:
    shares: list[float] = []

    def timed(worker: Worker, partial: PartialProfile) -> dict[Any, Any]:
        return asyncio.run(time_batches(worker, WANTED, 2, lambda _, share: shares.append(share), partial=partial))

    first = Worker(stop_at=4)
    with pytest.raises(KeyboardInterrupt), PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        timed(first, partial)
    with (tmp_path / ".b.partial" / "operators.jsonl").open("a") as handle:
        handle.write('{"key": "sweep 1 block 1", "val')  # killed while it wrote
    second = Worker()
    shares.clear()
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        samples = timed(second, partial)
    assert shares == pytest.approx([4 / 6, 5 / 6, 1])
    assert [warmups for _, warmups, *_ in first.calls] == [1, 1, 1, 0] and [
        warmups for _, warmups, *_ in second.calls
    ] == [1, 1]
    assert samples[((0, 1),)] == [{"attn": 1}, {"attn": 4}] and samples[((39, 1),)] == [{"attn": 3}, {"attn": 2}]
    lines = (tmp_path / ".b.partial" / "operators.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert [key.rpartition(" ")[0] for key in keys][-2:] == ["sweep 1 block 1", "sweep 1 block 2"]
    assert keys[-1].rpartition(" ")[2] == keys[2].rpartition(" ")[2] != keys[-2].rpartition(" ")[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hardware": HARDWARE.model_dump() | {"device_name": "Other"}},
            "hardware device_name Test CPU, and now has device_name Other",
        ),
        ({"versions": {"torch": "9"}}, "versions .*torch"),
        ({"profile_key": "0"}, "profile_key"),
        ({"boot": "another"}, "boot .*, and now has another"),
        ({"plays": []}, r"plays \['smoke'\], and now has \[\]"),
    ],
)
def test_what_was_begun_with_something_else_is_refused_and_kept(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        partial.keep_operator_block("k", [])
    with pytest.raises(ProfileError, match=message), PartialProfile.opened(tmp_path / "b", begun_with(**changes)):
        pass
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        assert partial.operator_blocks() == {"k": []}


def test_runs_between_rounds_keep_the_names_they_were_begun_with(tmp_path: Path) -> None:
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        partial.keep_operator_block("k", [])
    later = begun_with(plays=[PLAYS[0] | {"group_id": "second"}])
    with PartialProfile.opened(tmp_path / "b", later) as partial:
        assert partial.group_ids() == ["first"]


def test_another_engine_is_refused_and_another_number_of_blocks_is_not(tmp_path: Path) -> None:
    with PartialProfile.opened(tmp_path / "b", begun_with()) as partial:
        partial.check_settings(SETTINGS)
        partial.check_settings(SETTINGS.model_copy(update={"num_kv_blocks": 1000}))
        with pytest.raises(ProfileError, match="had attention_backend NONE, the one started now has OTHER"):
            partial.check_settings(SETTINGS.model_copy(update={"attention_backend": "OTHER"}))


def test_two_processes_do_not_share_one_and_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    with PartialProfile.opened(tmp_path / "b", begun_with()):
        with pytest.raises(ProfileError, match="another process"), PartialProfile.opened(tmp_path / "b", begun_with()):
            pass
        assert (tmp_path / ".b.partial").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_or_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ProfileError, match="file/b: no directory can be created next to it"),
        PartialProfile.opened(tmp_path / "file" / "b", begun_with()),
    ):
        pass
    (tmp_path / ".b.partial").mkdir()
    for content in ("{", "[]", "{}"):
        (tmp_path / ".b.partial" / "subject.json").write_text(content)
        with (
            pytest.raises(ProfileError, match=r"subject\.json: not what this program writes .* Remove .*\.b\.partial"),
            PartialProfile.opened(tmp_path / "b", begun_with()),
        ):
            pass
