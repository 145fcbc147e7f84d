"""Reports over HTTP: what a link of the Dagster UI opens, and nothing else."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from gst_assets.assets.presentation import report_link
from gst_assets.contracts.store import Kind
from gst_assets.environment import REPORTS_VARIABLE, ROOT_VARIABLE
from gst_assets.errors import ReportServerError
from gst_assets.report_server import serving_reports
from gst_assets.testing.histories import noisy, write_nights
from gst_assets.testing.services import free_port

SCENARIO = "smoke"


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A complete comparison in the artifact root, while its reports are served."""
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setenv(REPORTS_VARIABLE, f"http://127.0.0.1:{free_port()}")
    (name,) = write_nights(tmp_path, noisy(1, seed=1), SCENARIO)
    directory = tmp_path / "comparisons" / name
    (directory / "report.html").write_text("<p>the report</p>")
    (directory / "figs").mkdir(exist_ok=True)
    (directory / "figs" / "one.png").write_bytes(b"\x89PNG")
    with serving_reports() as url:
        assert url is not None
        yield directory


def get(path: str, host: str | None = None) -> tuple[int, str | None, bytes]:
    address = report_link(Kind.COMPARISON, "x", "y").url or ""
    connection = http.client.HTTPConnection("127.0.0.1", int(address.split(":")[2].split("/")[0]), timeout=300)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read()


def test_the_link_of_the_ui_opens_the_report(report: Path) -> None:
    link = report_link(Kind.COMPARISON, report.name, "report.html").url or ""
    path = "/" + link.split("/", 3)[3]
    assert get(path) == (200, "text/html; charset=utf-8", b"<p>the report</p>")
    assert get(path.replace("report.html", "figs/one.png"))[:2] == (200, "image/png")
    # A browser shows these as text, whatever is in them.
    assert get(path.replace("report.html", "run_meta.json"))[:2] == (200, "text/plain; charset=utf-8")


def test_nothing_but_files_of_complete_reports_is_shown(report: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret")
    (report / "outside.md").symlink_to(tmp_path / "secret.md")
    (report / "program.py").write_text("secret")
    unfinished = tmp_path / "comparisons" / "smoke-unfinished"
    unfinished.mkdir()
    (unfinished / "report.html").write_text("half")
    real = tmp_path / "real_runs" / "one"
    real.mkdir(parents=True)
    (real / "run_meta.json").write_text("{}")
    base = f"/comparisons/{report.name}"
    for path in (
        "/", "/comparisons/", base, f"{base}/", f"{base}/figs", f"{base}/no.html", f"{base}/outside.md", f"{base}/program.py",
        f"{base}/../../secret.md", f"{base}/%2e%2e/%2e%2e/secret.md", f"{base}/..%2f..%2fsecret.md", "/comparisons/../secret.md",
        "/comparisons/smoke-unfinished/report.html", "/real_runs/one/run_meta.json", "//etc/hostname", f"{base}/%00.md",
    ):  # fmt: skip
        status, _, body = get(path)
        assert (status, body) == (404, b"no such file of a complete report\n"), path


def test_a_page_of_the_web_cannot_read_through_a_name_that_leads_here(report: Path) -> None:
    path = f"/comparisons/{report.name}/report.html"
    assert get(path, "evil.example:3001")[0] == 403
    assert get(path, "localhost:3001")[0] == 200


@pytest.mark.usefixtures("report")
def test_a_port_that_is_taken_is_an_error_with_the_remedy() -> None:
    with pytest.raises(ReportServerError, match=rf"cannot be served there .*set {REPORTS_VARIABLE} to another port"):
        serving_reports().__enter__()


def test_reports_that_somebody_else_serves_are_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORTS_VARIABLE, "https://reports.example/below/")
    assert report_link(Kind.SWEEP, "a", "b.md").url == "https://reports.example/below/sweeps/a/b.md"
    with serving_reports() as url:
        assert url is None
