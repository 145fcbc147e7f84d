"""`python -m gst_assets.scenario NAME [dotted.key=value ...]`: print the scenario resolved, as JSON."""

from __future__ import annotations

import sys

from gst_assets.errors import ScenarioError
from gst_assets.scenario.loading import resolved_json

if len(sys.argv) < 2:
    sys.exit("usage: python -m gst_assets.scenario NAME [dotted.key=value ...]")
try:
    print(resolved_json(sys.argv[1], sys.argv[2:]))
except ScenarioError as problem:
    sys.exit(f"error: {problem}")
