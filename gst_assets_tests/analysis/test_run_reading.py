from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gst_assets.analysis.run_reading import load_own_run, load_run
from gst_assets.contracts.documents import RealRunMeta, read_document, write_document
from gst_assets.contracts.store import directory_digests
from gst_assets.contracts.tables import Iterations, write_table
from gst_assets.errors import ArtifactError, ContractError
from gst_assets_tests.analysis.run_directories import MS, Recipe, Request, steady, write_real, write_simulation


def _sign_again(directory: Path) -> None:
    """Record the digests of the files as they are now, as a program would that wrote them so."""
    meta = read_document(RealRunMeta, directory / "run_meta.json")
    digests = directory_digests(directory, "run_meta.json")
    write_document(meta.model_copy(update={"sha256": digests}), directory / "run_meta.json")


def test_both_kinds_load(tmp_path: Path) -> None:
    real = load_run(write_real(tmp_path / "r", steady(3, 4)), "real")
    sim = load_run(write_simulation(tmp_path / "s", steady(3, 4)), "vidur")
    assert (len(real.requests), len(real.tokens), real.iterations) == (3, 12, None)
    assert (real.meta.run_id, sim.meta.variant) == ("r", "calibrated")


def test_iterations_are_read_where_present(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(1, 2))
    row = dict.fromkeys(Iterations.column_types()[0], 1)
    write_table(Iterations, pd.DataFrame([row]).astype("Int64"), directory)
    assert load_run(directory, "real").iterations is None  # not listed, so none of this run's
    _sign_again(directory)
    run = load_run(directory, "real")
    assert run.iterations is not None and len(run.iterations) == 1


def test_columns_in_another_order_and_an_unknown_one_make_no_difference(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    before = load_run(directory, "real")
    for name in ("request_metrics.csv", "token_metrics.csv"):
        frame = pd.read_csv(directory / name)
        frame[frame.columns[::-1]].assign(extra=1).to_csv(directory / name, index=False)
    _sign_again(directory)
    after = load_run(directory, "real")
    pd.testing.assert_frame_equal(after.requests.drop(columns="extra"), before.requests)
    pd.testing.assert_frame_equal(after.tokens, before.tokens)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="absent: no such directory"):
        load_run(tmp_path / "absent", "real")


def test_directory_without_its_metadata(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    (directory / "run_meta.json").unlink()
    with pytest.raises(ArtifactError, match=r"run_meta\.json missing, so this is not a complete run"):
        load_run(directory, "real")


def test_a_file_changed_after_it_was_written(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    with (directory / "token_metrics.csv").open("a") as handle:
        handle.write("2,4,99000000,1\n")
    with pytest.raises(ArtifactError, match=r"token_metrics\.csv: content differs from the digest"):
        load_run(directory, "real")


def test_tables_that_disagree(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    lines = (directory / "token_metrics.csv").read_text().splitlines(keepends=True)
    (directory / "token_metrics.csv").write_text("".join(lines[:-1]))
    _sign_again(directory)
    with pytest.raises(
        ContractError, match=r"request 2 has 3 rows in token_metrics\.csv but num_decode_tokens_actual 4"
    ):
        load_run(directory, "real")


@pytest.mark.parametrize("name", ["request_metrics.csv", "token_metrics.csv"])
def test_a_table_is_missing(tmp_path: Path, name: str) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    (directory / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing, but run_meta.json lists it"):
        load_run(directory, "real")


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_a_packed_run_is_to_be_unpacked_first(tmp_path: Path, suffix: str) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    table = directory / "request_metrics.csv"
    table.rename(f"{table}.{suffix}")
    with pytest.raises(ArtifactError) as raised:
        load_run(directory, "real")
    assert str(raised.value) == (
        f"{table}: missing, but {table.name}.{suffix} lies there: a packed run. Unpack it first with `gst recorded"
        f" expand {directory} --out DIR`, and point to DIR/r."
    )


def test_a_required_column_is_missing(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(3, 4))
    pd.read_csv(directory / "request_metrics.csv").drop(columns="ttft_ns").to_csv(
        directory / "request_metrics.csv", index=False
    )
    _sign_again(directory)
    with pytest.raises(ContractError, match=r"request_metrics\.csv: column ttft_ns missing"):
        load_run(directory, "real")


def test_a_simulation_given_as_a_real_run_and_the_reverse(tmp_path: Path) -> None:
    sim = write_simulation(tmp_path / "s", steady(1, 1))
    real = write_real(tmp_path / "r", steady(1, 1))
    with pytest.raises(ArtifactError, match=r"run_type is 'vidur' \(a simulation\), expected a real run"):
        load_run(sim, "real")
    with pytest.raises(ArtifactError, match=r"run_type is 'real' \(a real run\), expected a simulation"):
        load_run(real, "vidur")


def test_metadata_that_breaks_the_contract(tmp_path: Path) -> None:
    directory = write_real(tmp_path / "r", steady(1, 1))
    path = directory / "run_meta.json"
    path.write_text(path.read_text().replace('"degraded": false,', ""))
    with pytest.raises(ContractError, match=r"run_meta\.json: key degraded missing"):
        load_own_run(directory, "real")
    assert load_run(directory, "real").meta.degraded is None
    path.write_text(path.read_text().replace('"backend": "vllm",', "", 1))
    with pytest.raises(ContractError, match=r"run_meta\.json: key backend missing"):
        load_run(directory, "real")


def test_failed_requests_load(tmp_path: Path) -> None:
    recipe = Recipe([Request(0, (5 * MS,)), Request(0, (), asked=3, status="error")])
    run = load_run(write_real(tmp_path / "r", recipe), "real")
    assert run.requests["ttft_ns"].isna().tolist() == [False, True]
