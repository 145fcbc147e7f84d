"""The pages as pages: every link leads somewhere, lines are short, the README stays short, words are plain; these also
in what the code says: its messages, docstrings and comments.

That documented commands exist is tested with the command line. Pages are those that a checkout's git knows.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gst_assets.model_config import SUPPORTED
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import Scenario, load_file
from gst_assets.scenario.workload_section import SessionSource
from gst_assets_tests.gst_command import run_gst


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT_ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wrap_docs = _script("wrap_docs")
PAGES: dict[str, Path] = {str(page.relative_to(PROJECT_ROOT)): page for page in wrap_docs.markdown_pages()}
pages = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())


def _too_long(text: str) -> list[str]:
    """Lines of prose beyond 120 columns that could be broken: one long word or link, tables and code are none."""
    return [
        line
        for is_prose, block in wrap_docs.blocks(text.splitlines())
        for line in (block if is_prose else ())
        if len(line) > wrap_docs.WIDTH and len(wrap_docs.words([line])[1]) > 1
    ]


def _without_code(text: str) -> str:
    """Prose, headings and tables, without what is in backquotes or a block of code, and without addresses."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)
    text = re.sub(r"^ {4,}.*$", "", text, flags=re.M)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"(`+).+?\1", "", text, flags=re.S))


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    return {_anchor(found) for found in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)}


def _dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(`+).+?\1", "x", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or (anchor and anchor not in _anchors(linked)):
            dead.append(target)
    return dead


def test_there_are_pages() -> None:
    assert len(PAGES) > 20
    assert {"README.md", "docs/how-to.md", "docs/glossary.md"} <= PAGES.keys()


@pages
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert not _dead_links(page, page.read_text(encoding="utf-8"))


@pages
def test_lines_are_at_most_120_columns(page: Path) -> None:
    """`python scripts/wrap_docs.py` mends them."""
    assert not _too_long(page.read_text(encoding="utf-8"))


_NOT_PLAIN = (
    r"tells?|told|untold",
    r"beside",
    r"hand-overs?|hand(?:ed|s|ing)? over",
    r"unjudged",
    r"forgets?|forgotten",
    r"at hand",
    r"hangs? on",
    r"takes? the ground",
    r"never is not",
)
"""Words that mean something else in the trade, or nothing. CONTRIBUTING.md says which ones to use."""
_FOUND = re.compile(rf"\b(?:{'|'.join(_NOT_PLAIN)})\b", re.I)


@pages
def test_words_are_plain(page: Path) -> None:
    assert not _FOUND.findall(_without_code(page.read_text(encoding="utf-8")))


def _texts(source: str) -> Iterator[tuple[int, str]]:
    """Comments, and strings of two words or more, with their line. One word alone is a name or a key."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _not_plain(source: str) -> list[tuple[int, str]]:
    """Words of the code's texts that are not plain, with the line at which their text begins. What is in backquotes is
    a name."""
    return [
        (line, word)
        for line, text in _texts(source)
        for word in _FOUND.findall(re.sub(r"(`+).+?\1", "", text, flags=re.S))
    ]


def test_words_in_code_are_plain() -> None:
    modules = sorted((PROJECT_ROOT / "gst_assets").rglob("*.py"))
    assert len(modules) > 200
    assert not [(path.name, *found) for path in modules for found in _not_plain(path.read_text(encoding="utf-8"))]


def test_words_in_scenario_files_are_plain() -> None:
    files = sorted((PROJECT_ROOT / "gst_assets" / "scenarios").glob("*.yaml"))
    assert files and not [(path.name, word) for path in files for word in _FOUND.findall(path.read_text("utf-8"))]


def test_the_readme_is_short() -> None:
    """600 words as `wc -w` counts them, tables included."""
    assert len(PAGES["README.md"].read_text(encoding="utf-8").split()) <= 600


def test_the_table_of_scenarios_is_what_gst_list_writes() -> None:
    """`gst list --markdown` writes what stands between the markers."""
    page = PAGES["docs/scenarios.md"].read_text(encoding="utf-8")
    table = page.partition("<!-- scenarios:begin -->\n")[2].partition("<!-- scenarios:end -->")[0]
    assert table == run_gst("list", "--markdown").stdout
    rows = {cells[1]: cells for cells in (line.strip("| ").split(" | ") for line in table.splitlines()[2:])}
    wanted = {
        "`h100_8b_half`": ("an answer now, from runs recorded on a GPU", "`gst run`", "recorded", "no"),
        "`smoke`": ("an answer about this machine's engine, no GPU", "`gst run`", "live", "no"),
        "`a100_light`": ("an answer about a GPU, measured on it", "`gst run`", "live", "yes"),
        "`openai_server`": ("an answer about a server that runs already", "`gst run`", "live", "no"),
        "`cpu_capacity`": ("the highest rate, or many settings", "`gst capacity`", "live", "no"),
        "`h100_8b_sweep`": ("the highest rate, or many settings", "`gst sweep`", "none: simulated only", "no"),
    }
    assert {name: (rows[name][0], rows[name][2], rows[name][5], rows[name][6]) for name in wanted} == wanted


