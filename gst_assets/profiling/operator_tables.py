"""The operator tables of a bundle: which batches are timed, and how their times become `mlp.csv`, `attention.csv`,
`unmodelled.csv`, of an engine on several devices `all_reduce.csv` and of a mixture of experts `experts.csv`.

Timing one batch belongs to `worker_ops`, reading between the points to `step_costs`. What the columns contain:

- `time_stats.<operator>.median`: milliseconds per layer; the median over repeats of a walk through all layers, divided
  by their number.
- `mlp.csv` rows are one prompt of `num_tokens` without context. `time_stats.add` is 0: vLLM fuses the residual add into
  the norms.
- A mixture of experts has no MLP: the columns of `mlp_up_proj`, `mlp_act` and `mlp_down_proj` are empty, and
  `experts.csv` has a row for each number of tokens and way of giving them to experts.
- `attn_prefill` and `attn_decode` are the attention module's call without its KV-cache write, which is
  `attn_kv_cache_save`. Vidur 0.0.26 leaves `attn_kv_cache_save` out of its sum, so it is counted once at most, and in
  `overheads.csv` it is part of the device's time.
- `unmodelled.csv` has what Vidur has no column for, in milliseconds per step: `embedding` and `final_norm` by tokens,
  `lm_head` and `sampling` (greedy) by sequences. On several devices `embedding` and `lm_head` hold their collectives.
- On several devices every rank times its share at once. Of a repeat an operator takes what it takes on the slowest
  rank; the all-reduce, in which ranks wait for each other, what it takes on the fastest: that one came last, and what
  the others waited is in its operators before.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import pandas as pd

from gst_assets.errors import ProfileError
from gst_assets.profiling.partial import PartialProfile
from gst_assets.profiling.worker_experts import ROUTER, ROUTINGS
from gst_assets.profiling.worker_ops import ALL_REDUCE, MODEL_OPERATORS, experts_operator, layer_operators
from gst_assets.provenance import sha256_bytes
from gst_assets.scenario import Scenario
from gst_assets.step_costs.shapes import VIDUR_BYTES_PER_VALUE

_BLOCK = 16
"""Batches of one call into the worker, which answers nothing else meanwhile."""

Batch = tuple[tuple[int, int], ...]
OnShare = Callable[[str, float], None]
"""Called with what is being measured and the share of it that is done."""


class Worker(Protocol):
    """What is needed of a running engine here: calls into its worker process."""

    def collective_rpc(self, method: str, *arguments: Any) -> Awaitable[list[Any]]:
        """Call `method` of the worker extension on every worker; returns one result each."""


def prefill_batch(context: int, chunk: int) -> Batch:
    """One sequence with `context` cached tokens and `chunk` new ones."""
    return ((context, chunk),)


def decode_batch(batch_size: int, context: int) -> Batch:
    """`batch_size` sequences with `context` cached tokens each, one new token each."""
    return ((context, 1),) * batch_size


def grid(scenario: Scenario) -> list[Batch]:
    """Every batch the scenario's profile needs, each once."""
    return list(_wanted(scenario))


def _wanted(scenario: Scenario) -> dict[Batch, tuple[str, ...]]:
    """The operators whose time is needed of each batch."""
    profile = scenario.profile
    attention, per_sequence = ("attn", "attn_kv_cache_save"), ("lm_head", "sampling")
    shared = (ALL_REDUCE,) if scenario.engine.tensor_parallel_size > 1 else ()
    all_operators = (*layer_operators(_has_experts(scenario)), *MODEL_OPERATORS, *shared)
    found: dict[Batch, tuple[str, ...]] = {prefill_batch(0, tokens): all_operators for tokens in profile.num_tokens}
    for context in profile.prefill_context_sizes:
        for chunk in profile.prefill_chunk_sizes:
            found.setdefault(prefill_batch(context, chunk), attention)
    for batch in profile.decode_batch_sizes:
        for context in profile.decode_context_sizes:
            more = per_sequence if context == profile.decode_context_sizes[0] else ()
            found.setdefault(decode_batch(batch, context), (*attention, *more))
    return found


