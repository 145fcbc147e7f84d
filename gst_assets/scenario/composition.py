"""The values of a scenario file, of its parents and of an override, and how one is laid over another.

Interpolations stay as they are written. Whether the values are allowed belongs to `mistakes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gst_assets.errors import ScenarioError
from gst_assets.input_files import InputKind, read_text

_EXTENDS = "extends"
_NIGHTLY = "nightly"
"""The one setting that no file has from its parents."""
_MOST_PARENTS, _LONGEST_LINE_OF_PARENTS = 20, 20
_MOST_INTERPOLATIONS = 24
"""In a scenario and its overrides together. Their values are not cached when one contains another, so a few more could
take hours."""
_KIND = InputKind(
    ScenarioError,
    missing="no such scenario file.",
    expected="a scenario file",
    remedy="Correct the file.",
    most_bytes=1 << 20,
)
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


_Composed = tuple[dict[str, Any], dict[str, str]]


def compose(name: str, files: Mapping[str, Path]) -> _Composed:
    """The file's settings over its parents' (less `nightly`), and for each dotted key the file and line it comes from.

    `files` are those that there are, by name.

    Raises:
        ScenarioError: a file that cannot be read, is not YAML or not a mapping, parents that are none, in a circle or
            too many.
    """
    return _compose(name, files, (), {})


def _compose(name: str, files: Mapping[str, Path], seen: tuple[str, ...], done: dict[str, _Composed]) -> _Composed:
    """`seen` are the scenarios that led here; `done` those composed before, so that a parent of many is read once."""
    if name in done:
        return done[name]
    path = files[name]
    if name in seen:
        raise ScenarioError(
            f"{path}: {_EXTENDS} goes in a circle: {' -> '.join([*seen, name])}. Take one of them out of {_EXTENDS}."
        )
    if len(seen) > _LONGEST_LINE_OF_PARENTS:
        raise ScenarioError(
            f"{path}: {_EXTENDS} leads over more than {_LONGEST_LINE_OF_PARENTS} files from {seen[0]} to here. Merge"
            " some of them."
        )
    own, origins = _read_file(path)
    if "name" in own:
        raise ScenarioError(f"{origins['name']}: name: the file's name is the scenario's name. Remove the key.")
    if "overrides" in own:
        raise ScenarioError(
            f"{origins['overrides']}: overrides: overrides are given with a run. Write the settings themselves into the"
            " file."
        )
    parents = own.pop(_EXTENDS, [])
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(parent, str) for parent in names):
        raise ScenarioError(
            f"{origins[_EXTENDS]}: {_EXTENDS}: expected a scenario name or a list of them, found {parents!r:.80}."
        )
    if len(names) > _MOST_PARENTS:
        raise ScenarioError(
            f"{origins[_EXTENDS]}: {_EXTENDS} names {len(names)} parents, expected at most {_MOST_PARENTS}. Merge some"
            " of them."
        )
    merged: dict[str, Any] = {}
    merged_origins: dict[str, str] = {}
    for parent in names:
        if parent not in files:
            places = " and ".join(sorted({str(file.parent) for file in files.values()}))
            raise ScenarioError(
                f"{origins[_EXTENDS]}: {_EXTENDS} names {parent!r:.80}, but {places} has no {parent:.80}.yaml; it has "
                f"{', '.join(sorted(files))}."
            )
        values, where = _compose(parent, files, (*seen, name), done)
        # A copy of a nightly scenario must not run at night unless it says so itself.
        values = {key: value for key, value in values.items() if key != _NIGHTLY}
        merged, merged_origins = merge(merged, values), merged_origins | where
    done[name] = merge(merged, own), merged_origins | origins
    return done[name]


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gst_assets.scenario.yaml_text import RewrittenError

    text = read_text(path, _KIND)
    root = None
    try:
        values, root = _parsed(text)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ScenarioError(f"{path}: expected a mapping of settings at the top level, found {text.strip()!r:.60}.")
        own = OmegaConf.to_container(OmegaConf.create(values or {}))
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
        raise ScenarioError(f"{path}:{line} {key}: not a valid interpolation ({first_line(error)}).") from None
    except RecursionError:
        raise ScenarioError(f"{path}: an interpolation is nested too deep. Write the value itself.") from None
    assert isinstance(own, dict)
    return {str(key): value for key, value in own.items()}, {
        key: f"{path}: line {line}" for key, line in _lines(root).items()
    }


@lru_cache(maxsize=128)
def _parsed(text: str) -> tuple[Any, Any]:
    """`read_yaml`, once for each text: every step of a run reads the same files. Nobody changes what it gives."""
    from gst_assets.scenario.yaml_text import read_yaml

    return read_yaml(text)


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

    from gst_assets.scenario.yaml_text import DEEPEST, MOST_CHARACTERS, RewrittenError, read_yaml

    key, equals, text = override.partition("=")
    if not equals or not _DOTTED_KEY.fullmatch(key):
        raise ScenarioError(
            f"override {override!r:.200}: expected dotted.key=value, e.g. workload.num_decode_tokens=32 or"
            " profile.num_tokens=[1, 2, 4] (a list is given whole)."
        )
    if len(override) > MOST_CHARACTERS or key.count(".") >= DEEPEST:
        raise ScenarioError(
            f"override {override!r:.200}: too long. Give its parts one by one, or write a scenario file."
        )
    section = key.split(".")[0]
    if section in ("name", _EXTENDS):
        raise ScenarioError(f"override {override!r:.200}: {key} cannot be overridden; choose another scenario instead.")
    if section == "overrides":
        raise ScenarioError(f"override {override!r:.200}: {key} cannot be overridden; give the overrides one by one.")
    try:
        value, _ = read_yaml(text, comments=False)
        for part in reversed(key.split(".")):
            value = {part: value}
        parsed = OmegaConf.to_container(OmegaConf.create(value))
    except RewrittenError as error:
        raise ScenarioError(f"override {override!r:.200}: {key}: {error.problem}") from None
    except YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ScenarioError(
            f"override {override!r:.200}: {key:.80}: the value is not valid YAML ({problem})."
        ) from None
    except OmegaConfBaseException as error:
        raise ScenarioError(
            f"override {override!r:.200}: {key:.80}: not a valid interpolation ({first_line(error)})."
        ) from None
    except RecursionError:
        raise ScenarioError(
            f"override {override!r:.200}: an interpolation is nested too deep. Write the value itself."
        ) from None
    assert isinstance(parsed, dict)
    return {str(name): value for name, value in parsed.items()}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; lists are replaced whole, and so is a section whose `kind` changes: the old kind's settings mean
    nothing to the new one."""
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


def refuse_many_interpolations(values: Any, source: str) -> None:
    """Refuse settings whose interpolations could not be resolved in any reasonable time.

    Raises:
        ScenarioError
    """
    number = _interpolations(values)
    if number > _MOST_INTERPOLATIONS:
        raise ScenarioError(
            f"{source}: {number} interpolations, expected at most {_MOST_INTERPOLATIONS}. Write some values themselves."
        )


def _interpolations(values: Any) -> int:
    if isinstance(values, str):
        return values.count("${")
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return sum(map(_interpolations, inner))


def first_line(error: Exception) -> str:
    """The first line of a library's message, or the name of its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
