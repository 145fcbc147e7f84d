"""The history is what the comparison directories say, and nothing else: same directories, same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gst_assets.analysis.history import History, condense, load_history, read_history, write_history
from gst_assets.contracts.store import ArtifactStore, Kind, directory_digests
from gst_assets.errors import ArtifactError, ContractError
from gst_assets.provenance import sha256_file
from gst_assets.testing.histories import Night, noisy, values, write_night, write_nights


def as_bytes(history: History, area: Path) -> dict[str, bytes]:
    shutil.rmtree(area, ignore_errors=True)
    area.mkdir()
    write_history(history, area)
    return {file.name: file.read_bytes() for file in area.iterdir()}


def test_every_comparison_of_the_scenario_is_there_in_order_of_measurement(tmp_path: Path) -> None:
    ids = write_nights(tmp_path, noisy(4, seed=1))
    write_nights(tmp_path, noisy(2, seed=2), scenario="early_stop")
    (tmp_path / "comparisons" / "smoke-incomplete").mkdir()
    history = read_history(ArtifactStore(tmp_path), "smoke")
    assert list(history.comparisons["comparison_id"]) == ids
    assert list(history.comparisons["night"]) == [0, 1, 2, 3]
    assert len(history.latencies) == 4 * 9
    assert set(read_history(ArtifactStore(tmp_path), "early_stop").comparisons["night"]) == {0, 1}
    assert len(read_history(ArtifactStore(tmp_path), "a100_light").comparisons) == 0


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 1000), order=st.permutations(range(6)))
def test_the_order_in_which_directories_appeared_changes_no_byte(tmp_path: Path, seed: int, order: list[int]) -> None:
    nights = noisy(6, seed)
    written = []
    for name, numbers in (("one", range(6)), ("two", order)):
        root = tmp_path / name
        shutil.rmtree(root, ignore_errors=True)
        for number in numbers:
            write_night(root, "smoke", number, nights[number])
        written.append(as_bytes(read_history(ArtifactStore(root), "smoke"), tmp_path / f"{name}-history"))
    assert written[0] == written[1]


def test_writing_twice_gives_the_same_bytes_and_reads_back(tmp_path: Path) -> None:
    write_nights(tmp_path, noisy(3, seed=3))
    history = read_history(ArtifactStore(tmp_path), "smoke")
    assert as_bytes(history, tmp_path / "one") == as_bytes(history, tmp_path / "two")
    again, meta = load_history(tmp_path / "one")
    assert again.comparisons.equals(history.comparisons) and again.latencies.equals(history.latencies)
    assert meta.sha256 == directory_digests(tmp_path / "one", "history_meta.json")


def test_comparing_a_measurement_again_is_no_new_night(tmp_path: Path) -> None:
    first, second, third = (Night(values(), values(factor), group="g") for factor in (1.0, 1.1, 1.2))
    ids = write_nights(tmp_path, [first, second, third])
    rows = read_history(ArtifactStore(tmp_path), "smoke").comparisons
    assert list(rows["comparison_id"]) == ids
    assert rows["night"].isna().tolist() == [True, True, False]


def test_what_was_not_recorded_is_unknown_and_no_night(tmp_path: Path) -> None:
    write_nights(tmp_path, [Night(values(), values(), measured=False), Night(values(), values())])
    rows = read_history(ArtifactStore(tmp_path), "smoke").comparisons
    assert rows["subject"].eq("").tolist() == [True, False]
    assert rows["night"].isna().tolist() == [True, False]
    assert rows["engine_version"].tolist() == ["", "0.32.0"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (Night(values(), values(), settings={"engine_version": "0.33.0", "num_kv_blocks": 1000}), True),
        (Night(values(), values(), settings={"max_num_seqs": 64}), False),
        (Night(values(), values(), meta={"workload_id": "wl-other"}), False),
        (Night(values(), values(), meta={"hardware": {"hardware_id": "cpu", "device_name": "Other", "device_count": 1}}), False),
        (Night(values(), values(), meta={"params": {"model": {"name": "other"}, "engine": {"backend": "vllm"}}}), False),
    ],
)  # fmt: skip
def test_the_subject_is_hardware_model_settings_and_workload(tmp_path: Path, change: Night, same: bool) -> None:
    write_nights(tmp_path, [Night(values(), values()), change])
    subjects = read_history(ArtifactStore(tmp_path), "smoke").comparisons["subject"]
    assert (subjects.iloc[0] == subjects.iloc[1]) is same


@pytest.mark.parametrize("is_pruned", [False, True])
def test_nights_that_counted_the_gpus_of_the_host_are_of_the_same_subject(tmp_path: Path, is_pruned: bool) -> None:
    """Eight were there, one was used, and is what is counted now."""
    ids = write_nights(tmp_path, noisy(3, seed=7))
    before = read_history(ArtifactStore(tmp_path), "smoke").comparisons
    for earlier in ids[:2]:
        meta = tmp_path / "comparisons" / earlier / "run_meta.json"
        meta.write_text(meta.read_text().replace('"device_count": 1', '"device_count": 8'))
    if is_pruned:
        condense(ArtifactStore(tmp_path), ids[0], None)
        shutil.rmtree(tmp_path / "comparisons" / ids[0])
    rows = read_history(ArtifactStore(tmp_path), "smoke").comparisons
    assert list(rows["subject"]) == list(before["subject"]) and list(rows["night"]) == [0, 1, 2]
    assert set(rows["device_count"]) == {1}


def test_an_altered_comparison_is_named(tmp_path: Path) -> None:
    ids = write_nights(tmp_path, noisy(2, seed=4))
    table = tmp_path / "comparisons" / ids[1] / "tables" / "latency_errors.csv"
    table.write_text(table.read_text().replace("ttft", "itl", 1))
    with pytest.raises(ArtifactError, match=f"{ids[1]}/tables/latency_errors.csv: missing, or changed"):
        read_history(ArtifactStore(tmp_path), "smoke")


def test_a_comparison_that_breaks_the_contract_is_named_with_its_line(tmp_path: Path) -> None:
    ids = write_nights(tmp_path, noisy(3, seed=5))
    directory = tmp_path / "comparisons" / ids[1]
    table, meta = directory / "tables" / "latency_errors.csv", directory / "run_meta.json"
    before = sha256_file(table)
    table.write_text(table.read_text().replace(",pass", ",splendid", 1))
    meta.write_text(meta.read_text().replace(before, sha256_file(table)))
    with pytest.raises(
        ContractError, match=f"{ids[1]}/tables/latency_errors.csv: line 2, column verdict: found 'splendid'"
    ):
        read_history(ArtifactStore(tmp_path), "smoke")


def test_a_table_with_a_column_of_another_program_is_read_too(tmp_path: Path) -> None:
    ids = write_nights(tmp_path, noisy(3, seed=6))
    directory = tmp_path / "comparisons" / ids[1]
    table, meta = directory / "tables" / "latency_errors.csv", directory / "run_meta.json"
    before, expected = sha256_file(table), read_history(ArtifactStore(tmp_path), "smoke").latencies
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header + ",note", *[row + ",mine" for row in rows]]) + "\n")
    meta.write_text(meta.read_text().replace(before, sha256_file(table)))
    assert read_history(ArtifactStore(tmp_path), "smoke").latencies.equals(expected)


def _as_far_as_it_can_be_read(tmp_path: Path) -> History:
    return read_history(ArtifactStore(tmp_path), "smoke")


def _loop(folder: Path) -> None:
    folder.symlink_to(folder)


def _file(folder: Path) -> None:
    folder.touch()


@pytest.mark.parametrize("make", [_loop, _file])
def test_comparisons_that_cannot_be_listed_are_not_none(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "comparisons")
    with pytest.raises(ArtifactError, match=r"comparisons: cannot be listed \(.*\)\. Check the disk, the mount"):
        _as_far_as_it_can_be_read(tmp_path)


@pytest.mark.parametrize("after", ["moved", "unmounted", "another"])
def test_a_history_is_not_replaced_by_an_empty_one(tmp_path: Path, after: str) -> None:
    """Moved away, an empty mount point, and one in which only tonight's comparison is."""
    ids = write_nights(tmp_path, noisy(3, seed=1))
    store = ArtifactStore(tmp_path)
    with store.stage(Kind.HISTORY, "smoke") as staging:
        write_history(_as_far_as_it_can_be_read(tmp_path), staging.path)
        staging.commit(replace=True)
    (tmp_path / "comparisons").rename(tmp_path / "elsewhere")
    if after != "moved":
        (tmp_path / "comparisons").mkdir()
    if after == "another":
        shutil.copytree(tmp_path / "elsewhere" / ids[0], tmp_path / "comparisons" / "smoke-tonight")
    with pytest.raises(ArtifactError, match=rf"comparisons: none of the 3 comparisons .*{ids[-1]}.*Mount or move them"):
        _as_far_as_it_can_be_read(tmp_path)
    # Said to be on purpose: nothing knows them any more.
    shutil.rmtree(tmp_path / "history")
    assert len(_as_far_as_it_can_be_read(tmp_path).comparisons) == (after == "another")


