"""What Dagster's catalogue says of every asset beyond what the asset's own module says: owner, tags, version of its
code, where that is written.

A tag is about the asset, whatever the scenario: a partition is a scenario, so scenario, model, hardware and engine are
tags of the *run* (`run_facts` in `presentation`). When things run does not belong here (`automation`).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from gst_assets.executors import ENGINE_QUEUE

OWNER = "team:inference-performance"

_PACKAGE = Path(__file__).resolve().parent.parent
_SIDES = {
    "workload": "both",
    "real_engine": "real",
    "simulation": "simulated",
    "comparison": "both",
    "regression": "both",
    # Others than their group:
    "capacity": "both",
    "simulation_self_check": "simulated",
}
"""Tag `side` by asset or, where that is not named, by group: which of the two worlds the asset is about."""

_EVERYWHERE = ("contracts", "model_config", "provenance", "scenario")
_CODE = {
    "workloads": ("workload",),
    "measurements": (
        "assets/real_runs", "assets/profiles", "analysis", "engine", "profiling", "step_costs", "workload",
    ),
    "vidur_runs": ("analysis", "step_costs", "vidur_adapter", "workload"),
    "sweeps": ("analysis", "step_costs", "vidur_adapter", "workload"),
    "comparisons": ("analysis", "workload"),
    "regression": ("analysis", "vidur_adapter", "workload"),
    "capacities": ("capacity", "engine", "step_costs", "vidur_adapter", "workload"),
}  # fmt: skip
"""By asset module, the packages and further modules that make what its assets are; a test holds this to what the
modules import."""


def cataloged(assets: Sequence[Any]) -> list[dg.AssetsDefinition]:
    """The assets with owner, tags `side` (real, simulated, both) and `needs` (engine, processor), code version and code
    reference."""
    with warnings.catch_warnings():
        # Code references are in beta in Dagster 1.13; a reader of the log can do nothing about it.
        warnings.simplefilter("ignore", dg.BetaWarning)
        return [_complete(one) for one in assets]


def _complete(assets: Any) -> dg.AssetsDefinition:
    # Of a graph of steps: the one that makes the asset.
    op = assets.get_op_def_for_asset_key(min(assets.keys))
    # Dagster's own `with_source_code_references` would name the decorator of a decorated function.
    function = inspect.unwrap(op.compute_fn.decorated_fn)
    file = Path(inspect.getfile(function))
    reference = dg.LocalFileCodeReference(file_path=str(file), line_number=function.__code__.co_firstlineno)
    references = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}
    needs = "engine" if ENGINE_QUEUE.items() <= op.tags.items() else "processor"
    version = code_version(file.stem)

    def complete(spec: dg.AssetSpec) -> dg.AssetSpec:
        side = _SIDES.get(spec.key.to_user_string()) or _SIDES[str(spec.group_name)]
        # Not merged: an op that makes several assets says the same of each.
        return spec.replace_attributes(owners=[OWNER], code_version=version).merge_attributes(
            tags={"side": side, "needs": needs}, metadata=references
        )

    completed: dg.AssetsDefinition = assets.map_asset_specs(complete)
    return completed


def code_version(module: str) -> str:
    """Of an asset module: the first 12 hex digits of the sha256 over its source and that of the packages it uses.

    It changes with every edit of them, also of a comment. Versions of libraries are not in it; each run's metadata has
    them.
    """
    digest = hashlib.sha256()
    for name in (f"assets/{module}", *_EVERYWHERE, *_CODE[module]):
        digest.update(_digest(name))
    return digest.hexdigest()[:12]


@functools.cache
def _digest(name: str) -> bytes:
    """Of the module or package of that name in this project."""
    files = sorted([*_PACKAGE.glob(f"{name}.py"), *(_PACKAGE / name).rglob("*.py")])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.digest()
