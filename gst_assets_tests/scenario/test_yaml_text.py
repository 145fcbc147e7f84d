"""What YAML 1.1 would silently make into something else is refused, in files and overrides alike."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gst_assets.scenario.yaml_text import read_yaml
from gst_assets_tests.scenario.written import MINE, error_of, load

_OR_QUOTE = "in quotes for the text."


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("010", f"`010` is written, and YAML would make 8 of it, an octal number. Write 10 for the decimal number, 8 for the octal one, or '010' {_OR_QUOTE}"),
        ("-010", f"`-010` is written, and YAML would make -8 of it, an octal number. Write -10 for the decimal number, -8 for the octal one, or '-010' {_OR_QUOTE}"),
        ("0b11", f"`0b11` is written, and YAML would make 3 of it, a binary number. Write 3, or '0b11' {_OR_QUOTE}"),
        ("1:30", f"`1:30` is written, and YAML would make 90 of it, a number in base 60. Write 90, or '1:30' {_OR_QUOTE}"),
        ("1:30.5", f"`1:30.5` is written, and YAML would make 90.5 of it, a number in base 60. Write 90.5, or '1:30.5' {_OR_QUOTE}"),
        ("1_000", f"`1_000` is written, and YAML would make 1000 of it, a number, its underscores dropped. Write 1000, or '1_000' {_OR_QUOTE}"),
        ("1_0.5", f"`1_0.5` is written, and YAML would make 10.5 of it, a number, its underscores dropped. Write 10.5, or '1_0.5' {_OR_QUOTE}"),
        *(
            (word, f"`{word}` is written, and YAML would make {made} of it, a boolean. Write {made}, or '{word}' {_OR_QUOTE}")
            for made, words in (("true", ("on", "yes", "On", "YES")), ("false", ("off", "no", "Off", "NO")))
            for word in words
        ),
        ("[1, 010]", "`010` is written, and YAML would make 8 of it, an octal number."),
        ("{a: {b: yes}}", "`yes` is written, and YAML would make true of it, a boolean."),
        ("{on: 1}", "`on` is written, and YAML would make true of it, a boolean."),
        ("!!int 010", "`010` is written, and YAML would make 8 of it, an octal number."),
        ("!!int ten", "`ten` is written and is no int. Leave the tag out."),
        ("{a: 1, b: 2, a: 3}", "the key `a` is written twice in one mapping, in one line, and YAML would take the last, `3`. Remove one of them."),
        ("\t5", "a tab is written, which YAML takes neither as indentation nor between values, so it would read no further. Write spaces, or put a text that has a tab in quotes."),
        ("5\t", "a tab is written, "),
        ("a\tb", "a tab is written, "),
        ("[1,\t2]", "a tab is written, "),
    ],
)  # fmt: skip
def test_a_value_that_yaml_rewrites_is_refused_in_overrides_and_files_alike(
    directory: Path, value: str, says: str
) -> None:
    override = f"workload.seed={value}"
    message = error_of(directory, "replay.repeats=2", override)
    assert message.startswith(f"override {override!r}: workload.seed: ") and says in message
    path = directory / "mine.yaml"
    path.write_text(MINE.replace("seed: 20260101", f"seed: {value}"))
    message = error_of(directory)
    assert message.startswith(f"{path}: line 9: ") and says in message


@pytest.mark.parametrize(
    ("value", "kept"), [("run #5", "run"), ("[1, 2] # note", "[1, 2]"), ("${engine.block_size} # bytes", "${engine.block_size}"), ("#5", "null"), ("'a' #b", "'a'")]
)  # fmt: skip
def test_an_override_that_yaml_would_cut_at_a_comment_is_refused(directory: Path, value: str, kept: str) -> None:
    override = f"description={value}"
    assert (
        error_of(directory, override)
        == f"override {override!r}: description: `{value}` is written, and YAML would make `{kept}` of it: what follows"
        " ` #` is a comment. Put a value with ` #` in quotes, or leave the comment out."
    )


def test_comments_of_a_file_and_a_hash_within_a_word_are_no_mistake(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text("# a scenario\n" + MINE.replace("seed: 20260101", "seed: 7  # drawn once\n  # and kept"))
    assert load(directory).workload.seed == 7
    assert load(directory, "description=a#5").description == "a#5"


def test_a_key_written_twice_in_a_file_names_both_lines(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(MINE.replace("seed: 20260101", "seed: 1\n  seed: 2"))
    assert (
        error_of(directory)
        == f"{path}: line 10: the key `seed` is written twice in one mapping, on lines 9 and 10, and YAML would take"
        " the last, `2`. Remove one of them."
    )
    path.write_text(MINE + "workload: {}\n")
    assert "line 12: the key `workload` is written twice in one mapping, on lines 4 and 12" in error_of(directory)
    path.write_text(MINE.replace("  seed: 20260101", "\tseed: 1"))
    assert error_of(directory).startswith(f"{path}: line 9: a tab is written, ")


@pytest.mark.parametrize("text", ["010", "1:30", "on", "off", "yes", "no", "1_000", "run #5", "a\tb"])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_in_quotes_it_is_text(directory: Path, text: str, quote: str) -> None:
    assert load(directory, f"description={quote}{text}{quote}").description == text
    path = directory / "mine.yaml"
    path.write_text(MINE.replace("the scenario of these tests", f"{quote}{text}{quote}"))
    assert load(directory).description == text


@pytest.mark.parametrize(
    ("value", "read"),
    [("7", 7), ("+7", 7), ("-7", -7), ("0", 0), ("0x1F", 31), ("1e3", 1000.0), ("1.5e-3", 0.0015), ("-0.5", -0.5), (".5", 0.5), ("+1.5e3", 1500.0), ("2.", 2.0), ("007.5", 7.5),
     (".inf", math.inf), ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("2026-01-02", "2026-01-02"), ("08", "08"),
     ("0o10", "0o10"), ("y", "y"), ("1.2.3", "1.2.3"), ("a_b", "a_b"), ("http://h:80/x", "http://h:80/x")],
)  # fmt: skip
def test_what_means_the_same_to_both_versions_of_yaml_is_read(value: str, read: object) -> None:
    found, _ = read_yaml(value, comments=False)
    assert found == read and type(found) is type(read)
