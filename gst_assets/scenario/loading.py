"""A scenario from its name and overrides, or from a resolved file. What is wrong in them is said by `mistakes`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gst_assets.errors import ScenarioError
from gst_assets.locations import locate
from gst_assets.scenario.composition import compose, dotted_keys, merge, parse_override
from gst_assets.scenario.mistakes import Origins, validated
from gst_assets.scenario.sections import Scenario

SCENARIO_DIR = Path(__file__).resolve().parents[1] / "scenarios"
_ENVIRONMENT = "oc.env"  # OmegaConf's only way to the environment
_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def scenario_names(directory: Path = SCENARIO_DIR) -> list[str]:
    """Names of the scenarios in `directory`, sorted. Files that begin with `_` are parents only. Reads no file."""
    return sorted(path.stem for path in directory.glob("*.yaml") if not path.stem.startswith("_"))


def load_scenario(name: str, overrides: Sequence[str] = (), directory: Path = SCENARIO_DIR) -> Scenario:
    """Compose and validate the scenario `name`.

    `overrides` are `dotted.key=value` with a YAML value, e.g. `workload.num_decode_tokens=32` or `profile.num_tokens=[1, 2, 4]` (a list is
    given whole). Of several for one key the last counts. `workload.arrivals.kind=static` drops the settings of the former kind.

    Raises:
        ScenarioError: unknown scenario, parent or key, wrong type, or impossible value; names the key, the file and what is allowed.
    """
    known = scenario_names(directory)
    if name not in known:
        raise ScenarioError(f"unknown scenario {name!r}; {directory} has {', '.join(known) or 'none'}.")
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            f"scenario {name!r}: names are lower-case letters, digits and underscores (they become partition and run names)."
        )
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_resolver(_ENVIRONMENT, _refuse_environment, replace=True)
    source = str(directory / f"{name}.yaml")
    values, lines = compose(name, directory)
    # Joined first, so that their order does not matter where one names a kind and another a setting of that kind.
    chosen: dict[str, Any] = {}
    origins = Origins(source, lines, {})
    for override in overrides:
        parsed = parse_override(override)
        chosen = merge(chosen, parsed)
        origins.overrides |= dict.fromkeys(dotted_keys(parsed), f"override {override!r} of scenario {name}")
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merge(values, chosen)), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise ScenarioError(f"{origins.of(key)}: {key}: {str(error).splitlines()[0]}.") from None
    assert isinstance(resolved, dict)
    return validated(json.dumps({**resolved, "name": name, "overrides": list(overrides)}, default=repr), origins)


def resolved_json(name: str, overrides: Sequence[str] = ()) -> str:
    """The scenario `name` in JSON, as `read_resolved` reads it.

    Raises:
        ScenarioError: see `load_scenario`.
    """
    return json.dumps(load_scenario(name, overrides).model_dump(mode="json"), indent=2)


def read_resolved(path: Path) -> Scenario:
    """Read a scenario that was resolved to JSON, as carried to a host without this project's configuration library.

    Raises:
        ScenarioError: missing, not JSON (with its line), or not a scenario; names the file and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text, object_pairs_hook=lambda pairs: _once_each(pairs, path))
    except FileNotFoundError:
        raise ScenarioError(
            f"{path}: no such file. Write it with `python -m gst_assets.scenario NAME > FILE.json`."
        ) from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}).") from None
    except json.JSONDecodeError as error:
        raise ScenarioError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 ({error.reason}).") from None
    return validated(text, Origins(str(path), {}, {}))


def _once_each(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object; an error where it has a key twice, of which JSON would silently take the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ScenarioError(
                f"{path}: the key {key!r} is written twice in one object, and JSON would take the last. Remove one of them."
            )
        found[key] = value
    return found


def read_reference(reference: str, overrides: Sequence[str]) -> Scenario:
    """The scenario that a command line names: a scenario's name, to which `overrides` are applied, or a resolved `FILE.json`, which holds its own.

    Raises:
        ScenarioError: see `load_scenario` and `read_resolved`; or overrides for a resolved file.
    """
    if not reference.endswith(".json"):
        return load_scenario(reference, overrides)
    if overrides:
        raise ScenarioError(
            f"override {overrides[0]!r}: {reference} is resolved, its overrides inside. Resolve it again with this one, "
            f"`python -m gst_assets.scenario NAME {overrides[0]} > {reference}`, or give the scenario's name instead of the file."
        )
    return read_resolved(Path(reference))


def _refuse_environment(*_: object) -> str:
    raise ValueError(
        f"${{{_ENVIRONMENT}:...}} is not resolved: the value would be written into the metadata of every run. Give the value itself; of a "
        "secret, name the variable (engine.server.api_key_variable)"
    )


def resolve_path(text: str) -> Path:
    """A path of a scenario file: absolute, or relative as `locations.locate` says."""
    return locate(text)
