"""Six requests of three tokens each, as a scenario; reading and altering its workload directory. No test stands
here."""

from __future__ import annotations

import re
from pathlib import Path

from gst_assets.scenario import Scenario, load_scenario
from gst_assets.workload import load
from gst_assets.workload.tokenized import WorkloadRequest, requests_of
from gst_assets_tests.engine.workloads import reseal

SCENARIO = load_scenario(
    "smoke",
    [
        "workload.num_requests=6",
        "workload.num_decode_tokens=3",
        "workload.arrivals={kind: fixed_interval, interval_ns: 2000000}",
    ],
)


def read(directory: Path, scenario: Scenario = SCENARIO) -> list[WorkloadRequest]:
    reseal(directory)
    return requests_of(load(directory, contract=False), scenario)


def edit(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    changed = re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert changed != text
    path.write_text(changed)
