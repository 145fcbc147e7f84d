"""`gst` in this process, through Click's own runner."""

from __future__ import annotations

from click.testing import CliRunner, Result

from gst_assets.cli import gst


def run_gst(*words: object) -> Result:
    """The command's result: `exit_code`, `stdout`, `stderr`. An exception that is not reported as an error comes
    through."""
    return CliRunner().invoke(gst, [str(word) for word in words], prog_name="gst", catch_exceptions=False)
