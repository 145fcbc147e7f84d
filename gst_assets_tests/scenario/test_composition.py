"""Files, parents and overrides are laid over each other; a file that cannot be one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.scenario import (
    FixedInterval,
    Poisson,
    Static,
)
from gst_assets_tests.scenario.written import error_of, load


@pytest.mark.parametrize(
    "overrides",
    [
        ["workload.arrivals.kind=fixed_interval", "workload.arrivals.interval_ns=5"],
        ["workload.arrivals.interval_ns=5", "workload.arrivals.kind=fixed_interval"],
        ["workload.arrivals={kind: fixed_interval, interval_ns: 5}"],
    ],
)
def test_another_kind_drops_the_settings_of_the_former(directory: Path, overrides: list[str]) -> None:
    assert load(directory, *overrides).workload.arrivals == FixedInterval(kind="fixed_interval", interval_ns=5)
    assert load(directory, "workload.arrivals.kind=static").workload.arrivals == Static(kind="static")
    assert load(directory, "workload.arrivals.kind=poisson").workload.arrivals == Poisson(
        kind="poisson", rate_per_s=6.0
    )


def test_another_kind_in_a_file_drops_the_settings_of_its_parent(directory: Path) -> None:
    (directory / "child.yaml").write_text("extends: mine\ndescription: a child\nworkload: {arrivals: {kind: static}}\n")
    assert load(directory, name="child").workload.arrivals == Static(kind="static")
    assert load(directory, name="child").workload.num_requests == 96


def test_parents_in_a_circle(directory: Path) -> None:
    (directory / "_one.yaml").write_text("extends: _two\n")
    (directory / "_two.yaml").write_text("extends: [_parent, _one]\n")
    (directory / "mine.yaml").write_text("extends: _one\n")
    message = error_of(directory)
    assert message.startswith(f"{directory / '_one.yaml'}: extends goes in a circle: mine -> _one -> _two -> _one.")
    (directory / "mine.yaml").write_text("extends: mine\n")
    assert "extends goes in a circle: mine -> mine." in error_of(directory)


def test_a_parent_is_a_file_of_the_same_folder(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "mine.yaml").write_text("extends: ../_parent\n")
    message = error_of(directory / "sub")
    assert "extends names '../_parent', but" in message and "it has mine" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- 1\n- 2\n", "expected a mapping of settings at the top level, found '- 1"),
        (b"just text\n", "expected a mapping of settings at the top level, found 'just text'"),
        (b"description: \xff\n", "not UTF-8"),
        (b"", "description: required key is missing. ("),
        (b"a: 1\n---\nb: 2\n", "line 2: not valid YAML (but found another document)"),
        (b"a: !!python/name:os.system x\n", "line 1: not valid YAML (could not determine a constructor"),
        (b"a: \x00\n", "not valid YAML ("),
    ],
)
def test_a_file_that_is_no_scenario(directory: Path, content: bytes, says: str) -> None:
    path = directory / "mine.yaml"
    path.write_bytes(content)
    message = error_of(directory)
    assert message.startswith(f"{path}: ") and says in message
