"""Every `GST_*` variable is declared, checked and documented in one place, and its error names it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gst_assets import environment
from gst_assets.environment import (
    Artifacts,
    EngineLock,
    Execution,
    ExecutorName,
    Messages,
    Nightly,
    OwnScenarios,
    Parent,
    Reports,
    Revision,
    Services,
    StepFile,
    Ui,
    read,
)
from gst_assets.errors import EnvironmentVariableError
from gst_assets.executors import _EXECUTORS
from gst_assets.provenance import PROJECT_ROOT

ALL: tuple[Any, ...] = (
    Artifacts,
    OwnScenarios,
    Execution,
    EngineLock,
    Nightly,
    Messages,
    Ui,
    Reports,
    Revision,
    Parent,
    Services,
)
_OF_DAGSTER = {"GST_POSTGRES_URL", "GST_CELERY_BROKER", "GST_CELERY_BACKEND"}
"""Dagster reads them itself, where a YAML file of deploy/ says `{env: NAME}`."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GST_")]:
        monkeypatch.delenv(name)


def test_without_variables_everything_has_its_default() -> None:
    assert [read(one).model_dump() for one in ALL] == [
        {"root": None, "cache": None},
        {"directory": None},
        {"executor": "in_process", "config": None},
        {"file": None},
        {"timezone": "UTC", "cron": "0 2 * * *"},
        {"webhook": None, "slack": None},
        {"url": "http://127.0.0.1:3000"},
        {"url": "http://127.0.0.1:3001"},
        {"commit": None},
        {"pipe": None},
        {"required": False},
    ]


