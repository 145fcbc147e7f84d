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


def test_a_line_of_parents_has_an_end_and_a_parent_of_many_is_read_once(directory: Path) -> None:
    parent, mine = ((directory / f"{name}.yaml").read_text() for name in ("_parent", "mine"))
    for number in range(100):
        (directory / f"_p{number}.yaml").write_text(f"extends: _p{number + 1}\n")
    (directory / "mine.yaml").write_text("extends: _p0\n")
    assert "extends leads over more than 20 files from mine to here" in error_of(directory)
    # Each of these doubles the ways to the last one: 2^18.
    for number in range(18):
        (directory / f"_p{number}.yaml").write_text(f"extends: [_p{number + 1}, _q{number + 1}]\n")
        (directory / f"_q{number}.yaml").write_text(f"extends: [_p{number + 1}, _q{number + 1}]\n")
    for last in ("_p18", "_q18"):
        (directory / f"{last}.yaml").write_text(parent)
    (directory / "mine.yaml").write_text(mine.replace("extends: _parent", "extends: _p0"))
    assert load(directory).name == "mine"


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
        (b"a: !!python/name:os.system x\n", "line 1: the tag `!!python/name:os.system` is written"),
        (b"a: \x00\n", "not valid YAML ("),
        (b"!!binary eA==: 1\n", "line 1: the tag `!!binary` is written"),
        (b"a: 1\n7: 2\n", "line 2: `7` is written as a key, expected a name"),
        (b"? [a]\n: 2\n", "line 1: a list or a mapping is written as a key"),
        (b"a: 1\nb: !!binary eA==\n", "line 2: the tag `!!binary` is written"),
        (
            b"a: " + b"9" * 5000,
            "line 1: `99999999999999999999...` is written, 5000 characters that YAML takes for one number",
        ),
        (b"a:\n " + b"[" * 200, "line 2: more than 100 levels of mappings and lists"),
        (b"a: &a [1, *a]\n", "line 1: an alias is written inside what it stands for"),
        (
            b"x: &x0 [1, 1]\n" + b"".join(b"y%d: &x%d [*x%d, *x%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40)),
            "line 1: its aliases stand for more than 100000 values",
        ),
        (
            b"x0: y\n" + b"".join(b"x%d: ${x%d}${x%d}\n" % (n, n - 1, n - 1) for n in range(1, 40)),
            "78 interpolations, expected at most 24",
        ),
        (b"a: " + b"x" * 300_000, "not valid YAML (300003 characters, expected at most 262144)"),
        (b"a: " + b"x" * 2_000_000, "has 2000003 bytes, expected a scenario file of at most 1048576"),
        (b'a: "\\ud800"\n', "line 1: half of a surrogate pair is written"),
        (b"\xef\xbb\xbfa: 1\n", "begins with a byte order mark"),
        (b"extends: [" + b"_parent, " * 30 + b"]\n", "line 1: extends names 30 parents, expected at most 20"),
    ],
)
def test_a_file_that_is_no_scenario(directory: Path, content: bytes, says: str) -> None:
    path = directory / "mine.yaml"
    path.write_bytes(content)
    message = error_of(directory)
    assert message.startswith(f"{path}: ") and says in message
