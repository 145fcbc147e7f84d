from __future__ import annotations

import base64
import re
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from gst_assets.analysis.answer import JUDGEMENT_WORDS, Judgement
from gst_assets.analysis.capacity_errors import capacity_errors
from gst_assets.analysis.drawing_process import DrawingProcess
from gst_assets.analysis.figures import Figure
from gst_assets.analysis.gate import COMPARED_SETTINGS, Check
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.report import (
    comparison_meta,
    headline_table,
    latency_table,
    verdict_sentence,
    write_comparison,
)
from gst_assets.analysis.report_blocks import Block
from gst_assets.analysis.report_content import FIGURES, _scenario_fact, content
from gst_assets.analysis.report_formats import markdown, page
from gst_assets.analysis.report_style import STYLE
from gst_assets.analysis.run_reading import RealRun, load_run, read_profile
from gst_assets.contracts.documents import CapacityFound, ComparisonMeta, read_document, write_document
from gst_assets.contracts.store import Kind, directory_digests, open_directory
from gst_assets.contracts.tables import (
    AlignmentCounts,
    CapacityErrors,
    ErrorGroups,
    LatencyErrors,
    PairedErrors,
    RepeatLatencies,
    RequestErrors,
    RunTotals,
    SettingsParity,
    read_table,
)
from gst_assets.scenario import Bands
from gst_assets_tests.analysis.run_directories import (
    ENGINE_SETTINGS,
    MS,
    Recipe,
    Request,
    steady,
    write_profile_meta,
    write_real,
    write_simulation,
)


def _comparison(folder: Path, reals: list[Recipe], sims: dict[str, Recipe]) -> Comparison:
    real = [load_run(write_real(folder / f"r{i}", recipe), "real") for i, recipe in enumerate(reals)]
    sim = {name: load_run(write_simulation(folder / name, recipe, name), "vidur") for name, recipe in sims.items()}
    return compare(real, sim, bands=Bands(), calibration_sha256=set())


def _write(comparison: Comparison, folder: Path) -> str:
    folder.mkdir()
    with DrawingProcess() as drawing:
        write_comparison(comparison, folder, drawing)
    return (folder / "summary.md").read_text()


def _blocks(comparison: Comparison) -> list[Block]:
    """A report whose figures are not drawn, which is most of its time."""
    figure = Figure("answer.png", "The errors that decide", "")
    return content(comparison, [figure], read_profile(comparison.simulations[comparison.headline]))


def _text(comparison: Comparison) -> str:
    return markdown(_blocks(comparison), FIGURES)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Three repeats; kernels at 40 % of the latencies, calibrated 4 % above them."""
    real = steady(120, 4)
    return _comparison(
        tmp_path_factory.mktemp("usual"),
        [real, real.scaled(1.02), real.scaled(0.99)],
        {"kernels": real.scaled(0.4), "calibrated": real.scaled(1.04)},
    )


@pytest.fixture(scope="module")
def report(usual: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `usual`, to read only."""
    folder = tmp_path_factory.mktemp("report") / "out"
    _write(usual, folder)
    return folder


def test_quantised_weights_are_told_beside_the_type_of_the_rest(usual: Comparison) -> None:
    first, *others = usual.real_repeats
    settings = first.meta.engine_settings
    assert settings is not None and f"({settings.dtype}), scenario" in _text(usual)
    meta = first.meta.model_copy(update={"engine_settings": settings.model_copy(update={"quantization": "fp8"})})
    told = _text(replace(usual, real_repeats=(replace(first, meta=meta), *others)))
    assert f"({settings.dtype}, weights fp8), scenario" in told


def test_the_scenario_is_the_one_asked_for_and_recorded_runs_may_have_another_name(usual: Comparison) -> None:
    asked = usual.real_repeats[0].meta.hydra.config_name
    assert _scenario_fact(usual) == f"`{asked}`"
    hydra = usual.real_repeats[0].meta.hydra.model_copy(update={"config_name": "p25"})
    repeats = tuple(replace(run, meta=run.meta.model_copy(update={"hydra": hydra})) for run in usual.real_repeats)
    renamed = replace(usual, real_repeats=repeats)
    assert _scenario_fact(renamed) == f"`{asked}`, measured as `p25`"
    assert _text(renamed).splitlines()[0].endswith(f", scenario {asked}")


