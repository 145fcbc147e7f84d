"""One run over many partitions, for ops that measure nothing (`BackfillPolicy.single_run()`).

Dagster gives what an op returns one data version, and its checks no partition, for all partitions of such a run. Here
each scenario gets its own: materialization, data version and checks are logged as events of its partition. An op whose
steps are waited for by others in the same run must not do so: to Dagster it returned nothing. A run of one partition
goes the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dagster as dg

from gst_assets.errors import GstError, ScenariosFailedError

Result = dg.AssetCheckResult | dg.MaterializeResult
_DATA_VERSION_TAG = "dagster/data_version"
_CODE_VERSION_TAG = "dagster/code_version"


def for_each_scenario(context: dg.AssetExecutionContext, make: Callable[[str], Iterator[Result]]) -> Iterator[Result]:
    """What `make` gives for each partition of the run. A scenario that fails does not stop those after it.

    Raises:
        ScenariosFailedError: at the end of a run over many, if some failed; names each with its reason.
    """
    if context.has_partition_key:
        yield from make(context.partition_key)
        return
    failed: list[str] = []
    for name in context.partition_keys:
        try:
            for result in make(name):
                context.log_event(_event(context, name, result))
        except GstError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise ScenariosFailedError(
            f"{len(failed)} of {len(context.partition_keys)} scenarios failed. {' '.join(failed)}"
        )


def _event(
    context: dg.AssetExecutionContext, partition: str, result: Result
) -> dg.AssetMaterialization | dg.AssetCheckEvaluation:
    assert result.asset_key is not None  # every result of an op with several assets names its own
    if isinstance(result, dg.MaterializeResult):
        assert result.data_version is not None
        tags = {_DATA_VERSION_TAG: result.data_version.value}
        code_version = context.assets_def.specs_by_key[result.asset_key].code_version
        if code_version is not None:
            tags[_CODE_VERSION_TAG] = code_version
        return dg.AssetMaterialization(result.asset_key, metadata=result.metadata, partition=partition, tags=tags)
    assert result.check_name is not None
    return dg.AssetCheckEvaluation(
        asset_key=result.asset_key,
        check_name=result.check_name,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        partition=partition,
    )
