"""`gst ui`: the Dagster UI with its daemon, and what its links to reports need. All on loopback."""

from __future__ import annotations

import signal
import subprocess
import sys

from gst_assets.report_server import serving_reports
from gst_assets.timeline import LOCATION


def main(port: int) -> int:
    """Run until `dagster dev` ends (Ctrl-C); returns its exit status.

    Raises:
        ReportServerError: the port of the reports cannot be taken.
        EnvironmentVariableError: GST_REPORTS_URL is no address.
    """
    command = [sys.executable, "-m", "dagster", "dev", "-m", LOCATION, "-h", "127.0.0.1", "-p", str(port)]
    with serving_reports() as reports:
        print(f"reports: {reports or 'served elsewhere'}", flush=True)
        # A script's background command ignores SIGINT, and Dagster ends by SIGTERM only where it would by SIGINT.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        running = subprocess.Popen(command)
        # Dagster ends its own processes first, whoever asks. An interrupt of the terminal reaches it as well as this
        # process.
        signal.signal(signal.SIGTERM, lambda *_: running.terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return running.wait()