def test_overrides_are_told_of_real_runs_and_simulation_apart_where_they_differ(usual: Comparison) -> None:
    def with_overrides(comparison: Comparison, real: list[str], simulated: list[str]) -> Comparison:
        def given(run: Any, overrides: list[str]) -> Any:
            hydra = run.meta.hydra.model_copy(update={"overrides": overrides})
            return replace(run, meta=run.meta.model_copy(update={"hydra": hydra}))

        return replace(
            comparison,
            real_repeats=[given(run, real) for run in comparison.real_repeats],
            simulations={name: given(run, simulated) for name, run in comparison.simulations.items()},
        )

    seed, requests = "simulation.seed=${engine.block_size}", "workload.num_requests=5"
    same = with_overrides(usual, [requests, seed], [requests, seed])
    assert _text(same).splitlines()[2].endswith(f" · Overrides: `{requests}`, `{seed}`")
    recorded = with_overrides(usual, [], [seed])
    assert _text(recorded).splitlines()[2].endswith(f" · Overrides: real none; simulated `{seed}`")


def test_the_report_says_how_many_devices_share_each_layer(usual: Comparison) -> None:
    def of(degree: int, all_reduce: str | None) -> str:
        run = usual.real_repeats[0]
        settings = run.meta.engine_settings
        assert settings is not None
        shared = settings.model_copy(update={"tensor_parallel_size": degree, "all_reduce": all_reduce})
        changed = replace(run, meta=run.meta.model_copy(update={"engine_settings": shared}))
        return _text(replace(usual, real_repeats=[changed, *usual.real_repeats[1:]]))

    assert "tensor parallel" not in of(1, None)
    assert "no CUDA graphs captured, tensor parallel degree 2 (all-reduce custom,nccl)" in of(2, "custom,nccl")
    assert "tensor parallel degree 4 (all-reduce not reported)" in of(4, None)


def test_the_answer_comes_first_then_the_deciding_cells_and_their_figure(usual: Comparison, report: Path) -> None:
    lines = [line for line in (report / "summary.md").read_text().splitlines() if line]
    assert lines[0] == "# Vidur against vllm: qwen3-tiny on cpu, scenario smoke"
    assert (
        lines[1]
        == "Scenario: `smoke` · Model: qwen3-tiny · Hardware: 1 x Test CPU · Engine: vllm 0.32.0 · Workload: 120"
        " requests · Repeats: 3, simulated with 1 seed · Measured: 2026-01-02 · Overrides: none"
    )
    word = JUDGEMENT_WORDS[usual.answer.verdict].upper()
    assert lines[2] == f"**{word}**: {usual.answer.sentence}" == verdict_sentence(usual)
    assert lines[3] == "| latency [ms] | error | 95 % interval | verdict | real | simulated | spread |"
    cells = usual.answer.cells
    assert [line.split(" | ")[0].strip("| ") for line in lines[5:11]] == [cell.name for cell in cells]
    assert lines[5].startswith("| TTFT P50 | +4.0 % | ") and lines[5].endswith(" | 20.0 | 20.8 | 3.0 % |")
    figure = lines.index("![The errors that decide](figs/answer.png)")
    assert 10 < figure < lines.index("## Why the errors") < lines.index("## Files")
    assert any(line.startswith("- For comparison, **outside the band**: `kernels` ") for line in lines[11:figure])


def test_every_latency_of_every_variant_is_told(report: Path) -> None:
    text = (report / "summary.md").read_text()
    header = (
        "| latency [ms] | error | 95 % interval | verdict | real (median of 3) | spread | calibrated | kernels | error"
        " | error / spread | samples |"
    )
    assert header in text.splitlines()
    row = next(line for line in text.splitlines() if line.startswith("| E2E P95 "))
    assert row.startswith("| E2E P95 | +4.0 % | ") and row.endswith(
        " | 32.0 | 3.0 % | 33.3 | 12.8 | -60.0 % | 1.3 | 120 |"
    )
    assert len(re.findall(r"^\| (?:TTFT|ITL|TPOT|E2E) (?:mean|P50|P90|P95|P99) (?:† )?\| [+-]", text, re.M)) >= 20


def _ids_and_links(page: str) -> tuple[list[str], set[str]]:
    return re.findall(r' id="([^"]*)"', page), set(re.findall(r'href="#([^"]*)"', page))