def _has_experts(scenario: Scenario) -> bool:
    return scenario.model.geometry.num_experts is not None


async def measure_operators(
    engine: Worker, scenario: Scenario, progress: OnShare, partial: PartialProfile | None = None
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Time the scenario's grid on a running engine; returns the tables by file name, and facts of the worker. Blocks
    that `partial` has are not timed again, and those that are timed are stored there.

    Raises:
        ProfileError: the engine runs another model than the scenario describes, or on another number of devices.
    """
    facts = await _facts(engine, scenario)
    # On a GPU the repeats of a point are replays of one captured graph, and capturing is what costs.
    at_once = scenario.profile.operator_repeats if facts["device_type"] == "cuda" else 1
    samples = await time_batches(
        engine, _wanted(scenario), scenario.profile.operator_repeats, progress, at_once=at_once, partial=partial
    )
    layers = facts["num_layers"]
    medians = {
        batch: {
            name: median(walk[name] for walk in walks) / 1e6 / (1 if name in (*MODEL_OPERATORS, ALL_REDUCE) else layers)
            for name in walks[0]
        }
        for batch, walks in samples.items()
    }
    tables = {
        "mlp.csv": _mlp_table(scenario, facts, medians),
        "attention.csv": _attention_table(scenario, facts, medians),
        "unmodelled.csv": _unmodelled_table(scenario, medians),
    }
    if facts["tensor_parallel_size"] > 1:
        tables["all_reduce.csv"] = _all_reduce_table(scenario, facts, medians)
    if _has_experts(scenario):
        tables["experts.csv"] = await _experts_table(engine, scenario, facts, medians)
    return tables, facts


async def time_batches(
    engine: Worker,
    wanted: Mapping[Batch, Sequence[str]],
    repeats: int,
    progress: OnShare,
    *,
    at_once: int = 1,
    partial: PartialProfile | None = None,
) -> dict[Batch, list[dict[str, int]]]:
    """Nanoseconds by operator for each batch and repeat; `wanted` are the operators needed of each (see
    `OperatorTimer.gst_time_batches`).

    Goes through all batches once per `at_once` repeats: the repeats of a point then lie as far apart as the measurement
    is long, so that a machine that is slow for some seconds does not decide single points. `repeats` must be a multiple
    of `at_once`.
    """
    samples: dict[Batch, list[dict[str, int]]] = {batch: [] for batch in wanted}
    blocks = list(_blocks(wanted))
    sweeps = repeats // at_once
    kept = partial.operator_blocks() if partial is not None else {}
    # Names and batches too, so that what another version of this program timed is not taken over.
    keys = [f"block {number} {sha256_bytes(json.dumps(block).encode())[:16]}" for number, block in enumerate(blocks)]
    num_kept = sum(f"sweep {sweep} {key}" in kept for sweep in range(sweeps) for key in keys)
    progress("operators", num_kept / (sweeps * len(blocks)))
    warm: set[int] = set()
    for sweep in range(sweeps):
        for number, (names, block) in enumerate(blocks):
            key = f"sweep {sweep} {keys[number]}"
            walks = kept.get(key)
            if walks is None:
                plain = [[list(pair) for pair in batch] for batch in block]
                # The first pass through a shape prepares kernels and memory for it.
                by_rank = await engine.collective_rpc(
                    "gst_time_batches", plain, 0 if number in warm else 1, at_once, list(names)
                )
                walks = over_ranks(by_rank)
                warm.add(number)
                if partial is not None:
                    partial.keep_operator_block(key, walks)
                progress("operators", (sweep + (number + 1) / len(blocks)) / sweeps)
            for batch, times in zip(block, walks, strict=True):
                samples[batch] += times
    return samples


def over_ranks(by_rank: Sequence[list[list[dict[str, int]]]]) -> list[list[dict[str, int]]]:
    """What the ranks took together (see the module's docstring): for each batch and repeat the nanoseconds by operator,
    as each rank returned them."""
    return [
        [
            {
                name: (min if name == ALL_REDUCE else max)(times[name] for times in repeat_of_ranks)
                for name in repeat_of_ranks[0]
            }
            for repeat_of_ranks in zip(*batch_of_ranks, strict=True)
        ]
        for batch_of_ranks in zip(*by_rank, strict=True)
    ]


def _blocks(wanted: Mapping[Batch, Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Batch]]]:
    """Batches of which the same operators are wanted, at most `_BLOCK` together, in order."""
    for names, group in itertools.groupby(wanted, key=lambda batch: wanted[batch]):
        batches = list(group)
        for start in range(0, len(batches), _BLOCK):
            yield names, batches[start : start + _BLOCK]


async def _facts(engine: Worker, scenario: Scenario) -> dict[str, Any]:
    workers = await engine.collective_rpc("gst_operator_facts")
    facts: dict[str, Any] = workers[0]
    differing = [name for worker in workers for name, value in worker.items() if value != facts[name]]
    if differing:
        raise ProfileError(f"the engine's workers differ in {differing[0]}. Profile on devices that are alike.")
    degree = scenario.engine.tensor_parallel_size
    if len(workers) != degree or facts["tensor_parallel_size"] != degree:
        raise ProfileError(
            f"engine.tensor_parallel_size is {degree} in scenario {scenario.name}, but the engine runs {len(workers)}"
            f" workers at degree {facts['tensor_parallel_size']}. Profile an engine whose workers all share each layer."
        )
    # What a layer's shape does not show is left to the engine's own reading of the same configuration.
    unseen = ("max_position_embeddings", "tie_word_embeddings", "attention_bias", "mlp_bias")
    for name, wanted in scenario.model.geometry:
        if name in unseen:
            continue
        # A worker reports experts only where it has them.
        found = facts.get(name, wanted if name == "norm_topk_prob" else None)
        if found != wanted:
            raise ProfileError(
                f"model.geometry.{name} is {wanted} in scenario {scenario.name}, but the engine runs {found}. "
                "Correct the scenario or its checkpoint."
            )
    return facts


def _mlp_table(scenario: Scenario, facts: dict[str, Any], medians: dict[Batch, dict[str, float]]) -> pd.DataFrame:
    rows = []
    for tokens in scenario.profile.num_tokens:
        times = medians[prefill_batch(0, tokens)]
        rows.append(
            {
                **{_column(name): times.get(name, float("nan")) for name in _MLP_COLUMNS},
                _column("add"): 0.0,
                "n_head": facts["num_q_heads"],
                "n_kv_head": facts["num_kv_heads"],
                "n_embd": facts["hidden_size"],
                "n_expanded_embd": facts["mlp_hidden_size"],
                "vocab_size": facts["vocab_size"],
                "use_gated_mlp": True,
                "num_tokens": tokens,
                "num_tensor_parallel_workers": facts["tensor_parallel_size"],
            }
        )
    return _typed(rows)


def _attention_table(scenario: Scenario, facts: dict[str, Any], medians: dict[Batch, dict[str, float]]) -> pd.DataFrame:
    profile = scenario.profile
    points: list[tuple[bool, int, int, int]] = [
        (True, 1, chunk, context) for context in profile.prefill_context_sizes for chunk in profile.prefill_chunk_sizes
    ]
    points += [
        (False, batch, 0, context) for batch in profile.decode_batch_sizes for context in profile.decode_context_sizes
    ]
    rows = []
    for is_prefill, batch, chunk, context in points:
        times = medians[prefill_batch(context, chunk) if is_prefill else decode_batch(batch, context)]
        rows.append(
            {
                "n_embd": facts["hidden_size"],
                "n_q_head": facts["num_q_heads"],
                "n_kv_head": facts["num_kv_heads"],
                "head_dim": facts["head_dim"],
                "block_size": facts["block_size"],
                "num_tensor_parallel_workers": facts["tensor_parallel_size"],
                "max_model_len": facts["max_model_len"],
                "attention_backend": facts["attention_backend"],
                "is_prefill": is_prefill,
                "batch_size": batch,
                "prefill_chunk_size": chunk,
                "kv_cache_size": context,
                _column("attn_prefill"): times["attn"] if is_prefill else float("nan"),
                _column("attn_decode"): float("nan") if is_prefill else times["attn"],
                _column("attn_kv_cache_save"): times["attn_kv_cache_save"],
            }
        )
    return _typed(rows)


def _all_reduce_table(
    scenario: Scenario, facts: dict[str, Any], medians: dict[Batch, dict[str, float]]
) -> pd.DataFrame:
    rows = []
    for tokens in scenario.profile.num_tokens:
        values = tokens * facts["hidden_size"]
        rows.append(
            {
                _column(ALL_REDUCE): medians[prefill_batch(0, tokens)][ALL_REDUCE],
                "num_tokens": tokens,
                "message_bytes": values * facts["bytes_per_value"],
                "size": values * VIDUR_BYTES_PER_VALUE,
                "num_workers": facts["tensor_parallel_size"],
                "devices_per_node": facts["tensor_parallel_size"],
                "collective": ALL_REDUCE,
            }
        )
    return _typed(rows)


def _unmodelled_table(scenario: Scenario, medians: dict[Batch, dict[str, float]]) -> pd.DataFrame:
    profile = scenario.profile
    rows = [
        {"operator": name, "num_rows": tokens, "median_ms": medians[prefill_batch(0, tokens)][name]}
        for name in ("embedding", "final_norm")
        for tokens in profile.num_tokens
    ]
    context = profile.decode_context_sizes[0]
    rows += [
        {"operator": name, "num_rows": batch, "median_ms": medians[decode_batch(batch, context)][name]}
        for name in ("lm_head", "sampling")
        for batch in profile.decode_batch_sizes
    ]
    return _typed(rows)


async def _experts_table(
    engine: Worker, scenario: Scenario, facts: dict[str, Any], medians: dict[Batch, dict[str, float]]
) -> pd.DataFrame:
    batches = [prefill_batch(0, tokens) for tokens in scenario.profile.num_tokens]
    plain = [[list(pair) for pair in batch] for batch in batches]
    distinct = (await engine.collective_rpc("gst_distinct_experts", plain))[0]
    rows = []
    for batch, counts in zip(batches, distinct, strict=True):
        times = medians[batch]
        for routing in ROUTINGS:
            rows.append(
                {
                    "num_tokens": batch[0][1],
                    "routing": routing,
                    # The gate does not depend on what is then chosen.
                    _column("moe_router"): times["moe_router"] if routing == ROUTER else float("nan"),
                    _column("moe_experts"): times[experts_operator(routing)],
                    "distinct_experts": counts[routing],
                    "n_expert": facts["num_experts"],
                    "n_expert_per_token": facts["num_experts_per_token"],
                    "n_embd": facts["hidden_size"],
                    "n_expanded_embd": facts["mlp_hidden_size"],
                    "num_tensor_parallel_workers": facts["tensor_parallel_size"],
                }
            )
    return _typed(rows)


_MLP_COLUMNS = tuple(name for name in layer_operators(has_experts=False) if name not in ("attn", "attn_kv_cache_save"))


def _column(operator: str) -> str:
    return f"time_stats.{operator}.median"


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    integers = [name for name in frame.columns if frame[name].dtype == "int64"]
    return frame.astype(dict.fromkeys(integers, "Int64"))
