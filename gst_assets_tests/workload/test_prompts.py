"""prompts.jsonl: order, further keys, and one clear error for each way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gst_assets.errors import WorkloadError
from gst_assets.workload.prompts import Prompt, read_prompts, write_prompts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(TEXT, st.dictionaries(TEXT, st.integers(), max_size=2)), min_size=1, max_size=8))
def test_prompts_survive_writing_and_reading_in_order(tmp_path_factory: pytest.TempPathFactory, items: list) -> None:
    prompts = [
        Prompt(f"p{index}", text, {key: value for key, value in extra.items() if key not in ("prompt_id", "text")})
        for index, (text, extra) in enumerate(items)
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_prompts(prompts, path)
    assert read_prompts(path) == prompts
    first = path.read_bytes()
    write_prompts(read_prompts(path), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"prompt_id": "a", "text": "x"}\n{"prompt_id": "a", "text": "y"}\n',
            "line 2: prompt_id 'a' was already used on line 1",
        ),
        ('{"text": "x"}\n', "line 1: prompt_id is missing"),
        ('{"prompt_id": "a", "text": "x"}\n\n{"prompt_id": "b"}\n', "line 3: text is missing"),
        ('{"prompt_id": "a", "text": ""}\n', "line 1: text must be a non-empty string"),
        ('{"prompt_id": 3, "text": "x"}\n', "line 1: prompt_id must be a non-empty string, found 3"),
        ('{"prompt_id": "a", "text": "x"}\n{"prompt_id": "b", "text": \n', "line 2: not valid JSON"),
        ("[1, 2]\n", "line 1: expected a JSON object"),
        ('{"prompt_id": "a", "text": "x", "weight": NaN}\n', "line 1: not valid JSON (NaN is no JSON value)"),
        ('{"prompt_id": "a", "text": "half \\ud800"}\n', "line 1: holds half of a surrogate pair"),
        ("[" * 100_000 + "\n", "line 1: not valid JSON"),
        ("", "no prompts"),
        ("\n  \n", "no prompts"),
    ],
)
def test_bad_file_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(WorkloadError) as error:
        read_prompts(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no such prompts file"):
        read_prompts(tmp_path / "none.jsonl")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps({"prompt_id": "a", "text": "x"}).encode() + b"\xe9")
    with pytest.raises(WorkloadError, match="not UTF-8"):
        read_prompts(path)


def test_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_id": "a", "text": "one\u2028two"}\n', encoding="utf-8")
    assert read_prompts(path)[0].text == "one\u2028two"