def test_the_page_is_whole_and_asks_for_nothing(report: Path) -> None:
    """Sent alone: figures and tables are inside, every link stays inside, nothing is fetched."""
    html = (report / "report.html").read_text()
    assert html.count('src="data:image/png;base64,') == html.count("<img") == len(list((report / "figs").iterdir()))
    targets = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(one.startswith(("data:", "#")) for one in targets)
    ids, links = _ids_and_links(html)
    assert links <= set(ids) and len(ids) == len(set(ids))
    assert {"ttft", "error", "interval", "verdict", "spread", "checks", "machine", "figure-answer"} <= set(ids)
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert "default-src 'none'" in html and "**" not in html and "`" not in html
    small = re.findall(r'download="([^"]*)" href="data:text/csv;base64,([^"]*)"', html)
    assert {name for name, _ in small} >= {"latency_errors.csv", "gate_checks.csv"}
    for name, data in small:
        assert base64.b64decode(data) == (report / "tables" / name).read_bytes()


def test_the_first_screen_is_open_and_the_rest_is_folded(report: Path) -> None:
    html = (report / "report.html").read_text()
    first = html[html.index("<main>") : html.index("<details")]
    places = [
        first.index(text) for text in ("<h1>", 'class="facts"', 'class="verdict ', 'class="judged"', "<figure", "<nav")
    ]
    assert places == sorted(places)
    assert first.count("<img") == 1 and first.count("<table") == 1
    assert "<details open" not in html
    titles = re.findall(r'<details>\n<summary>.*</summary>\n<div class="target" id="([^"]*)">', html)
    assert re.findall(r'<a href="#([^"]*)">', first[first.index("<nav") :]) == titles


@pytest.mark.parametrize("judgement", ["pass", "warn", "fail", "cannot_judge"])
def test_each_judgement_has_a_word_and_a_colour_of_its_own(
    usual: Comparison, report: Path, judgement: Judgement
) -> None:
    answer = replace(
        usual.answer, verdict=judgement, cells=tuple(replace(one, verdict=judgement) for one in usual.answer.cells)
    )
    html = page(_blocks(replace(usual, answers={**usual.answers, "calibrated": answer})), report, FIGURES)
    assert f'<div class="verdict {judgement}"><span class="word">{JUDGEMENT_WORDS[judgement]}</span>' in html
    first = html[: html.index("<nav")]
    assert first.count(f'<tr class="{judgement}">') == first.count('<tr class="') == 6
    name = judgement if judgement != "cannot_judge" else "unknown"
    colours = re.findall(r"--(pass|warn|fail|unknown): (#\w+)", STYLE)
    light = dict(colours[:4])
    assert list(light.values()).count(light[name]) == 1 and f"border-color: var(--{name})" in STYLE


def test_what_was_checked_and_found_in_order_is_folded_inside_the_checks(usual: Comparison, report: Path) -> None:
    marked = replace(usual, checks=(Check("degraded", "r0", "mark", "yes", "", "run r0 is late"), *usual.checks))
    html = page(_blocks(marked), report, FIGURES)
    checks = html[html.index("<summary><span>Checks") : html.index('id="machine"')]
    assert checks.index("run r0 is late") < checks.index("class=nested") < checks.index(">in order</td>")
    assert re.search(
        r"<summary><span>Checks</span> <span class=\"about\">1 marked, \d+ noted, \d+ in order</span>", checks
    )


_WINDOW = {"load_1m": 0.5, "cpu_busy": 0.4, "cpu_steal": 0.0}
_MACHINE = {
    "num_cores": 2,
    "cpu_busy": 0.6,
    "cpu_others": 0.2,
    "cpu_steal": 0.01,
    "before": {"load_1m": 0.4, "gpu": {"temperature_c": 41}},
    "num_samples": 3,
    "sampling_ns_max": 90_000,
    "windows": [
        {
            **_WINDOW,
            "start_ns": 0,
            "end_ns": 1_000_000_000,
            "cpu_others": 0.05,
            "gpu": {"temperature_c": 55, "sm_clock_mhz": 1980, "slowed_by": []},
        },
        {
            **_WINDOW,
            "start_ns": 1_000_000_000,
            "end_ns": 2_000_000_000,
            "cpu_others": 0.35,
            "gpu": {"sm_clock_mhz": 1410, "slowed_by": ["power cap"]},
        },
    ],
}


