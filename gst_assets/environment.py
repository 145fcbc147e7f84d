"""The environment variables of this project, `GST_*`: every one is declared, read and checked here, when it is needed.

docs/deployment.md lists them for users. An empty variable counts as unset. What a value is used for belongs to the
module that asks for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from gst_assets.errors import EnvironmentVariableError

ROOT_VARIABLE = "GST_ARTIFACT_ROOT"
SCENARIOS_VARIABLE = "GST_SCENARIO_DIR"
CACHE_VARIABLE = "GST_ARTIFACT_CACHE"
EXECUTOR_VARIABLE = "GST_EXECUTOR"
EXECUTOR_CONFIG_VARIABLE = "GST_EXECUTOR_CONFIG"
LOCK_VARIABLE = "GST_ENGINE_LOCK"
TIMEZONE_VARIABLE = "GST_NIGHTLY_TIMEZONE"
CRON_VARIABLE = "GST_NIGHTLY_CRON"
WEBHOOK_VARIABLE = "GST_WEBHOOK_URL"
SLACK_VARIABLE = "GST_SLACK_WEBHOOK_URL"
UI_VARIABLE = "GST_UI_URL"
REPORTS_VARIABLE = "GST_REPORTS_URL"
COMMIT_VARIABLE = "GST_GIT_COMMIT"
PIPE_VARIABLE = "GST_PARENT_PIPE"
STEPS_VARIABLE = "GST_STEP_RECORDS"
SERVICES_VARIABLE = "GST_REQUIRE_SERVICES"

ExecutorName = Literal["in_process", "multiprocess", "celery", "k8s"]


def _must(holds: Callable[[str], bool], expected: str) -> BeforeValidator:
    """A validator of the variable's text."""

    def check(text: object) -> object:
        if isinstance(text, str) and not holds(text):
            raise ValueError(f"expected {expected}")
        return text

    return BeforeValidator(check)


def _is_http(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an impossible host or port; its message may hold the address
        return False


def _is_http_without_password(text: str) -> bool:
    return _is_http(text) and "@" not in urlsplit(text).netloc


def _is_timezone(text: str) -> bool:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # unknown; no name of a zone; a folder of zones
        return False
    return True


_HTTP = _must(_is_http, "an http or https address")
_WEBHOOK = _must(_is_http_without_password, "an http or https address without user and password")


class _Variables(BaseModel):
    """Plain pydantic rather than pydantic-settings, which a bare GPU host does not have. The alias of a field is the
    variable's name."""

    model_config = ConfigDict(frozen=True)


class Artifacts(_Variables):
    """Where artifacts are."""

    root: str | None = Field(
        None, validation_alias=ROOT_VARIABLE, description="a directory or the URL of an object store"
    )
    cache: Annotated[Path | None, _must(lambda text: "://" not in text, "a directory of this machine, found a URL")] = (
        Field(None, validation_alias=CACHE_VARIABLE, description="local copies of what is in an object store")
    )


class OwnScenarios(_Variables):
    """Scenario files of the user's own, in addition to those of the package."""

    directory: Annotated[Path | None, _must(lambda text: Path(text).expanduser().is_dir(), "a directory")] = Field(
        None, validation_alias=SCENARIOS_VARIABLE
    )


class Execution(_Variables):
    """Who runs the steps of a run."""

    executor: Annotated[
        ExecutorName, _must(lambda text: text in get_args(ExecutorName), f"one of {', '.join(get_args(ExecutorName))}")
    ] = Field("in_process", validation_alias=EXECUTOR_VARIABLE)
    config: Path | None = Field(None, validation_alias=EXECUTOR_CONFIG_VARIABLE, description="a YAML file")


class EngineLock(_Variables):
    """Another lock file of engine runs, for containers that share a machine but not its /tmp: a file in a folder that
    all of them mount."""

    # Relative, programs started in different folders would take different files and not wait for each other.
    file: Annotated[Path | None, _must(lambda text: Path(text).is_absolute(), "an absolute path")] = Field(
        None, validation_alias=LOCK_VARIABLE
    )


class Nightly(_Variables):
    """When the nightly schedules run."""

    timezone: Annotated[str, _must(_is_timezone, "the name of a time zone, e.g. Europe/Berlin")] = Field(
        "UTC", validation_alias=TIMEZONE_VARIABLE
    )
    cron: str = Field(
        "0 2 * * *",
        validation_alias=CRON_VARIABLE,
        description="five fields, checked by `automation` as Dagster takes them",
    )


class Messages(_Variables):
    """Where messages go. The addresses may hold a secret, so no error shows them."""

    webhook: Annotated[SecretStr | None, _WEBHOOK] = Field(None, validation_alias=WEBHOOK_VARIABLE)
    slack: Annotated[SecretStr | None, _WEBHOOK] = Field(None, validation_alias=SLACK_VARIABLE)


class Ui(_Variables):
    """The Dagster UI that messages and the demo name."""

    url: Annotated[str, _HTTP] = Field("http://127.0.0.1:3000", validation_alias=UI_VARIABLE)


class Reports(_Variables):
    """Under which address a browser finds the artifact root, for the links to reports in the Dagster UI."""

    url: Annotated[str, _HTTP] = Field("http://127.0.0.1:3001", validation_alias=REPORTS_VARIABLE)


class Revision(_Variables):
    """The revision of this code where git does not know it."""

    commit: Annotated[
        str | None,
        _must(
            lambda text: re.fullmatch("[0-9a-f]{7,64}", text) is not None, "a commit's hash, 7 to 64 digits 0-9 and a-f"
        ),
    ] = Field(None, validation_alias=COMMIT_VARIABLE)


class Parent(_Variables):
    """Set by `engine.launch` for the child it starts: the reading end of a pipe that closes when the parent is gone."""

    pipe: Annotated[int | None, _must(str.isdecimal, "the number of a file descriptor")] = Field(
        None, validation_alias=PIPE_VARIABLE
    )


class StepFile(_Variables):
    """Set by the vLLM backend for the engine's process: the file its step recorder writes."""

    file: Path = Field(validation_alias=STEPS_VARIABLE)


class Services(_Variables):
    """Set where the tests run: whether an absent service program fails them, rather than skipping."""

    required: Annotated[bool, _must(lambda text: text in ("0", "1"), "1 or 0")] = Field(
        False, validation_alias=SERVICES_VARIABLE
    )


AnyVariables = TypeVar("AnyVariables", bound=_Variables)


def read(variables: type[AnyVariables]) -> AnyVariables:
    """These variables as they are now.

    Raises:
        EnvironmentVariableError: one holds what it cannot; names it, its value unless that may be a secret, and what is
            expected.
    """
    names = [str(field.validation_alias) for field in variables.model_fields.values()]
    try:
        return variables.model_validate({name: os.environ[name] for name in names if os.environ.get(name)})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise EnvironmentVariableError(f"{name}: is not set. {variables.__doc__}") from None
        shown = name if variables is Messages else f"{name}={first['input']!s:.200}"
        expected = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        raise EnvironmentVariableError(f"{shown}: {expected}. Correct the variable, or unset it.") from None