def test_the_newest_comparison_is_missed_where_there_was_no_history_yet(tmp_path: Path) -> None:
    (ident,) = write_nights(tmp_path, noisy(1, seed=1))
    ArtifactStore(tmp_path).set_current("smoke", "comparison", {"comparison_id": ident})
    shutil.rmtree(tmp_path / "comparisons")
    with pytest.raises(ArtifactError, match=rf"none of the 1 comparisons .*\({ident}, for one\)"):
        _as_far_as_it_can_be_read(tmp_path)


def _commit_history(tmp_path: Path) -> History:
    history, store = _as_far_as_it_can_be_read(tmp_path), ArtifactStore(tmp_path)
    with store.stage(Kind.HISTORY, "smoke") as staging:
        write_history(history, staging.path)
        staging.commit(replace=True)
    return history


def test_one_removed_comparison_is_left_out_and_told_once(tmp_path: Path) -> None:
    ids = write_nights(tmp_path, noisy(3, seed=1))
    assert _commit_history(tmp_path).gone == ()
    shutil.rmtree(tmp_path / "comparisons" / ids[1])
    history = _commit_history(tmp_path)
    assert list(history.comparisons["comparison_id"]) == [ids[0], ids[2]] and history.gone == (ids[1],)
    assert _as_far_as_it_can_be_read(tmp_path).gone == ()


