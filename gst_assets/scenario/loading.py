"""A scenario from its name and overrides, or from a resolved file. What is wrong in them is said by `mistakes`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gst_assets.environment import SCENARIOS_VARIABLE
from gst_assets.errors import ScenarioError
from gst_assets.input_files import InputKind, JsonProblem, parse_json, read_text
from gst_assets.locations import locate
from gst_assets.scenario.composition import (
    compose,
    dotted_keys,
    first_line,
    merge,
    parse_override,
    refuse_many_interpolations,
)
from gst_assets.scenario.files import SCENARIO_DIR, scenario_directories, scenario_files
from gst_assets.scenario.mistakes import Origins, validated
from gst_assets.scenario.sections import Scenario

_ENVIRONMENT = "oc.env"  # OmegaConf's only way to the environment
_RESOLVED = InputKind(
    ScenarioError,
    missing="no such file. Write it with `gst show NAME --json > FILE.json`.",
    expected="a resolved scenario",
    remedy="Correct the path.",
    most_bytes=16 << 20,
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def load_scenario(name: str, overrides: Sequence[str] = (), directory: Path | None = None) -> Scenario:
    """Compose and validate the scenario `name`, of `directory` or of any of `scenario_directories`.

    `overrides` are `dotted.key=value` with a YAML value, e.g. `workload.num_decode_tokens=32` or
    `profile.num_tokens=[1, 2, 4]` (a list is given whole). Of several for one key the last counts.
    `workload.arrivals.kind=static` drops the settings of the former kind.

    Raises:
        ScenarioError: unknown scenario, parent or key, wrong type, or impossible value; names the key, the file and
            what is allowed.
    """
    return _loaded(name, overrides, scenario_directories() if directory is None else (directory,))


def load_file(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Compose and validate the scenario in `path`, wherever it is. It may extend shipped files and those in its folder.

    Raises:
        ScenarioError: no such file, or see `load_scenario`.
    """
    if not path.is_file():
        raise ScenarioError(f"{path}: no such file. Expected a scenario, FILE.yaml, or the name of one (gst list).")
    return _loaded(path.stem, overrides, tuple(dict.fromkeys((SCENARIO_DIR, path.resolve().parent))))


def _loaded(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> Scenario:
    files = scenario_files(folders)
    known = sorted(one for one in files if not one.startswith("_"))
    if name not in known:
        places = " and ".join(map(str, folders))
        raise ScenarioError(
            f"unknown scenario {name!r:.80}; {places} has {', '.join(known) or 'none'}. One of your own is given by its"
            f" file, ./FILE.yaml, or by its name where {SCENARIOS_VARIABLE} is set to its folder."
        )
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            f"scenario {name!r}: names are lower-case letters, digits and underscores (they become partition and run"
            " names)."
        )
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_resolver(_ENVIRONMENT, _refuse_environment, replace=True)
    source = str(files[name])
    values, lines = compose(name, files)
    # Joined first, so that their order does not matter where one names a kind and another a setting of that kind.
    chosen: dict[str, Any] = {}
    origins = Origins(source, lines, {})
    for override in overrides:
        parsed = parse_override(override)
        chosen = merge(chosen, parsed)
        origins.overrides |= dict.fromkeys(dotted_keys(parsed), f"override {override!r:.200} of scenario {name}")
    merged = merge(values, chosen)
    refuse_many_interpolations(merged, origins.of(""))
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise ScenarioError(f"{origins.of(key)}: {key}: {first_line(error)}.") from None
    except RecursionError:
        raise ScenarioError(
            f"{origins.of('')}: interpolations that lead to each other. Write one of the values itself."
        ) from None
    assert isinstance(resolved, dict)
    return validated(json.dumps({**resolved, "name": name, "overrides": list(overrides)}, default=repr), origins)


def read_resolved(path: Path) -> Scenario:
    """Read a scenario that was resolved to JSON, as carried to a host without this project's configuration library.

    Raises:
        ScenarioError: missing, not JSON (with its line), or not a scenario; names the file and the key.
    """
    text = read_text(path, _RESOLVED)
    try:
        parse_json(text, keys_once=True)
    except JsonProblem as problem:
        if problem.line is None:
            raise ScenarioError(f"{path}: {problem.reason}.") from None
        raise ScenarioError(f"{path}: line {problem.line}: not valid JSON ({problem.reason}).") from None
    return validated(text, Origins(str(path), {}, {}))


def read_reference(reference: str, overrides: Sequence[str]) -> Scenario:
    """The scenario that a command line names: a scenario's name or its file `FILE.yaml`, to which `overrides` are
    applied, or a resolved `FILE.json`, which holds its own.

    Raises:
        ScenarioError: see `load_scenario` and `read_resolved`; or overrides for a resolved file.
    """
    if reference.endswith(".yaml"):
        return load_file(Path(reference), overrides)
    if not reference.endswith(".json"):
        return load_scenario(reference, overrides)
    if overrides:
        raise ScenarioError(
            f"override {overrides[0]!r}: {reference} is resolved, its overrides inside. Resolve it again with this one,"
            f" `gst show NAME -o {overrides[0]} --json > {reference}`, or give the scenario's name instead of the file."
        )
    return read_resolved(Path(reference))


def _refuse_environment(*_: object) -> str:
    raise ValueError(
        f"${{{_ENVIRONMENT}:...}} is not resolved: the value would be written into the metadata of every run. Give the"
        " value itself; of a secret, name the variable (engine.server.api_key_variable)"
    )


def resolve_path(text: str) -> Path:
    """A path of a scenario file: absolute, or relative as `locations.locate` says.

    Raises:
        ScenarioError: `~NAME` of a user that this machine does not know.
    """
    try:
        return locate(text)
    except RuntimeError as error:
        raise ScenarioError(f"path {text!r:.200}: {error} Write the whole path.") from None
