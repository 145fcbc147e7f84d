"""How results look in the Dagster UI: column schemas, table previews, embedded figures, and the check every table asset
reports.

Only presentation; the values come from the domain packages.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from gst_assets.contracts.columns import columns_of
from gst_assets.contracts.store import Kind
from gst_assets.environment import Reports, read
from gst_assets.formats import markdown_table
from gst_assets.partitions import SCENARIOS
from gst_assets.resources import ScenarioResource
from gst_assets.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd

_PREVIEW_ROWS = 8
_FIGURE_LIMIT_BYTES = 400_000
CONTRACT_CHECK = "contract"


def run_tags(scenario: Scenario) -> dict[str, str]:
    """Tags of a run on that scenario, by which the UI's list of runs can be filtered. Its name is Dagster's own tag,
    dagster/partition."""
    return {
        "gst/model": scenario.model.name,
        "gst/hardware": scenario.hardware.hardware_id,
        "gst/engine": scenario.engine.backend,
    }


def load_tagged(context: dg.AssetExecutionContext, resource: ScenarioResource, name: str) -> Scenario:
    """The scenario `name` with the run's overrides; tags the run with `run_tags`, unless it is one over several
    scenarios."""
    scenario = resource.load(name)
    tags = run_tags(scenario)
    if context.has_partition_key and not tags.items() <= context.run.tags.items():
        context.instance.add_run_tags(context.run.run_id, tags)
    return scenario


def scenario_facts(scenario: Scenario) -> dict[str, dg.MetadataValue]:
    """What a report is about: shown with each report."""
    hardware = scenario.hardware
    device = f" ({hardware.device_name})" if hardware.device_name else ""
    facts = {
        "scenario": scenario.name,
        "about": scenario.description,
        "model": scenario.model.name,
        "hardware": f"{hardware.hardware_id}{device}",
        "engine": scenario.engine.backend,
        "overrides": "\n".join(scenario.overrides) or "none",
    }
    return {name: dg.MetadataValue.text(text) for name, text in facts.items()}


def report_link(kind: Kind, artifact_id: str, file: str) -> dg.UrlMetadataValue:
    """Where a browser finds a file of an artifact: the artifact root as `report_server`, or whoever serves it, shows
    it."""
    return dg.MetadataValue.url(f"{read(Reports).url.rstrip('/')}/{kind.value}/{artifact_id}/{file}")


def column_schema(file_name: str) -> dg.TableSchema:
    """The columns, types, constraints and descriptions of the contract's table of that name."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=column.dtype,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable, unique=column.unique),
            )
            for column in columns_of(file_name)
        ]
    )


def table_definition_metadata(file_name: str) -> dict[str, dg.TableSchema | str]:
    """Definition metadata of an asset stored as one table of the contract."""
    return {"dagster/column_schema": column_schema(file_name), "file": file_name}


def frame_markdown(frame: pd.DataFrame) -> dg.MarkdownMetadataValue:
    """A frame as a markdown table; callers format the cells, which are shown as they are written."""
    import pandas as pd

    rows = [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return dg.MetadataValue.md(markdown_table([str(name) for name in frame.columns], rows, tight=True))


def preview(frame: pd.DataFrame) -> dg.MarkdownMetadataValue:
    """The first rows of a table."""
    return frame_markdown(frame.head(_PREVIEW_ROWS))


def figure(path: Path) -> dg.MetadataValue:
    """A PNG embedded in metadata, or a link when it is too large for the event log."""
    data = path.read_bytes()
    if len(data) > _FIGURE_LIMIT_BYTES:
        return dg.MetadataValue.path(str(path))
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{base64.b64encode(data).decode()})")


def figures(directory: Path, shown: str) -> dict[str, dg.MetadataValue]:
    """The figure `shown` of a report embedded, and where the others are: every materialization stays in Dagster's event
    log for good."""
    embedded = {Path(shown).stem: figure(directory / shown)} if (directory / shown).is_file() else {}
    return embedded | {"more_figures": dg.MetadataValue.path(str(directory))}


def check_spec(name: str, asset: str, *, blocking: bool, description: str) -> dg.AssetCheckSpec:
    """The spec of a check that has a result for each scenario: one scenario that passes must not hide another that
    fails."""
    with warnings.catch_warnings():
        # Partitions of checks are in preview in Dagster 1.13; a reader of the log can do nothing about it.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, blocking=blocking, description=description, partitions_def=SCENARIOS
        )


def contract_check_specs(assets: Sequence[str]) -> list[dg.AssetCheckSpec]:
    """One blocking contract check for each of an op's assets."""
    description = "Columns, types and invariants of the artifact contract hold. Validated before the file is committed."
    return [check_spec(CONTRACT_CHECK, asset, blocking=True, description=description) for asset in assets]


def contract_passed(asset: str, **facts: int | str) -> dg.AssetCheckResult:
    """The contract check of an asset whose tables validated; `facts` say what was looked at."""
    return dg.AssetCheckResult(passed=True, check_name=CONTRACT_CHECK, asset_key=asset, metadata=dict(facts))


def contract_failed(asset: str, error: Exception) -> dg.AssetCheckResult:
    """The contract check of an asset whose tables broke the contract; the op fails right after, and nothing is
    committed."""
    import pandas as pd

    rows = getattr(error, "rows", ())
    return dg.AssetCheckResult(
        passed=False,
        check_name=CONTRACT_CHECK,
        asset_key=asset,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "violation": dg.MetadataValue.text(str(error)),
            **({"offending_rows": frame_markdown(pd.DataFrame(rows))} if rows else {}),
        },
    )
