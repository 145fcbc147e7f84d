"""`python -m gst_assets.ui`: the UI and the reports come together and go together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gst_assets.provenance import PROJECT_ROOT
from gst_assets_tests.services import free_port

_LIMIT_S = 240.0


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def test_ui_and_reports_come_and_go_together(tmp_path: Path) -> None:
    ui, reports = free_port(), f"http://127.0.0.1:{free_port()}"
    (tmp_path / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), "GST_REPORTS_URL": reports}
    log = tmp_path / "log"
    with log.open("w") as out:
        running = subprocess.Popen(
            [sys.executable, "-m", "gst_assets.ui", str(ui)],
            cwd=PROJECT_ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _LIMIT_S
        while not answers(f"http://127.0.0.1:{ui}/server_info"):
            assert running.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert answers(f"{reports}/") and log.read_text().startswith(f"reports: {reports}\n")
        running.send_signal(signal.SIGTERM)
        running.wait(timeout=60)
        while answers(f"http://127.0.0.1:{ui}/server_info"):
            assert time.monotonic() < deadline, "the web server outlived the program"
            time.sleep(0.5)
        assert not answers(f"{reports}/")
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