def test_a_comparison_that_vanished_before_any_history_knew_it_is_told_by_its_pointer(tmp_path: Path) -> None:
    store, ids = ArtifactStore(tmp_path), write_nights(tmp_path, noisy(3, seed=1))
    for ident in ids[:2]:
        store.set_current("smoke", "comparison", {"comparison_id": ident})
    _commit_history(tmp_path)
    (new,) = write_nights(tmp_path / "other", noisy(1, seed=2))
    store.set_current("smoke", "comparison", {"comparison_id": f"{new}-tonight"})
    assert _as_far_as_it_can_be_read(tmp_path).gone == (f"{new}-tonight",)


@pytest.mark.parametrize("known_by", ["history", "pointer"])
def test_a_verdict_flipped_to_pass_is_refused(tmp_path: Path, known_by: str) -> None:
    """Every file still has the digest that the metadata lists."""
    nights = [replace(night, meta={"verdict": "fail"}) for night in noisy(3, seed=1)]
    store, ids = ArtifactStore(tmp_path), write_nights(tmp_path, nights)
    meta = tmp_path / "comparisons" / ids[1] / "run_meta.json"
    if known_by == "history":
        _commit_history(tmp_path)
    else:
        sealed = {f"comparisons/{ids[1]}": sha256_file(meta)}
        store.set_current("smoke", "comparison", {"comparison_id": ids[1], "sealed": sealed})
    meta.write_text(meta.read_text().replace('"verdict": "fail"', '"verdict": "pass"'))
    assert store.open(Kind.COMPARISON, ids[1]).is_dir()
    with pytest.raises(ArtifactError, match=rf"^{meta}: changed after it was written.*or remove {meta.parent} and"):
        _as_far_as_it_can_be_read(tmp_path)


def test_an_edit_that_hides_whose_a_comparison_is_is_refused_too(tmp_path: Path) -> None:
    ids = write_nights(tmp_path, noisy(3, seed=1))
    _commit_history(tmp_path)
    meta = tmp_path / "comparisons" / ids[1] / "run_meta.json"
    meta.write_text(meta.read_text().replace('"config_name": "smoke"', '"config_name": "other"'))
    with pytest.raises(ArtifactError, match=rf"^{meta}: changed after it was written"):
        _as_far_as_it_can_be_read(tmp_path)


def _not_json(meta: Path) -> None:
    meta.write_text("{")


def _a_list(meta: Path) -> None:
    meta.write_text("[]")


def _unreadable(meta: Path) -> None:
    meta.unlink()
    meta.symlink_to(meta)


@pytest.mark.parametrize("breaks", [_not_json, _a_list, _unreadable])
def test_a_broken_comparison_stops_its_own_scenarios_history_only(
    tmp_path: Path, breaks: Callable[[Path], None]
) -> None:
    ids = write_nights(tmp_path, noisy(2, seed=1))
    (other,) = write_nights(tmp_path, noisy(1, seed=2), scenario="early_stop")
    breaks(tmp_path / "comparisons" / other / "run_meta.json")
    assert list(_as_far_as_it_can_be_read(tmp_path).comparisons["comparison_id"]) == ids
    with pytest.raises((ArtifactError, ContractError), match=other):
        read_history(ArtifactStore(tmp_path), "early_stop")
