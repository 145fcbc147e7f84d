"""What a scenario needs, and whether this machine has it: packages, device, files, recorded runs, profile. Asks no
server and starts no engine.

The same functions are asked that a run asks, so that what is said here holds there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from gst_assets.contracts.open_store import open_store
from gst_assets.contracts.store import Kind
from gst_assets.engine import recorded
from gst_assets.engine.backends import engine_environment, engine_hardware
from gst_assets.errors import GstError
from gst_assets.scenario import Model, Scenario, resolve_path
from gst_assets.step_costs.bundle import check_bundle, check_place, find_bundle, load_bundle
from gst_assets.workload.building import build
from gst_assets.workload.tokenizer import load_tokenizer

_EXTRA = "pip install 'gst-assets[platform]'"
_PLATFORM = ("dagster", "pandera", "matplotlib", "vidur", "transformers")


@dataclass(frozen=True)
class Need:
    """One thing that a scenario needs. `met` is None where only the run itself can show it."""

    what: str
    met: bool | None
    found: str


def needs(scenario: Scenario, *, with_engine: bool = True) -> list[Need]:
    """Everything that the scenario needs; without its engine, what simulating it needs. Takes seconds where it has to
    ask torch for GPUs.

    Raises:
        EnvironmentVariableError, ArtifactError: the artifact root is not valid, or cannot be listed.
    """
    engine = _engine(scenario) if with_engine else ()
    return [*_packages(), *engine, _profile(scenario), *_files(scenario)]


def can_run(asked: Sequence[Need]) -> bool | None:
    """Whether all is there; None where nothing is known to be missing and something is not known."""
    answers = {one.met for one in asked}
    return False if False in answers else None if None in answers else True


def router_warning(scenario: Scenario) -> str | None:
    """Why the router of a mixture of experts would not spread the workload's tokens as it does the calibration's, in
    words; None where no reason is known. Of a running server's weights nothing is known."""
    has_random_weights = scenario.model.checkpoint is None and scenario.engine.backend != "openai"
    if scenario.model.geometry.num_experts is None or not has_random_weights:
        return None
    if scenario.engine.sampling.temperature > 0:
        return None
    return (
        "engine.sampling.temperature is 0 with random weights: greedy sampling sends all requests to the same experts,"
        " so steps read fewer weights than in the calibration. Set engine.sampling.temperature=1.0"
        " (docs/engines.md#mixtures-of-experts)"
    )


def _packages() -> Iterator[Need]:
    missing = [name for name in _PLATFORM if find_spec(name) is None]
    told = f"without {', '.join(missing)}: {_EXTRA}" if missing else ", ".join(_PLATFORM)
    yield Need("packages", not missing, told)


def _engine(scenario: Scenario) -> Iterator[Need]:
    engine = scenario.engine
    if engine.backend == recorded.BACKEND:
        assert engine.recorded is not None  # the scenario's validation
        yield _recorded(scenario, resolve_path(engine.recorded))
        return
    if engine.backend == "openai":
        assert engine.server is not None  # the scenario's validation
        yield Need("a running server", None, f"{engine.server.base_url}: is asked when the run starts")
        variable = engine.server.api_key_variable
        if variable is not None:
            is_set = bool(os.environ.get(variable))
            yield Need("its key", is_set, f"environment variable {variable} is {'set' if is_set else 'not set'}")
        return
    missing = [name for name in ("torch", engine.backend) if find_spec(name) is None]
    told = f"without {', '.join(missing)}: docs/engines.md" if missing else f"torch and {engine.backend}"
    yield Need("an engine", not missing, told)
    yield _asked("the device", lambda: _device(scenario))


def _recorded(scenario: Scenario, folder: Path) -> Need:
    """The recorded runs, and whether they are what the scenario asks for. Its workload is made only where its settings
    are not those of the runs: making a large one takes minutes."""
    what = "recorded runs"
    try:
        runs = recorded.list_recorded(folder)
        chosen = recorded.chosen_runs(runs, scenario, None)
        found = f"{len(runs)} in {folder}"
        if all(recorded.differing_workload_settings(run, scenario) == {} for run in chosen):
            return Need(what, True, found)
        if not resolve_path(scenario.model.tokenizer).is_dir() or find_spec("tokenizers") is None:
            return Need(what, None, f"{found}: not compared with the scenario's workload, which needs a tokenizer here")
        with TemporaryDirectory() as made:
            workload = build(scenario, Path(made), contract=False).meta
        recorded.chosen_runs(runs, scenario, workload)
    except GstError as error:
        return Need(what, False, " ".join(str(error).split()))
    return Need(what, True, found)


def _device(scenario: Scenario) -> str:
    """The device, if this machine has as many of it, or as many CPUs, as the engine takes."""
    engine_environment(scenario)
    found = engine_hardware(scenario)
    return f"{found.device_count} x {found.device_name}" if found.device_count > 1 else found.device_name


def _profile(scenario: Scenario) -> Need:
    what = "a profile"
    if scenario.profile.root is None and scenario.engine.backend != recorded.BACKEND:
        return _asked(what, lambda: _measured(scenario))
    root = scenario.profile.root

    def fitting() -> str:
        directory = find_bundle(resolve_path(root) if root else open_store().folder(Kind.PROFILE), scenario)
        if find_spec("pandera") is not None:  # else `packages` says so
            check_bundle(load_bundle(directory), scenario)
        return str(directory)

    return _asked(what, fitting)


def _measured(scenario: Scenario) -> str:
    """Where a profile comes from that the run measures, if its place is free for it."""
    check_place(open_store().folder(Kind.PROFILE) / scenario.hardware.hardware_id / scenario.model.name, scenario)
    return "measured by the run, or taken from the artifact root where it fits"


def _files(scenario: Scenario) -> Iterator[Need]:
    workload = scenario.workload
    if workload.prompts is not None:
        yield _file("prompts", workload.prompts)
    if workload.trace is not None:
        yield _file("the trace", workload.trace.path)
    yield _tokenizer(scenario.model)
    if scenario.model.checkpoint is not None:
        is_here = resolve_path(scenario.model.checkpoint).is_dir()
        yield Need("the weights", True if is_here else None, scenario.model.checkpoint)


def _tokenizer(model: Model) -> Need:
    what, directory = "a tokenizer", resolve_path(model.tokenizer)
    if not directory.is_dir():
        return Need(what, None, f"{model.tokenizer}: no folder here, so it is asked of the hub")
    if model.fold_token_ids:
        return Need(what, True, str(directory))
    if find_spec("tokenizers") is None:  # `packages` says so
        return Need(what, None, f"{directory}: its ids are not compared with the vocabulary without tokenizers")
    vocabulary = model.geometry.vocab_size
    try:
        largest = load_tokenizer(model.tokenizer).largest_id()
    except GstError as error:
        return Need(what, False, " ".join(str(error).split()))
    if largest < vocabulary:
        return Need(what, True, str(directory))
    return Need(
        what,
        None,
        f"{directory}: its ids end at {largest:,}, the model's vocabulary at {vocabulary - 1:,}, and the engine is sent"
        " no prompt with an id beyond that. Set model.fold_token_ids=true, or model.tokenizer to the model's own",
    )


def _file(what: str, text: str) -> Need:
    path: Path = resolve_path(text)
    return Need(what, path.is_file(), f"{path}{'' if path.is_file() else ': no such file (docs/workloads.md)'}")


def _asked(what: str, ask: Callable[[], str]) -> Need:
    try:
        return Need(what, True, ask())
    except GstError as error:
        return Need(what, False, " ".join(str(error).split()))
