"""What the UI renders as Markdown: foreign values are shown in it and do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pandas as pd
from markdown_it import MarkdownIt

from gst_assets.assets.presentation import contract_failed, frame_markdown, preview
from gst_assets.assets.workloads import workload
from gst_assets.errors import ContractError
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource

_HOSTILE = (
    "`![x](http://evil.example/a.png)` ![x](http://evil.example/a.png) <img src=http://evil.example/b.png> |"
    " [y](javascript:alert(1))"
)


def alive(text: str) -> bool:
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    return any(mark in html for mark in ("<img", "<a "))


def test_cells_and_headers_of_tables_are_inert() -> None:
    frame = pd.DataFrame({"prompt_id": [_HOSTILE, f"{_HOSTILE}\n\n{_HOSTILE}"], _HOSTILE: [1, None]})
    rows = contract_failed("prompts", ContractError("wrong", [{"prompt_id": _HOSTILE}])).metadata["offending_rows"]
    for value in (frame_markdown(frame), preview(frame), rows):
        assert not alive(str(value.value)) and "evil.example" in str(value.value)
    assert len(str(frame_markdown(frame).value).splitlines()) == 4


def test_prompts_shown_in_the_ui_are_inert(tmp_path: Path) -> None:
    """Ids and texts of a file that anybody may have written."""
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt_id": f"{index} {_HOSTILE}", "text": f"{_HOSTILE}\n\n{_HOSTILE}"} for index in range(3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = [f"workload.prompts={file}", "workload.num_requests=3"]
    made = dg.materialize(
        [workload],
        partition_key="smoke",
        selection=["prompts"],
        resources={
            "scenario": ScenarioResource(overrides=overrides),
            "artifacts": ArtifactRoot(root=str(tmp_path / "root")),
            "tokenizer": TokenizerResource(),
        },
    )
    (materialized,) = made.asset_materializations_for_node("workload")
    shown = str(materialized.metadata["first"].value)
    assert "evil.example" in shown and not alive(shown), shown
