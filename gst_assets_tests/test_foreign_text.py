"""What others wrote is shown and does nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gst_assets.foreign_text import inert, inert_cell, without_secrets

_RENDER = MarkdownIt("commonmark", {"html": True}).enable("table")
HOSTILE = (
    "![x](http://evil.example/a.png)",
    "[x](javascript:alert(1))",
    "<img src=http://evil.example/a.png>",
    "<script>alert(1)</script>",
    "<http://evil.example>",
    "`<img src=x>`",
    "\\`<img src=x>`",
    "``` <img src=x> ``",
    "![x][(http://evil.example)](#a)",
    "[x]: http://evil.example\n\n![x][x]",
    "\\](http://evil.example) ![y\\\\](http://evil.example)",
    "a | b\n|---|\n<b>",
    "<!-- ",
)


def alive(text: str) -> str:
    html = _RENDER.render(text)
    return next((mark for mark in ("<img", "<a ", "<script", "<b>", "<!--") if mark in html), "")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(text: str) -> None:
    for shown in (inert(text), f"- {inert(text)}", f"# {inert(text)}", f"| a |\n|---|\n| {inert_cell(text)} |"):
        assert alive(shown) == "", shown


@given(st.text(st.sampled_from("`[]()!<>:|\\\n#ab/*_&;"), max_size=25))
def test_no_text_of_marks_comes_alive(text: str) -> None:
    # Put where it would do something if it could.
    hostile = f"{text}![x](http://e/){text}<img src=x>{text}"
    assert alive(inert(hostile)) == ""
    assert alive(f"| a |\n|---|\n| {inert_cell(hostile)} |") == ""


def test_ordinary_text_stays_as_it_is() -> None:
    told = "**PASS**: `calibrated` at P50 < 5 %, p < 0.002, a[0] and (b) & *c* of `x.y=[1, 2]`"
    assert inert(told) == told


def test_what_a_terminal_acts_on_is_not_passed_on() -> None:
    assert inert("a\x1b[31mred\x07\u202eb") == "a\ufffd[31mred\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sesame-1 is wrong", "key *** is wrong"),
        ("http://me:pw@host:80/x?y=1", "http://***@host:80/x?y=1"),
        ("http://me:a/b#c@d@host", "http://***@host"),
        ("see https://host/a and me@host", "see https://host/a and me@host"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text, ["sesame-1", "", "a"]) == shown
