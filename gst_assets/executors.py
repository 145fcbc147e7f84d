"""Which executor runs the steps of a run, by environment; how steps are distributed belongs to the executor's own
configuration file.

`GST_EXECUTOR` names it, `GST_EXECUTOR_CONFIG` a YAML file with its settings under `execution: config:` (the form that
`dagster-celery worker start -y` reads as well). Without them every run stays in its own process.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import dagster as dg
import yaml

from gst_assets.environment import EXECUTOR_CONFIG_VARIABLE, EXECUTOR_VARIABLE, Execution, ExecutorName, read

ENGINE_QUEUE = {"dagster-celery/queue": "engine"}
"""Tags of steps that may need the engine's machine: only workers that listen on this queue take them. Other executors
ignore the tag."""

_SPREAD: tuple[ExecutorName, ...] = ("celery", "k8s")

_EXECUTORS: dict[ExecutorName, tuple[str, str]] = {
    "in_process": ("dagster", "in_process_executor"),
    "multiprocess": ("dagster", "multiprocess_executor"),
    "celery": ("dagster_celery", "celery_executor"),
    "k8s": ("dagster_k8s", "k8s_job_executor"),
}


def is_spread() -> bool:
    """Whether the steps of a run may be on several machines.

    Raises:
        EnvironmentVariableError: the environment names an unknown executor.
    """
    return read(Execution).executor in _SPREAD


def chosen_executor() -> dg.ExecutorDefinition:
    """The executor that the environment names; `in_process` by default.

    Raises:
        EnvironmentVariableError: unknown.
        dagster.DagsterInvalidDefinitionError: not installed, or its configuration file cannot be read.
    """
    asked = read(Execution)
    name = asked.executor
    module, attribute = _EXECUTORS[name]
    try:
        executor: dg.ExecutorDefinition = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise dg.DagsterInvalidDefinitionError(
            f"{EXECUTOR_VARIABLE}={name}: {error}. Install it: pip install 'gst-assets[distributed]'."
        ) from error
    return executor.configured(_read(asked.config), name=name) if asked.config else executor


def _read(file: Path) -> dict[str, object]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))["execution"]["config"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise dg.DagsterInvalidDefinitionError(
            f"{EXECUTOR_CONFIG_VARIABLE}={file}: expected a YAML file with execution: config: ({type(error).__name__}:"
            f" {error})."
        ) from error
    if not isinstance(config, dict):
        raise dg.DagsterInvalidDefinitionError(
            f"{EXECUTOR_CONFIG_VARIABLE}={file}: execution: config: expected a mapping."
        )
    return config
