"""A bundle that was packed is the same bundle, whoever opens it, and hides nothing."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gst_assets.contracts import packed_files
from gst_assets.contracts.listing import add_to_listing, read_listing
from gst_assets.contracts.packed_files import MAY_BE_PACKED, packed
from gst_assets.contracts.store import ArtifactStore, Kind, open_directory
from gst_assets.errors import ArtifactError, ContractError, ProfileError
from gst_assets.provenance import PROJECT_ROOT, sha256_bytes
from gst_assets.scenario import load_scenario
from gst_assets.step_costs.bundle import load_bundle
from gst_assets.step_costs.bundle_packing import pack_bundle
from gst_assets.vidur_adapter.self_fit import bundle_fit
from gst_assets_tests.gst_command import run_gst
from gst_assets_tests.profiling import tables

SCENARIO = load_scenario("smoke")
SHIPPED = sorted(path.parent for path in (PROJECT_ROOT / "data" / "profiles").rglob("run_meta.json"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle, as it was measured. Not to be changed."""
    return tables.write_bundle(tmp_path_factory.mktemp("written") / "qwen3-tiny", SCENARIO)


@pytest.fixture
def small(written: Path, tmp_path: Path) -> Path:
    """The same, packed."""
    return pack_bundle(written, tmp_path / "small" / "cpu" / "qwen3-tiny")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_packed_bundle_is_the_bundle_that_was_packed(written: Path, small: Path, tmp_path: Path) -> None:
    before, after = contents(written), contents(small)
    for name in MAY_BE_PACKED:
        assert lzma.decompress(after.pop(f"{name}.xz")) == before.pop(name)
    assert after.pop("sha256sums.txt") == f"{sha256_bytes(before['run_meta.json'])}  run_meta.json\n".encode()
    assert after == before
    whole, bundle = load_bundle(written), load_bundle(small)
    assert bundle.sha256 == whole.sha256
    for name in ("mlp", "attention", "overheads", "host_speed", "traffic", "self_fit"):
        pd.testing.assert_frame_equal(getattr(bundle, name), getattr(whole, name))
    pd.testing.assert_frame_equal(bundle_fit(small), bundle_fit(written))
    again = pack_bundle(small, tmp_path / "again")
    assert contents(again) == contents(small) == contents(pack_bundle(written, tmp_path / "twice"))


@pytest.mark.parametrize("directory", SHIPPED, ids=lambda path: path.relative_to(SHIPPED[0].parents[1]).as_posix())
def test_each_shipped_bundle_is_packed_and_sealed(directory: Path, tmp_path: Path) -> None:
    """Byte for byte what packing makes of it, with the digests of the day on which it was measured."""
    meta = json.loads((directory / "run_meta.json").read_text())
    for name, digest in meta["sha256"].items():
        path = directory / name
        data = (
            lzma.decompress(path.with_name(f"{name}.xz").read_bytes()) if name in MAY_BE_PACKED else path.read_bytes()
        )
        assert sha256_bytes(data) == digest, path
    assert "run_meta.json" in (read_listing(directory) or {})
    assert contents(pack_bundle(directory, tmp_path / "packed")) == contents(directory)
    assert sum(map(len, contents(directory).values())) < 2**19


def test_a_packed_bundle_can_lie_in_a_store(small: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "root")
    place = store.path(Kind.PROFILE, "cpu/qwen3-tiny")
    shutil.copytree(small, place)
    assert load_bundle(store.open(Kind.PROFILE, "cpu/qwen3-tiny")).host_speed is not None


def test_only_tables_of_profiles_may_be_packed(small: Path) -> None:
    """Readers of other artifacts open the names of the contract, and Vidur opens mlp.csv."""
    says = r"traffic\.csv: missing, but run_meta\.json lists it, and \S+\.xz lies there: packed\. `gst recorded expand"
    with pytest.raises(ArtifactError, match=says):
        open_directory(small, Kind.REAL_RUN)
    table = small / "mlp.csv"
    (small / "mlp.csv.xz").write_bytes(packed(table.read_bytes()))
    table.unlink()
    for read in (load_bundle, lambda directory: open_directory(directory, Kind.PROFILE)):
        with pytest.raises(ArtifactError, match=r"mlp\.csv: missing, but run_meta\.json lists it"):
            read(small)


def test_what_lies_beside_a_table_that_is_there_is_not_read(written: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(written, tmp_path / "copy"))
    (copy / "host_speed.csv.xz").write_bytes(b"nothing")
    assert load_bundle(copy).host_speed is not None


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(change((directory / name).read_bytes()))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (
        spoil("host_speed.csv.xz", lambda data: lzma.compress(lzma.decompress(data).replace(b"1", b"2", 1))),
        "host_speed.csv.xz: content differs from the digest in run_meta.json",
    ),
    "cut off": (spoil("host_speed.csv.xz", lambda data: data[:-9]), "host_speed.csv.xz: not a whole xz file (cut off)"),
    "flipped": (
        spoil("calibration_traffic.csv.xz", lambda data: data[:200] + bytes([data[200] ^ 255]) + data[201:]),
        "calibration_traffic.csv.xz: not a whole xz file (",
    ),
    "not packed": (spoil("host_speed.csv.xz", lambda _: b"time_ns"), "host_speed.csv.xz: not a whole xz file ("),
    "missing": (lambda directory: (directory / "host_speed.csv.xz").unlink(), "host_speed.csv: missing, but"),
    "metadata": (spoil("run_meta.json", lambda data: data + b"\n"), "run_meta.json: changed after it was written"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_packed_bundle_that_was_spoiled_is_refused(name: str, small: Path, tmp_path: Path) -> None:
    change, says = SPOILED[name]
    change(small)
    for read in (load_bundle, bundle_fit, lambda directory: pack_bundle(directory, tmp_path / "out")):
        with pytest.raises(ArtifactError, match=re.escape(f"{small}/{says}")):
            read(small)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["pack-profile", "--out", "nowhere"], ["self-fit"]], ids=lambda words: words[0])
