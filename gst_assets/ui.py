"""`python -m gst_assets.ui [PORT]`: the Dagster UI with its daemon, and beside it what its links to reports need. All on loopback."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

from gst_assets.errors import GstError
from gst_assets.report_server import serving_reports
from gst_assets.timeline import LOCATION

DEFAULT_PORT = 3000


def main(port: int = DEFAULT_PORT) -> int:
    """Run until `dagster dev` ends (Ctrl-C); returns its exit status.

    Raises:
        ReportServerError: the port of the reports cannot be taken.
        EnvironmentVariableError: GST_REPORTS_URL is no address.
    """
    command = [sys.executable, "-m", "dagster", "dev", "-m", LOCATION, "-h", "127.0.0.1", "-p", str(port)]
    with serving_reports() as reports:
        print(f"reports: {reports or 'served elsewhere'}", flush=True)
        running = subprocess.Popen(command)
        try:
            return running.wait()
        except KeyboardInterrupt:
            # The terminal interrupted both; Dagster ends its own processes first.
            with suppress(KeyboardInterrupt):
                return running.wait()
            running.kill()
            return running.wait()
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait()


if __name__ == "__main__":
    try:
        sys.exit(main(*map(int, sys.argv[1:])))
    except GstError as problem:
        sys.exit(f"error: {problem}")
