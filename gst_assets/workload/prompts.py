"""Reading and writing prompts.jsonl: one JSON object per line with `prompt_id` and `text`, in order.

Counting tokens belongs to `tokenizer`. Importable on a GPU host (standard library only).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gst_assets.errors import WorkloadError
from gst_assets.input_files import InputKind, JsonProblem, decoded, lines, open_input, parse_json

_KIND = InputKind(
    WorkloadError,
    missing="no such prompts file. Correct workload.prompts in the scenario.",
    expected="a prompts.jsonl file",
    remedy="Correct workload.prompts in the scenario.",
)


@dataclass(frozen=True)
class Prompt:
    """One prompt. `extra` holds the further keys of its line, which are preserved unchanged."""

    prompt_id: str
    text: str
    extra: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts in file order. Blank lines are skipped.

    Raises:
        WorkloadError: as `iterate_prompts`.
    """
    return list(iterate_prompts(path))


def iterate_prompts(path: Path) -> Iterator[Prompt]:
    """Read prompts one by one in file order, holding only their ids. Blank lines are skipped.

    Raises:
        WorkloadError: no file that can be read (see `input_files.open_input`), not UTF-8 or without prompts; a line
            that is not a JSON object, lacks `prompt_id` or `text`, has an empty one, or repeats a `prompt_id` (names
            file and line).
    """
    used_on: dict[str, int] = {}
    with open_input(path, _KIND) as handle:
        for number, raw in lines(handle, path, _KIND):
            line = decoded(raw, path, _KIND, number)
            if not line.strip():
                continue
            prompt = _parse(path, number, line)
            if prompt.prompt_id in used_on:
                raise WorkloadError(
                    f"{path}: line {number}: prompt_id {prompt.prompt_id!r:.80} was already used on line"
                    f" {used_on[prompt.prompt_id]}. Give each prompt an id of its own."
                )
            used_on[prompt.prompt_id] = number
            yield prompt
    if not used_on:
        raise WorkloadError(f"{path}: no prompts. Expected one JSON object with prompt_id and text per line.")


def _parse(path: Path, number: int, line: str) -> Prompt:
    try:
        value = parse_json(line)
    except JsonProblem as problem:
        column = f" at column {problem.column}" if problem.column else ""
        raise WorkloadError(f"{path}: line {number}: not valid JSON ({problem.reason}{column}).") from None
    if not isinstance(value, dict):
        raise WorkloadError(
            f"{path}: line {number}: expected a JSON object with prompt_id and text, found {line.strip():.60}."
        )
    for key in ("prompt_id", "text"):
        if key not in value:
            raise WorkloadError(f"{path}: line {number}: {key} is missing. Each line needs prompt_id and text.")
        if not isinstance(value[key], str) or not value[key]:
            raise WorkloadError(f"{path}: line {number}: {key} must be a non-empty string, found {value[key]!r:.60}.")
    try:
        # Half a pair can only come from an escape: the file itself is UTF-8.
        if "\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise WorkloadError(
            f"{path}: line {number}: holds half of a surrogate pair, which is no character. Write the whole character."
        ) from None
    extra = {key: item for key, item in value.items() if key not in ("prompt_id", "text")}
    return Prompt(value["prompt_id"], value["text"], extra)


def write_prompts(prompts: Iterable[Prompt], path: Path) -> None:
    """Write prompts in the given order: the same prompts give the same bytes."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(map(prompt_line, prompts))


def prompt_line(prompt: Prompt) -> str:
    """The line of prompts.jsonl that holds a prompt, line end included."""
    line = {"prompt_id": prompt.prompt_id, "text": prompt.text, **prompt.extra}
    return json.dumps(line, ensure_ascii=False) + "\n"