def test_a_recorded_run_is_no_profile_and_nothing_is_to_be_removed(words: list[str]) -> None:
    folder = PROJECT_ROOT / "data" / "recorded" / "h100_8b_single"
    run = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    done = run_gst(*words, run)
    assert done.exit_code == 1 and "emove" not in done.stderr
    assert f"{run}: is a real run, not a profiling bundle (run_type is 'real' in run_meta.json)" in done.stderr
    done = run_gst(*words, folder)
    assert done.exit_code == 1 and "emove" not in done.stderr
    assert f"{folder}: has no run_meta.json, but 5 directories below it do: a folder of artifacts" in done.stderr
    assert f"Name one of them, e.g. {run}." in done.stderr


def test_what_a_packed_table_hides_is_not_unpacked_beyond_a_bound(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of zeros in 12 KiB, with a bound of 1 MiB in place of the true one."""
    monkeypatch.setattr(packed_files, "MOST_BYTES", 1 << 20)
    (small / "calibration_traffic.csv.xz").write_bytes(lzma.compress(bytes(64 << 20), preset=0))
    tracemalloc.start()  # after the zeros are gone
    try:
        with pytest.raises(ArtifactError, match=r"traffic\.csv\.xz: more than 1048576 bytes when unpacked\. Restore"):
            open_directory(small, Kind.PROFILE)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_row_that_breaks_the_contract_is_named_in_the_packed_file(small: Path) -> None:
    path = small / "host_speed.csv.xz"
    lines = lzma.decompress(path.read_bytes()).split(b"\n")
    lines[3] = lines[3].replace(b",", b",nosuch", 1)
    data = b"\n".join(lines)
    path.write_bytes(packed(data))
    meta = json.loads((small / "run_meta.json").read_text())
    meta["sha256"]["host_speed.csv"] = sha256_bytes(data)
    (small / "run_meta.json").write_text(json.dumps(meta))
    add_to_listing(small, ["run_meta.json"])
    with pytest.raises(ContractError, match=r"host_speed\.csv\.xz: line 4, column part: found 'nosuch"):
        load_bundle(small)


def test_the_command_keeps_what_is_sealed_and_overwrites_nothing(written: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(written, tmp_path / "measured"))
    (source / "published_forests.json").write_text("{}\n")
    (source / "notes.txt").write_text("not of the bundle\n")
    add_to_listing(source, ["published_forests.json", "run_meta.json"])
    out = tmp_path / "shipped"
    done = run_gst("pack-profile", source, "--out", out)
    assert done.exit_code == 0 and done.stdout == f"{out}\n"
    assert (out / "published_forests.json").read_text() == "{}\n" and not (out / "notes.txt").exists()
    assert read_listing(out) == read_listing(source)
    before = contents(out)
    done = run_gst("pack-profile", source, "--out", out)
    assert done.exit_code == 1
    assert done.stderr == f"error: {out}: already exists. Bundles are never overwritten; remove it first.\n"
    assert contents(out) == before
    (source / "published_forests.json").write_text("[]\n")
    with pytest.raises(ArtifactError, match=r"published_forests\.json: changed after it was written"):
        pack_bundle(source, tmp_path / "other")
    (source / "published_forests.json").unlink()
    with pytest.raises(ArtifactError, match=r"published_forests\.json: listed in .*, but not there\. Restore it"):
        pack_bundle(source, tmp_path / "other")


def test_a_listing_names_the_tables_as_they_lie_there(written: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(written, tmp_path / "measured"))
    add_to_listing(source, ["run_meta.json", "host_speed.csv", "mlp.csv"])
    small = pack_bundle(source, tmp_path / "small")
    listing = read_listing(small) or {}
    assert listing == {name: sha256_bytes((small / name).read_bytes()) for name in listing}
    assert set(listing) == {"run_meta.json", "host_speed.csv.xz", "mlp.csv"}
    assert contents(pack_bundle(small, tmp_path / "again")) == contents(small)


def test_a_bundle_of_another_format_is_not_packed(written: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(written, tmp_path / "old"))
    meta = json.loads((copy / "run_meta.json").read_text())
    (copy / "run_meta.json").write_text(json.dumps(meta | {"format_version": 1}))
    with pytest.raises(ProfileError, match="format_version is 1, expected 2"):
        pack_bundle(copy, tmp_path / "out")
