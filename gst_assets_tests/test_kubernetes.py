"""The Kubernetes example against schemas: Kubernetes' own OpenAPI schema, and Dagster's of its launcher and executor.
No cluster is involved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
from dagster_postgres.utils import pg_config

from gst_assets.definitions import defs
from gst_assets.environment import EXECUTOR_CONFIG_VARIABLE, EXECUTOR_VARIABLE
from gst_assets.executors import ENGINE_QUEUE, chosen_executor
from gst_assets.provenance import PROJECT_ROOT

EXAMPLE = PROJECT_ROOT / "deploy" / "kubernetes"
VERSION = "1.35"
IMAGE = "registry.example/gst-assets:1"


def check(document: dict[str, Any]) -> None:
    """Raise where a document breaks Kubernetes' schema; unknown keys included."""
    kubernetes_validate.validate(document, VERSION, strict=True)


def executor_config() -> dict[str, Any]:
    """executor.yaml after Dagster's own validation, defaults filled in."""
    config = yaml.safe_load((EXAMPLE / "executor.yaml").read_text())["execution"]["config"]
    result = process_config(k8s_job_executor.config_schema.config_type, config)
    assert result.success, result.errors
    return dict(result.value or {})


def steps() -> dict[str, dict[str, str]]:
    """Tags of every step of the graph, by step key."""
    job = defs.resolve_implicit_global_asset_job_def()
    return {node.name: dict(node.tags) for node in job.graph.nodes}


def job_of_step(step: str) -> dict[str, Any]:
    """The Kubernetes Job that Dagster's executor would make for a step, with the launcher's settings of gst.yaml."""
    config, settings = executor_config(), launcher()["config"]
    context = K8sContainerContext(
        service_account_name=settings["service_account_name"],
        env_config_maps=settings["env_config_maps"],
        env_secrets=settings["env_secrets"],
        namespace=settings["job_namespace"],
    )
    for layer in (config["step_k8s_config"], config["per_step_k8s_config"].get(step, {})):
        context = context.merge(K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(layer)))
    job_config = DagsterK8sJobConfig(
        job_image=IMAGE, dagster_home=settings["dagster_home"], instance_config_map=settings["instance_config_map"]
    )
    command, name = ["dagster", "api", "execute_step"], f"step-{step.replace('_', '-')}"
    job = construct_dagster_k8s_job(job_config, command, name, context.run_k8s_config)
    rendered: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    return rendered


def documents() -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((EXAMPLE / "gst.yaml").read_text()) if document]


def dagster_yaml() -> dict[str, Any]:
    (config,) = (document for document in documents() if document["metadata"]["name"] == "gst-dagster")
    loaded: dict[str, Any] = yaml.safe_load(config["data"]["dagster.yaml"])
    return loaded


def launcher() -> dict[str, Any]:
    run_launcher: dict[str, Any] = dagster_yaml()["run_launcher"]
    return run_launcher


@pytest.mark.parametrize(
    "document", documents(), ids=lambda document: f"{document['kind']}/{document['metadata']['name']}"
)
def test_every_manifest_is_valid(document: dict[str, Any]) -> None:
    check(document)


def test_the_schema_notices_a_misspelt_key() -> None:
    broken = next(document for document in documents() if document["kind"] == "Deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
        check(broken)


def test_names_that_manifests_use_exist() -> None:
    named = {(document["kind"], document["metadata"]["name"]) for document in documents()}
    for document in documents():
        if document["kind"] != "Deployment":
            continue
        pod = document["spec"]["template"]["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in named
        assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]
        for volume in pod["volumes"]:
            assert ("ConfigMap", volume["configMap"]["name"]) in named
        for container in pod["containers"]:
            maps = {source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source}
            assert maps and all(("ConfigMap", name) in named for name in maps)
    environment = next(document for document in documents() if document["metadata"]["name"] == "gst-environment")[
        "data"
    ]
    file = Path(environment[EXECUTOR_CONFIG_VARIABLE])
    assert (PROJECT_ROOT / file.relative_to("/app")).is_file() and environment[EXECUTOR_VARIABLE] == "k8s"


def test_the_instance_is_what_dagster_accepts() -> None:
    config = dagster_yaml()
    assert (config["run_launcher"]["module"], config["run_launcher"]["class"]) == (
        "dagster_k8s",
        K8sRunLauncher.__name__,
    )
    result = process_config(K8sRunLauncher.config_type(), config["run_launcher"]["config"])
    assert result.success, result.errors
    result = process_config(
        pg_config(), {"postgres_url": "postgresql+psycopg2://x"} if config["storage"]["postgres"] else {}
    )
    assert result.success, result.errors
    # Everything but the launcher is what the tests with a real PostgreSQL run on.
    plain = yaml.safe_load((PROJECT_ROOT / "deploy" / "dagster.yaml").read_text())
    assert {key: value for key, value in config.items() if key != "run_launcher"} == plain


def test_engine_steps_and_no_others_ask_for_a_gpu() -> None:
    on_gpu = {step for step, tags in steps().items() if ENGINE_QUEUE.items() <= tags.items()}
    assert on_gpu == set(executor_config()["per_step_k8s_config"]) == {"measurements", "capacity"}
    for step in steps():
        job = job_of_step(step)
        check(job)
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu")
        selects_gpu = any(label.startswith("nvidia.com/gpu") for label in pod["nodeSelector"])
        assert (gpus == "1") == selects_gpu == (step in on_gpu), step
        assert (container["image"] == IMAGE) == (step not in on_gpu)
        assert {source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source} == {
            "gst-environment"
        }


def test_the_executor_loads_with_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "k8s")
    monkeypatch.setenv(EXECUTOR_CONFIG_VARIABLE, str(EXAMPLE / "executor.yaml"))
    executor = chosen_executor()
    assert isinstance(executor, dg.ExecutorDefinition) and executor.name == "k8s"