# --- what holds the pages, held -----------------------------------------------------------------------------------------


def test_what_counts_as_too_long() -> None:
    long = "word " * 30
    assert _too_long(long) == [long]
    assert _too_long(f"- item\n  {long}") == [f"  {long}"]
    for page in (f"| {long} |", f"    {long}", f"```\n{long}\n```", f"# {long}", "x" * 200, f"[x](https://{'y' * 200}).",
                 f"1. item\n\n       {long}"):  # fmt: skip
        assert not _too_long(page), page


def test_words_that_are_not_plain_are_found() -> None:
    source = (
        'def told(x):\n    """What it tells."""\n    return f"{x} beside it", "told", "as `told` says"  # told twice\n'
    )
    assert sorted(_not_plain(source)) == [(2, "tells"), (3, "beside"), (3, "told")]


def test_dead_links_are_found() -> None:
    page = PAGES["README.md"]
    assert _dead_links(page, "[a](docs/nothing.md) [b](docs/how-to.md#nothing) [c](#nothing)") == [
        "docs/nothing.md", "docs/how-to.md#nothing", "#nothing"
    ]  # fmt: skip
    assert not _dead_links(page, "[a](docs/how-to.md#use-azures-trace) `[b](nothing)` [c](https://example.org/x)")


def test_wrapping_changes_lines_only() -> None:
    prose = "- A sentence of many words with `code that stays on one line` and a number, as in version 3. " * 3
    page = f"# Title\n\n{prose.strip()}\n\n| {prose} |\n|---|\n\n    {prose}\n\n1. One\n   two - three\n"
    wrapped = wrap_docs.wrap(page)
    assert wrapped.split() == page.split()
    assert wrap_docs.wrap(wrapped) == wrapped
    assert not _too_long(wrapped)
    assert all(line.count("`") % 2 == 0 for line in wrapped.splitlines())
    assert (
        f"\n| {prose} |\n" in wrapped and f"\n    {prose}\n" in wrapped and wrapped.endswith("\n1. One two - three\n")
    )
    assert not re.search(r"^ *(?:- |3\. )", wrapped.partition("\n- ")[2].partition("\n\n|")[0], re.M)


def test_the_page_on_models_names_every_architecture() -> None:
    text = (PROJECT_ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    section = text.partition("## Add a dense model or a mixture of experts")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+ForCausalLM)`", section))
    assert named == set(SUPPORTED)


def test_the_table_of_sessions_names_every_key() -> None:
    text = PAGES["docs/workloads.md"].read_text(encoding="utf-8")
    table = text.partition("| key of `workload.sessions` |")[2].partition("\n\n")[0]
    keys = [key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    assert keys == list(SessionSource.model_fields)
    optional = {name for name, field in SessionSource.model_fields.items() if not field.is_required()}
    assert {line.split("`")[1] for line in table.splitlines()[2:] if "| required |" not in line} == optional


def _scenario_to_copy(description: str, folder: Path) -> Scenario:
    """The scenario of that description in how-to.md, with `/path/to` in `folder`."""
    text = PAGES["docs/how-to.md"].read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n)+", text, re.M)
    (block,) = [one for one in blocks if f"description: {description}" in one]
    (folder / "copied.yaml").write_text(re.sub("^    ", "", block.replace("/path/to", str(folder)), flags=re.M))
    return load_file(folder / "copied.yaml")


def test_scenarios_to_copy_are_valid(tmp_path: Path) -> None:
    talks = _scenario_to_copy("A few conversations", tmp_path)
    assert talks.workload.closed_loop_setting and talks.replay.repeats == 3
    ranks = _scenario_to_copy("The small model, shared", tmp_path)
    assert (ranks.engine.tensor_parallel_size, ranks.hardware.hardware_id) == (2, "cpu")
    gpus = _scenario_to_copy("Qwen3-32B on two H100", tmp_path)
    assert (gpus.engine.tensor_parallel_size, gpus.engine.backend, gpus.profile.root) == (2, "vllm", None)
    config = re.search(r'^    \{"architectures".*?\}$', PAGES["docs/how-to.md"].read_text("utf-8"), re.M | re.S)
    assert config is not None
    (tmp_path / "tiny-moe").mkdir()
    (tmp_path / "tiny-moe" / "config.json").write_text(config[0])
    experts = _scenario_to_copy("A tiny mixture of experts", tmp_path)
    shapes = experts.model.geometry
    assert (shapes.num_experts, shapes.num_experts_per_token, experts.engine.sampling.temperature) == (8, 2, 1.0)