def test_the_machine_is_told_for_each_repeat_and_what_is_not_known_is_a_dash(tmp_path: Path) -> None:
    real = steady(30, 3)
    text = _text(_comparison(tmp_path, [real.with_meta(machine=_MACHINE), real], {"calibrated": real}))
    assert (
        "| repeat 1 | 2 | 60.0 % | 20.0 % | 35.0 % | 1.0 % | 0.40 to 0.50 | – | 41 to 55 | 1,410 to 1,980, power cap |"
        in text
    )
    assert "| repeat 2 | – | – | – | – | – | – | – | – | – |" in text
    assert "calibration round" not in text
    alone = _text(_comparison(tmp_path / "b", [real], {"calibrated": real}))
    assert "Not recorded: these runs were made by a version, or by another program, that does not record it." in alone


def test_the_machine_of_the_calibration_is_told_where_its_profile_is_still_there(tmp_path: Path) -> None:
    """Of the profile that was simulated with only: measured again, it says nothing of these runs."""
    real, rounds = steady(30, 3), {"machine": [_MACHINE, None]}
    for name, digest, told in (("same", "4" * 64, True), ("other", "5" * 64, False)):
        profile = write_profile_meta(tmp_path / name, {}, digest, **rounds)
        sim = real.with_meta(profiling_root=str(profile))
        text = _text(_comparison(tmp_path / f"{name}-runs", [real], {"calibrated": sim}))
        assert ("| calibration round 1 | 2 | 60.0 % | 20.0 % |" in text) is told
        assert ("| calibration round 2 | – |" in text) is told


def test_names_from_other_programs_are_shown_as_they_are(tmp_path: Path) -> None:
    real = steady(30, 2).with_meta(model="<img src=x onerror=alert(1)>")
    sim = steady(30, 2).with_meta(model="<img src=x onerror=alert(1)>")
    _write(_comparison(tmp_path, [real], {"calibrated": sim}), tmp_path / "out")
    assert "<img src=x" not in (tmp_path / "out" / "report.html").read_text()


def test_every_link_leads_to_a_file_and_every_file_is_listed(report: Path) -> None:
    text = (report / "summary.md").read_text()
    linked = set(re.findall(r"\]\(([^)]+)\)", text)) - {"run_meta.json"}  # which the caller writes last
    written = {path.relative_to(report).as_posix() for path in report.rglob("*.*")}
    there = written - {"summary.md", "report.html"}
    assert linked == there
    assert text.count("![") == 9


def test_tables_read_back_through_the_contract(report: Path) -> None:
    for model, rows in (
        (LatencyErrors, 60),
        (RepeatLatencies, 90),
        (RequestErrors, 720),
        (PairedErrors, 36),
        (ErrorGroups, 2 * 2 * 2),
        (RunTotals, 5),
        (AlignmentCounts, 6),
        (SettingsParity, 2 * len(COMPARED_SETTINGS)),
    ):
        assert len(read_table(model, report / "tables" / model.file_name())) == rows


def test_same_comparison_same_bytes(usual: Comparison, report: Path, tmp_path: Path) -> None:
    _write(usual, tmp_path / "again")
    assert directory_digests(tmp_path / "again", "-") == directory_digests(report, "-")


def test_metadata_completes_the_directory(usual: Comparison, report: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(report, tmp_path / "cmp-1"))
    meta = comparison_meta(
        usual, run_id="cmp-1", started_at=datetime.now(timezone.utc), sha256=directory_digests(out, "run_meta.json")
    )
    write_document(meta, out / "run_meta.json")
    open_directory(out, Kind.COMPARISON)
    found = read_document(ComparisonMeta, out / "run_meta.json")
    assert (found.run_type, found.verdict, found.headline_variant, found.marks) == ("compare", "warn", "calibrated", [])
    runs = usual.simulations["calibrated"].directory.parent
    assert found.sim_run_dir == str(runs / "calibrated") == found.sim_run_dirs["calibrated"]
    assert found.real_run_dirs == [str(runs / f"r{i}") for i in range(3)]
    assert {
        f"{run}/{name}"
        for run in ("r0", "r1", "r2", "kernels", "calibrated")
        for name in ("request_metrics.csv", "run_meta.json")
    } <= set(found.inputs_sha256)


def _ended(recipe: Recipe, numbers: range, kept: int = 0, status: str = "ok") -> Recipe:
    """The requests of these numbers ended after `kept` tokens; what was asked for stays."""
    whole = recipe.requests
    ended = [replace(one, asked=len(one.token_ns), token_ns=one.token_ns[:kept], status=status) for one in whole]
    return Recipe([ended[i] if i in numbers else one for i, one in enumerate(whole)])


_WHOLE = steady(100, 3)


