"""Load time and memory of the code location with many scenarios, and the time of history and verdict with many past
comparisons.

`python benchmarks/code_location_load.py [SCENARIOS] [COMPARISONS]`. Each load is a process of its own; the baseline
loads an empty `Definitions`. Loads are interleaved, medians of five. Ratios of CPU time are what carries over to
another machine, and hold while other programs run.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from gst_assets.analysis.change_points import judge_history
from gst_assets.analysis.history import read_history
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import SCENARIO_DIR, Regression
from gst_assets.testing.histories import FIRST_NIGHT, noisy, write_nights

_ROUNDS = 5
_WRITTEN = 200
_MEASURE = """
import json, resource, sys, time
began = time.perf_counter()
import dagster as dg
if sys.argv[1] == "empty":
    defs, partitions = dg.Definitions(), 0
else:
    import gst_assets.definitions as location
    from gst_assets.partitions import SCENARIOS
    defs, partitions = location.defs, len(SCENARIOS.get_partition_keys())
defs.get_repository_def()
print(json.dumps([time.perf_counter() - began, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, partitions]))
"""


def load(what: str, checkout: Path, root: Path) -> list[float]:
    """Seconds of wall clock and of CPU (interpreter included), MiB and partitions of one load in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "GST_ARTIFACT_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, what],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def copy_of_checkout(area: Path, scenarios: int) -> Path:
    """The package with its smallest scenario copied until there are `scenarios`."""
    checkout = area / f"checkout-{scenarios}"
    shutil.copytree(PROJECT_ROOT / "gst_assets", checkout / "gst_assets", ignore=shutil.ignore_patterns("__pycache__"))
    folder = checkout / "gst_assets" / SCENARIO_DIR.name
    for number in range(scenarios - len([path for path in folder.glob("*.yaml") if not path.stem.startswith("_")])):
        (folder / f"copy_{number:03d}.yaml").write_text(
            f"extends: smoke\ndescription: copy {number}\n", encoding="utf-8"
        )
    return checkout


def write_comparisons(root: Path, count: int) -> None:
    """`count` comparison directories of `smoke`: some written as the asset writes them, the rest copies of those with
    an id and a time of their own."""
    written = write_nights(root, noisy(min(count, _WRITTEN), seed=1))
    folder = root / Kind.COMPARISON.value
    for number in range(len(written), count):
        at = (FIRST_NIGHT + timedelta(days=number)).isoformat()
        name = f"smoke-{number:06d}"
        shutil.copytree(folder / written[number % len(written)], folder / name)
        meta_path = folder / name / Kind.COMPARISON.meta_name
        meta = json.loads(meta_path.read_text(encoding="utf-8"))
        meta |= {"run_id": name, "started_at": at, "ended_at": at}
        meta["measured"] |= {"group_id": f"night-{number}", "measured_at": at}
        meta_path.write_text(json.dumps(meta), encoding="utf-8")


def main(scenarios: int, comparisons: int) -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as name:
        area = Path(name)
        root, none = area / "artifacts", area / "nothing"
        began = time.perf_counter()
        write_comparisons(root, comparisons)
        print(f"wrote {comparisons} comparisons in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        full = copy_of_checkout(area, scenarios)
        cases = {
            "empty location": ("empty", PROJECT_ROOT, none),
            "this location, its own scenarios, no comparison": ("location", PROJECT_ROOT, none),
            f"{scenarios} scenarios, {comparisons:,} comparisons": ("location", full, root),
        }
        found: dict[str, list[list[float]]] = {case: [] for case in cases}
        for _ in range(_ROUNDS):
            for case, arguments in cases.items():
                found[case].append(load(*arguments))
        middle = {
            case: [statistics.median(column) for column in zip(*rows, strict=True)] for case, rows in found.items()
        }
        empty = middle["empty location"]
        print(
            "| location | partitions | load s | CPU s | ratio of CPU | memory MiB | ratio |\n| --- | --- | --- | --- |"
            " --- | --- | --- |"
        )
        for case, (seconds, cpu, memory, partitions) in middle.items():
            print(
                f"| {case} | {partitions:.0f} | {seconds:.1f} | {cpu:.2f} | {cpu / empty[1]:.2f} | {memory:.0f} |"
                f" {memory / empty[2]:.2f} |"
            )
        marks = [time.process_time()]
        history = read_history(ArtifactStore(root), "smoke")
        marks.append(time.process_time())
        other = read_history(ArtifactStore(root), "early_stop")
        marks.append(time.process_time())
        judge_history(history, Regression())
        marks.append(time.process_time())
        own, others, verdict = (after - before for before, after in pairwise(marks))
        print(
            f"\nCPU seconds: history of one scenario with {len(history.comparisons):,} comparisons {own:.1f}; of a"
            f" scenario with {len(other.comparisons)} among them {others:.1f}; verdict over"
            f" {len(history.comparisons):,} nights {verdict:.1f}."
        )


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:] or ["100", "10000"]))
