"""sha256sums.txt: what ships with the project is sealed by it, and `sha256sum -c` agrees."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gst_assets.contracts.listing import NAME, add_to_listing, check_listed, read_listing
from gst_assets.errors import ArtifactError
from gst_assets.provenance import PROJECT_ROOT


def test_what_was_listed_is_held_to_it(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run_meta.json").write_text("{}")
    check_listed(tmp_path, "one/run_meta.json", b"anything", "Remedy.")  # no listing: not sealed
    add_to_listing(tmp_path, ["one/run_meta.json"])
    (tmp_path / "two.json").write_text("2")
    add_to_listing(tmp_path, ["two.json"])
    assert list(read_listing(tmp_path) or ()) == ["one/run_meta.json", "two.json"]
    check_listed(tmp_path, "one/run_meta.json", b"{}", "Remedy.")
    with pytest.raises(ArtifactError, match=r"one/run_meta\.json: changed after it was written: .* Remedy\."):
        check_listed(tmp_path, "one/run_meta.json", b"{} ", "Remedy.")
    with pytest.raises(ArtifactError, match=rf"three: not listed in {tmp_path / NAME}, so it is not read\. Remedy\."):
        check_listed(tmp_path, "three", b"", "Remedy.")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two.json", NAME}


@pytest.mark.parametrize("line", ["", "x", "00  a", f"{'0' * 64} a", f"{'0' * 64}  /a", f"{'0' * 64}  a b", "\xe9", f"{'0' * 64}  a\n{'1' * 64}  a"])  # fmt: skip
def test_a_listing_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / NAME).write_bytes(f"{line}\n".encode("latin-1"))
    with pytest.raises(ArtifactError, match=rf"^{tmp_path / NAME}: (line \d|cannot be read).*Restore it"):
        read_listing(tmp_path)


def test_what_ships_is_listed_whole_and_unchanged() -> None:
    data = PROJECT_ROOT / "data"
    runs = [*data.glob("recorded/*/*/run_meta.json")]
    sealed = [*data.glob("profiles/*/*/run_meta.json"), *data.glob("profiles/*/*/published_forests.json")]
    assert runs and sealed
    for path, folder in [*((run, run.parent.parent) for run in runs), *((file, file.parent) for file in sealed)]:
        assert path.relative_to(folder).as_posix() in (read_listing(folder) or {})
    for folder in {*(run.parent.parent for run in runs), *(file.parent for file in sealed)}:
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", NAME], cwd=folder, check=True)