@pytest.mark.parametrize(
    ("real", "sim"),
    [
        (_ended(_WHOLE, range(90, 100), kept=2), _WHOLE),
        (_ended(steady(103, 3), range(100, 103), status="error"), steady(103, 3)),
        (steady(1, 3), steady(1, 3)),
        (steady(1, 1), steady(1, 1)),
        (steady(100, 1), steady(100, 1)),
        (steady(100, 3, itl_ns=0), _WHOLE),
        (steady(100, 3, step_ns=MS), steady(100, 3, step_ns=MS)),
    ],
    ids=["many early stops", "few errors", "one request", "one request of one token", "one token each", "no gaps in the real run", "one stretch"],
)  # fmt: skip
def test_degenerate_runs_are_reported_whole(tmp_path: Path, real: Recipe, sim: Recipe) -> None:
    found = _comparison(tmp_path, [real], {"calibrated": sim})
    text = _write(found, tmp_path / "out")
    assert verdict_sentence(found) in text and "nan" not in text
    html = (tmp_path / "out" / "report.html").read_text()
    ids, links = _ids_and_links(html)
    assert links <= set(ids)


def test_what_caps_the_verdict_and_what_would_settle_it_stand_beside_the_cells(usual: Comparison) -> None:
    answer = replace(usual.answer, marks=("run r0 is degraded",), more=("five more repeats would do.",))
    text = _text(replace(usual, answers={**usual.answers, "calibrated": answer}))
    head = text[: text.index("![")]
    assert "- Not a pass because: run r0 is degraded.\n- To settle it: five more repeats would do.\n" in head


def test_of_a_mixture_of_experts_the_report_says_why_published_is_not_there(usual: Comparison) -> None:
    sentence = (
        "- `published` is not modelled: the model is a mixture of experts, and Vidur 0.0.26 has no expert layer.\n"
    )
    assert sentence not in _text(usual)
    sim = usual.simulations["calibrated"]
    params = {**sim.meta.params, "model": {"geometry": {"num_experts": 8}}}
    mixture = replace(sim, meta=sim.meta.model_copy(update={"params": params}))
    text = _text(replace(usual, simulations={**usual.simulations, "calibrated": mixture}))
    assert sentence in text[: text.index("![")]


def test_what_decides_the_experts_of_a_step_is_told_with_the_runs(tmp_path: Path) -> None:
    """Experts, sampling temperature, and the kernel of the profile that was simulated with, or that it is not known."""
    geometry = {"geometry": {"num_experts": 8, "num_experts_per_token": 2}}
    real = steady(30, 3).with_meta(params={"model": geometry, "engine": {"sampling": {"temperature": 0.7}}})
    for name, worker, digest, kernel in (
        ("kernel", {"expert_kernel": "TritonExperts"}, "4" * 64, "TritonExperts"),
        ("silent", {"expert_kernel": None}, "4" * 64, "not known"),
        ("earlier", None, "4" * 64, "not known"),
        ("other", {"expert_kernel": "TritonExperts"}, "5" * 64, "not known"),
    ):
        profile = write_profile_meta(tmp_path / name, {}, digest, worker=worker)
        sim = steady(30, 3).with_meta(profiling_root=str(profile), params={"model": geometry})
        assert (
            "- Mixture of experts: 8 in each layer, for each token 2; sampling temperature 0.7; expert kernel in the"
            f" profile {kernel}\n" in _text(_comparison(tmp_path / f"{name}-runs", [real], {"calibrated": sim}))
        )
    bare = steady(30, 3).with_meta(params={"model": {"geometry": {"num_experts": 8}}})
    text = _text(_comparison(tmp_path / "bare", [steady(30, 3).with_meta(params={})], {"calibrated": bare}))
    assert "8 in each layer, for each token not known; sampling temperature not known; expert kernel" in text
    imported = _text(_comparison(tmp_path / "imported", [real], {"another": steady(30, 3).with_meta(params={})}))
    assert "Mixture of experts: 8 in each layer" in imported, "the real run says it"
    dense = _text(_comparison(tmp_path / "dense", [steady(30, 3)], {"calibrated": steady(30, 3)}))
    assert "xperts" not in dense


def test_settings_that_differ_are_told(tmp_path: Path) -> None:
    sim = steady(30, 2).with_meta(simulated_settings={**ENGINE_SETTINGS, "block_size": 16})
    text = _text(_comparison(tmp_path, [steady(30, 2)], {"calibrated": sim}))
    assert "| `block_size` | 32 | **16 (differs)** |" in text
    assert "setting block_size: engine 32, simulated with 16" in text