@pytest.mark.parametrize(
    ("kind", "name", "text", "field", "value"),
    [
        (Artifacts, "GST_ARTIFACT_ROOT", "s3://bucket/prefix", "root", "s3://bucket/prefix"),
        (Artifacts, "GST_ARTIFACT_CACHE", "/var/cache/gst", "cache", Path("/var/cache/gst")),
        (Execution, "GST_EXECUTOR", "celery", "executor", "celery"),
        (Execution, "GST_EXECUTOR_CONFIG", "deploy/celery.yaml", "config", Path("deploy/celery.yaml")),
        (EngineLock, "GST_ENGINE_LOCK", "/run/gst/engine.lock", "file", Path("/run/gst/engine.lock")),
        (Nightly, "GST_NIGHTLY_TIMEZONE", "Europe/Berlin", "timezone", "Europe/Berlin"),
        (Nightly, "GST_NIGHTLY_CRON", "15 3 * * 1-5", "cron", "15 3 * * 1-5"),
        (Ui, "GST_UI_URL", "https://dagster.example/ui", "url", "https://dagster.example/ui"),
        (Revision, "GST_GIT_COMMIT", "f61eb3d", "commit", "f61eb3d"),
        (Parent, "GST_PARENT_PIPE", "7", "pipe", 7),
        (StepFile, "GST_STEP_RECORDS", "/x/steps", "file", Path("/x/steps")),
        (Services, "GST_REQUIRE_SERVICES", "1", "required", True),
    ],
)
def test_a_variable_is_read_when_asked_and_an_empty_one_is_unset(
    monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(read(kind), field) == value
    monkeypatch.setenv(name, "")
    if kind is not StepFile:
        assert getattr(read(kind), field) == kind.model_fields[field].default


@pytest.mark.parametrize(
    ("kind", "name", "text", "says"),
    [
        (Artifacts, "GST_ARTIFACT_CACHE", "s3://bucket", "GST_ARTIFACT_CACHE=s3://bucket: expected a directory of this machine, found a URL."),
        (Execution, "GST_EXECUTOR", "threads", "GST_EXECUTOR=threads: expected one of in_process, multiprocess, celery, k8s."),
        (EngineLock, "GST_ENGINE_LOCK", "engine.lock", "GST_ENGINE_LOCK=engine.lock: expected an absolute path."),
        (Nightly, "GST_NIGHTLY_TIMEZONE", "Europe/Berlinn", "GST_NIGHTLY_TIMEZONE=Europe/Berlinn: expected the name of a time zone, e.g. Europe/Berlin."),
        (Nightly, "GST_NIGHTLY_TIMEZONE", "Europe", "GST_NIGHTLY_TIMEZONE=Europe: expected the name of a time zone"),
        (Nightly, "GST_NIGHTLY_TIMEZONE", "../UTC", "GST_NIGHTLY_TIMEZONE=../UTC: expected the name of a time zone"),
        (Messages, "GST_WEBHOOK_URL", "ftp://host/s3cret", "GST_WEBHOOK_URL: expected an http or https address without user and password."),
        (Messages, "GST_SLACK_WEBHOOK_URL", "host/s3cret", "GST_SLACK_WEBHOOK_URL: expected an http or https address without user and password."),
        (Messages, "GST_WEBHOOK_URL", "https://me:s3cret@host/", "GST_WEBHOOK_URL: expected an http or https address without user and password."),
        (Messages, "GST_WEBHOOK_URL", "https://host:s3cret/", "GST_WEBHOOK_URL: expected an http or https address without user and password."),
        (Ui, "GST_UI_URL", "http://[::1/", "GST_UI_URL=http://[::1/: expected an http or https address."),
        (Reports, "GST_REPORTS_URL", "tmp/", "GST_REPORTS_URL=tmp/: expected an http or https address."),
        (Ui, "GST_UI_URL", "localhost:3000", "GST_UI_URL=localhost:3000: expected an http or https address."),
        (Revision, "GST_GIT_COMMIT", "main", "GST_GIT_COMMIT=main: expected a commit's hash, 7 to 64 digits 0-9 and a-f."),
        (Parent, "GST_PARENT_PIPE", "x", "GST_PARENT_PIPE=x: expected the number of a file descriptor."),
        (Services, "GST_REQUIRE_SERVICES", "maybe", "GST_REQUIRE_SERVICES=maybe: expected 1 or 0."),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named_with_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, text: str, says: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(EnvironmentVariableError) as raised:
        read(kind)
    message = str(raised.value)
    assert message.startswith(says) and message.endswith(" Correct the variable, or unset it."), message
    assert "s3cret" not in message


def test_a_variable_that_must_be_there() -> None:
    with pytest.raises(EnvironmentVariableError, match=r"^GST_STEP_RECORDS: is not set\."):
        read(StepFile)


def test_an_address_that_may_hold_a_secret_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GST_WEBHOOK_URL", "https://host/s3cret")
    messages = read(Messages)
    assert messages.webhook is not None and messages.webhook.get_secret_value() == "https://host/s3cret"
    assert "s3cret" not in repr(messages)


def test_every_executor_has_its_module() -> None:
    assert set(_EXECUTORS) == set(ExecutorName.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["automation", "materialize"])
def test_a_wrong_variable_stops_the_definitions_and_a_run_by_name(module: str) -> None:
    wrong = {"automation": "GST_NIGHTLY_TIMEZONE=Mars/Olympus", "materialize": "GST_UI_URL=nowhere"}[module]
    name, _, value = wrong.partition("=")
    command = (
        ["-m", "gst_assets.cli", "run", "smoke"] if module == "materialize" else ["-c", "import gst_assets.definitions"]
    )
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | {name: value, "PYTHONPATH": str(PROJECT_ROOT)},
        cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and f"{wrong}: expected " in done.stderr.splitlines()[-1]


# --- one place --------------------------------------------------------------------------------------------------------


def _named_in(*patterns: str) -> dict[str, set[Path]]:
    found: dict[str, set[Path]] = {}
    files = [path for pattern in patterns for path in PROJECT_ROOT.glob(pattern) if path.is_file()]
    for path in (path for path in files if "__pycache__" not in path.parts):  # numba keeps compiled code there too
        for name in re.findall(r"GST_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8")):
            found.setdefault(name, set()).add(path)
    return found


def _declared() -> set[str]:
    return {str(field.validation_alias) for one in (*ALL, StepFile) for field in one.model_fields.values()}


def test_no_other_module_reads_a_variable_from_the_environment() -> None:
    declared = {value for name, value in vars(environment).items() if name.endswith("_VARIABLE")}
    assert declared == _declared()
    for path in (PROJECT_ROOT / "gst_assets").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "environment.py":
            assert not re.search(r"""["']GST_[A-Z_]+["']""", text), path
            assert not re.search(
                r"(environ(\.get|\.pop)?|getenv)[\[(]\w*_VARIABLE", text.replace("del os.environ", "")
            ), path


def test_the_table_of_the_documentation_is_complete() -> None:
    text = (PROJECT_ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    section = text.partition("\n## Environment variables\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(GST_[A-Z_]+)` \|", section, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == _declared() | _OF_DAGSTER
    used = _named_in(
        "gst_assets/**/*",
        "deploy/**/*",
        "benchmarks/*.py",
        "scripts/*",
        "Makefile",
        ".ci/run",
        "*.toml",
        "*.example",
        "docs/*.md",
        "README.md",
    )
    assert used.keys() <= set(rows), used
