"""The values of a scenario file, of its parents and of an override, and how one is laid over another.

Interpolations stay as they are written. Whether the values are allowed belongs to `mistakes`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gst_assets.errors import ScenarioError

_EXTENDS = "extends"
_NIGHTLY = "nightly"
"""The one setting that no file has from its parents."""
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def compose(name: str, directory: Path, seen: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's settings over its parents' (less `nightly`), and for each dotted key the file and line it comes from.

    `seen` are the scenarios that led here.

    Raises:
        ScenarioError: a file that cannot be read, is not YAML or not a mapping, parents that are none or in a circle.
    """
    path = directory / f"{name}.yaml"
    if name in seen:
        raise ScenarioError(
            f"{path}: {_EXTENDS} goes in a circle: {' -> '.join([*seen, name])}. Take one of them out of {_EXTENDS}."
        )
    own, origins = _read_file(path)
    if "name" in own:
        raise ScenarioError(f"{origins['name']}: name: the file's name is the scenario's name. Remove the key.")
    if "overrides" in own:
        raise ScenarioError(
            f"{origins['overrides']}: overrides: overrides are given with a run. Write the settings themselves into the file."
        )
    parents = own.pop(_EXTENDS, [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(parent, str) for parent in names):
        raise ScenarioError(
            f"{origins[_EXTENDS]}: {_EXTENDS}: expected a scenario name or a list of them, found {parents!r}."
        )
    merged: dict[str, Any] = {}
    merged_origins: dict[str, str] = {}
    for parent in names:
        known = sorted(file.stem for file in directory.glob("*.yaml"))
        if parent not in known:
            raise ScenarioError(
                f"{origins[_EXTENDS]}: {_EXTENDS} names {parent!r}, but {directory} has no {parent}.yaml; it has {', '.join(known)}."
            )
        values, where = compose(parent, directory, (*seen, name))
        values.pop(_NIGHTLY, None)  # a copy of a nightly scenario must not run at night unless it says so itself
        merged, merged_origins = merge(merged, values), merged_origins | where
    return merge(merged, own), merged_origins | origins


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gst_assets.scenario.yaml_text import RewrittenError, read_yaml

    try:
        text = path.read_text(encoding="utf-8")
        values, root = read_yaml(text)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ScenarioError(f"{path}: expected a mapping of settings at the top level, found {text.strip()!r:.60}.")
        own = OmegaConf.to_container(OmegaConf.create(values or {}))
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    except RewrittenError as error:
        assert error.problem_mark is not None
        raise ScenarioError(f"{path}: line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ScenarioError(f"{path}:{line} not valid YAML ({error.problem or error.context}).") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: not valid YAML ({error}).") from None
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        where = _lines(root).get(key)
        line = f" line {where}:" if where else ""
        raise ScenarioError(f"{path}:{line} {key}: not a valid interpolation ({str(error).splitlines()[0]}).") from None
    assert isinstance(own, dict)
    return {str(key): value for key, value in own.items()}, {
        key: f"{path}: line {line}" for key, line in _lines(root).items()
    }


def _lines(node: Any, prefix: str = "") -> dict[str, int]:
    """Line (from 1) of each dotted key of a YAML mapping node."""
    found: dict[str, int] = {}
    for key, value in node.value if node is not None and node.id == "mapping" else ():
        found[f"{prefix}{key.value}"] = key.start_mark.line + 1
        found |= _lines(value, f"{prefix}{key.value}.")
    return found


def parse_override(override: str) -> dict[str, Any]:
    """The value of `dotted.key=value`, nested by the parts of its key.

    Raises:
        ScenarioError: not of that form, a key that cannot be overridden, or a value that is not YAML or would not be
            read as it is written.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from gst_assets.scenario.yaml_text import RewrittenError, read_yaml

    key, equals, text = override.partition("=")
    if not equals or not _DOTTED_KEY.fullmatch(key):
        raise ScenarioError(
            f"override {override!r}: expected dotted.key=value, e.g. workload.num_decode_tokens=32 or profile.num_tokens=[1, 2, 4] (a list is given whole)."
        )
    section = key.split(".")[0]
    if section in ("name", _EXTENDS):
        raise ScenarioError(f"override {override!r}: {key} cannot be overridden; choose another scenario instead.")
    if section == "overrides":
        raise ScenarioError(f"override {override!r}: {key} cannot be overridden; give the overrides one by one.")
    try:
        value, _ = read_yaml(text, comments=False)
        for part in reversed(key.split(".")):
            value = {part: value}
        parsed = OmegaConf.to_container(OmegaConf.create(value))
    except RewrittenError as error:
        raise ScenarioError(f"override {override!r}: {key}: {error.problem}") from None
    except YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ScenarioError(f"override {override!r}: {key}: the value is not valid YAML ({problem}).") from None
    except OmegaConfBaseException as error:
        raise ScenarioError(
            f"override {override!r}: {key}: not a valid interpolation ({str(error).splitlines()[0]})."
        ) from None
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; lists are replaced whole, and so is a section whose `kind` changes: the old kind's settings mean nothing to the new one."""
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if (
            isinstance(before, dict)
            and isinstance(value, dict)
            and value.get("kind") in (None, before.get("kind", value.get("kind")))
        ):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged


def dotted_keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys of the values that are no mappings."""
    keys = []
    for key, value in values.items():
        keys += dotted_keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return keys
