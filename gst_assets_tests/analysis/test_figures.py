from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from gst_assets.analysis.drawings import scale_errors
from gst_assets.analysis.figures import planned_figures
from gst_assets.analysis.judged_errors import Comparison, compare
from gst_assets.analysis.run_reading import load_run
from gst_assets.scenario import Bands
from gst_assets_tests.analysis.run_directories import MS, Recipe, Request, steady, write_real, write_simulation


def _comparison(folder: Path, reals: list[Recipe], sim: Recipe) -> Comparison:
    real = [load_run(write_real(folder / f"r{i}", recipe), "real") for i, recipe in enumerate(reals)]
    names = ("kernels", "calibrated")
    sims = {name: load_run(write_simulation(folder / name, sim, name), "vidur") for name in names}
    return compare(real, sims, bands=Bands())


def _draw(comparison: Comparison, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    for figure, sheet in (planned := planned_figures(comparison)):
        assert figure.file_name == sheet.file_name
        sheet.save(folder)
    return {figure.file_name: (folder / figure.file_name).read_bytes() for figure, _ in planned}


def test_same_comparison_same_bytes_whatever_the_user_configured(tmp_path: Path) -> None:
    import matplotlib

    comparison = _comparison(tmp_path, [steady(40, 4, step_ns=MS)] * 2, steady(40, 4, ttft_ns=2 * MS))
    first = _draw(comparison, tmp_path / "one")
    assert list(first) == [
        "answer.png",
        "errors.png",
        "ttft_cdf.png",
        "itl_cdf.png",
        "qq.png",
        "ttft_per_request.png",
        "error_drivers.png",
        "timeline.png",
        "worst_requests.png",
    ]
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 300}):
        assert _draw(comparison, tmp_path / "two") == first
        assert matplotlib.rcParams["font.size"] == 20, "nothing global is touched"


@pytest.mark.parametrize(
    ("real", "sim"),
    [
        (steady(1, 3), steady(1, 3)),
        (steady(30, 3), steady(30, 3)),
        (steady(3, 3, ttft_ns=0, itl_ns=0), steady(3, 3, ttft_ns=0, itl_ns=0)),
        (Recipe([Request(0, (0, 0, 1, 5 * MS, 90 * MS))]), Recipe([Request(0, (MS, 2 * MS, 3 * MS, 4 * MS, 99 * MS))])),
        (steady(3000, 3, step_ns=MS // 10), steady(3000, 3, ttft_ns=MS, step_ns=MS // 20)),
    ],
    ids=["one request", "all equal", "all zero", "bunched", "many"],
)
def test_figures_stay_small_and_whole(tmp_path: Path, real: Recipe, sim: Recipe) -> None:
    drawn = _draw(_comparison(tmp_path, [real], sim), tmp_path / "figs")
    assert len(drawn) >= 7
    for data in drawn.values():
        assert data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")
        assert len(data) < 300_000


def test_one_token_only_has_no_latency_figure(tmp_path: Path) -> None:
    assert "itl_cdf.png" not in _draw(_comparison(tmp_path, [steady(3, 1)], steady(3, 1)), tmp_path / "figs")


@pytest.mark.parametrize("ends", [(-95.0, 120.0), (-110.0, 800.0), (-20.0, 70.0), (-100.0, 1e6)])
def test_labels_of_the_error_axis_stay_apart(ends: tuple[float, float]) -> None:
    """As drawn: no two labels touch, 0 and both signs are there, and nothing lies outside."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.4, 3), layout="constrained")
    axes = canvas.add_subplot()
    axes.set_yticks([0], ["E2E per token mean"], fontsize=8)
    scale_errors(axes, *ends)
    canvas.draw_without_rendering()
    shown = [one for one in axes.get_xticklabels() if ends[0] <= one.get_position()[0] <= ends[1]]
    boxes = sorted((box.x0, box.x1) for box in (one.get_window_extent() for one in shown))
    assert all(left[1] < right[0] for left, right in pairwise(boxes))
    signs = {one.get_text()[:1] for one in shown}
    assert {"-", "0", "+"} == signs