def test_early_stops_and_failures_are_counted_in_the_report(tmp_path: Path) -> None:
    real = Recipe(
        [Request(0, (5 * MS, 9 * MS), asked=4), Request(1, (), asked=4, status="error"), Request(2, (), asked=4)]
    )
    sim = Recipe([Request(i, tuple((5 + 4 * k) * MS for k in range(4))) for i in range(3)])
    text = _text(_comparison(tmp_path, [real], {"calibrated": sim}))
    assert "| r0 | calibrated | 3 | 1 | 1 | 1 | 1 | 2 | 2 |" in text
    assert "1 failed and 1 gave no token, of 3 requests" in text
    assert "1 of 1 requests stopped early" in text


def test_one_token_a_request(tmp_path: Path) -> None:
    text = _write(_comparison(tmp_path, [steady(3, 1)], {"calibrated": steady(3, 1)}), tmp_path / "out")
    assert "| ITL P50 † | – | – | – | – | – | – | 0 |" in text
    assert "ITL has no samples, so it has no figure." in text
    assert "nan" not in text


_HOSTILE = "![x](http://evil.example/a.png) [y](javascript:alert(1)) <img src=http://evil.example/b.png> a|b\n\n# c"


def test_what_others_wrote_is_shown_and_does_nothing(usual: Comparison, tmp_path: Path) -> None:
    """Names of devices and drivers, versions, overrides: in the summary, in the page, and in what goes into Dagster's
    metadata."""

    def hostile(run: RealRun) -> RealRun:
        meta = run.meta
        update = {
            "model": _HOSTILE,
            "hardware": meta.hardware.model_copy(update={"device_name": _HOSTILE, "driver": _HOSTILE}),
            "hydra": meta.hydra.model_copy(update={"overrides": [f"a={_HOSTILE}"]}),
            "engine_settings": meta.engine_settings.model_copy(
                update={"engine_version": _HOSTILE, "attention_backend": _HOSTILE}
            ),
            "env": {**meta.env, "platform": _HOSTILE},
        }
        return replace(run, meta=meta.model_copy(update=update))

    comparison = replace(usual, real_repeats=[hostile(run) for run in usual.real_repeats])
    answer = replace(comparison.answer, sentence=f"{comparison.answer.sentence} {_HOSTILE}", marks=(_HOSTILE,))
    answers = {**comparison.answers, comparison.headline: answer}
    comparison = replace(comparison, answers=answers)
    assert comparison.answer is answer
    summary = _write(comparison, tmp_path / "report")
    texts = [summary, verdict_sentence(comparison), latency_table(comparison), headline_table(comparison)]
    for text in texts:
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        assert "evil.example" not in " ".join(re.findall(r"<(?:img|a)\b[^>]*>", html)), text
        assert "<img src=http" not in html and 'href="javascript' not in html
    assert summary.count("evil.example") > 5, "it is shown"
    html = (tmp_path / "report" / "report.html").read_text()
    assert html.count("evil.example") > 5
    assert "<img src=http" not in html and re.findall(r'href="(?!#|data:)', html) == []


def test_capacity_is_told_where_it_was_searched_and_nowhere_else(
    usual: Comparison, report: Path, tmp_path: Path
) -> None:
    without = (report / "summary.md").read_text()
    assert "Capacity" not in without and not (report / "tables" / CapacityErrors.file_name()).exists()
    sides = {
        side: CapacityFound(status="found", capacity_per_s=low, upper_per_s=high, num_probes=6)
        for side, low, high in (("engine", 45.0, 48.0), ("calibrated", 46.0, 47.0))
    }
    searched = replace(
        usual, capacities=capacity_errors(sides, usual.variants, usual.bands), capacity_criterion="P99 delay 100 ms"
    )
    summary = _write(searched, tmp_path / "with")
    assert "engine between 45 and 48; `calibrated` between 46 and 47 (-4.2 to +4.4 %, warn)" in summary
    assert "| calibrated | +0.0 % | -4.2 to +4.4 | warn | 45.0 to 48.0 | 46.0 to 47.0 |" in summary
    (row,) = read_table(CapacityErrors, tmp_path / "with" / "tables" / CapacityErrors.file_name()).to_dict("records")
    assert (row["real_low_per_s"], row["sim_high_per_s"], row["verdict"]) == (45.0, 47.0, "warn")
