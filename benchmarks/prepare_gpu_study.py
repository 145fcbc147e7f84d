"""Prepare a fidelity study for a GPU host that has neither Dagster nor a tokenizer: resolved scenarios and their
workloads, in one folder.

    python benchmarks/prepare_gpu_study.py OUT LABEL=SCENARIO[;KEY=VALUE...] ...

Each LABEL is one workload: the scenario, with the overrides, played on a live engine whatever the scenario plays back.
SCENARIO is a name; one of your own is found where GST_SCENARIO_DIR names its folder.
On the host OUT/run.sh measures the profile of the first one and, between its calibration rounds, the repeats of all
(`gst profile`), into OUT/bundle and OUT/runs, with the stamps of every calibration step in OUT/stamps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import dagster as dg

from gst_assets.assets.workloads import workload
from gst_assets.contracts.store import ArtifactStore, Kind
from gst_assets.errors import GstError
from gst_assets.resources import ArtifactRoot, ScenarioResource, TokenizerResource
from gst_assets.scenario import load_scenario

LIVE = ("engine.backend=vllm", "engine.recorded=null", "profile.root=null")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("workloads", nargs="+", metavar="LABEL=SCENARIO[;KEY=VALUE...]")
    arguments = parser.parse_args()
    try:
        prepare(arguments.out, arguments.workloads)
    except GstError as error:
        sys.exit(f"error: {error}")


def prepare(out: Path, asked: list[str]) -> None:
    """Write the folder.

    Raises:
        GstError: a scenario or an override is wrong, or a workload cannot be built.
    """
    out.mkdir(parents=True, exist_ok=True)
    between = []
    for one in asked:
        label, _, rest = one.partition("=")
        name, *overrides = rest.split(";")
        if name.endswith(".yaml"):  # a workload is built by its scenario's name, as a partition
            folder, own = Path(name).parent.resolve(), Path(name).stem
            raise GstError(f"{name}: give its name, {label}={own}, with GST_SCENARIO_DIR={folder}.")
        overrides = [*overrides, *LIVE]
        scenario = load_scenario(name, overrides)
        directory = _built(out / "artifacts", name, overrides)
        shutil.move(directory, out / label)
        resolved = scenario.model_dump(mode="json") | {"name": label}
        (out / f"{label}.json").write_text(json.dumps(resolved, indent=2), encoding="utf-8")
        between.append(f'    --between "$here/{label}" "$here/{label}.json" \\')
        print(f"{label}: {scenario.description}", flush=True)
    shutil.rmtree(out / "artifacts", ignore_errors=True)
    first = asked[0].partition("=")[0]
    lines = [
        "# On the GPU host, from the project's root. Given again after an interruption it goes on where it was.",
        'here=$(cd "$(dirname "$0")" && pwd)',
        f'python3 -m gst_assets.cli profile --scenario "$here/{first}.json" --out "${{1:-$here}}/bundle" \\',
        *between,
        '    --runs "${1:-$here}/runs" --stamps "${1:-$here}/stamps"',
    ]
    (out / "run.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _built(root: Path, name: str, overrides: list[str]) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    dg.materialize(
        [workload],
        partition_key=name,
        resources={
            "scenario": ScenarioResource(overrides=overrides),
            "artifacts": ArtifactRoot(root=str(root)),
            "tokenizer": TokenizerResource(),
        },
    )
    store = ArtifactStore(root)
    (found,) = store.folder(Kind.WORKLOAD).iterdir()
    return found


if __name__ == "__main__":
    main()
