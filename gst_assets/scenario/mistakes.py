"""What is wrong with a scenario's values, in words: the key, where it was set, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gst_assets.errors import ScenarioError
from gst_assets.foreign_text import without_secrets
from gst_assets.scenario.sections import Scenario

_NO_SETTINGS = {"name", "overrides"}
"""Fields of a scenario that say where it comes from; no file and no override may set them."""


@dataclass
class Origins:
    """Where settings were made, by dotted key: `lines` (file and line) and, over them, `overrides`."""

    source: str
    lines: dict[str, str]
    overrides: dict[str, str]

    def of(self, key: str, *, missing: bool = False) -> str:
        """The override or line that set `key`; for a section, or the section of a `missing` key, the overrides that
        touch it as well."""
        for set_key, override in self.overrides.items():
            if f"{key}.".startswith(f"{set_key}."):
                return override
        section = key.rpartition(".")[0] if missing else key
        touching = [
            where for set_key, where in self.overrides.items() if not section or set_key.startswith(f"{section}.")
        ]
        own = self.source
        if not missing and not touching:
            parts = key.split(".")
            ancestors = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            own = next((self.lines[one] for one in ancestors if one in self.lines), self.source)
        return " with ".join([own, *dict.fromkeys(touching)])


def validated(text: str, origins: Origins) -> Scenario:
    """A scenario in JSON, validated strictly: neither `"32"` nor `true` is an integer.

    Raises:
        ScenarioError: the first mistake, and how many there are; names the key and, by `origins`, what set it.
    """
    try:
        return Scenario.model_validate_json(text, strict=True)
    except ValidationError as error:
        # A misspelled key is often also a missing one: the key that is present is the better hint.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key, problem = _explain(first)
        where = origins.of(key, missing=first["type"] in ("missing", "union_tag_not_found"))
        more = f" ({error.error_count()} settings are wrong in all)" if error.error_count() > 1 else ""
        raise ScenarioError(without_secrets(f"{where}: {key or 'scenario':.200}: {problem}{more}")) from None


def _explain(error: Any) -> tuple[str, str]:
    """The dotted key of a validation error, and what is wrong with what is allowed."""
    keys, model, kinds = _follow(error["loc"])
    found = f"found {error['input']!r:.120}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = error["ctx"].get("tag")
        return (
            ".".join([*keys, "kind"]),
            f"expected one of {', '.join(kinds)}, found {'none' if tag is None else repr(tag)}.",
        )
    key = ".".join(keys)
    if error["type"] == "extra_forbidden":
        _, section, _ = _follow(error["loc"][:-1])
        known = set(section.model_fields if section else ()) - (_NO_SETTINGS if section is Scenario else set())
        return key, f"unknown key. Allowed here: {', '.join(sorted(known)) or 'none'}."
    if error["type"] == "missing":
        return key, "required key is missing."
    if error["type"] == "value_error":
        return key, f"{error['ctx']['error']}."
    if model is not None or kinds:
        return key, f"expected a mapping of settings, {found}."
    return key, f"{error['msg']} ({found})."


def _follow(location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None, dict[str, type[BaseModel]]]:
    """The keys along an error's location (which also holds the tags of tagged unions), and the section or the kinds it
    ends at."""
    keys: list[str] = []
    model: type[BaseModel] | None = Scenario
    kinds: dict[str, type[BaseModel]] = {}
    for part in location:
        if kinds:
            model, kinds = kinds[str(part)], {}
            continue
        keys.append(str(part))
        field = model.model_fields.get(str(part)) if model else None
        annotation: Any = field.annotation if field else None
        # `Section | None` leads to the section.
        sections = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
        if len(sections) == 1:
            annotation = sections[0]
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        if field and isinstance(field.discriminator, str):
            kinds = {
                get_args(member.model_fields[field.discriminator].annotation)[0]: member
                for member in get_args(annotation)
            }
    return keys, model, kinds
