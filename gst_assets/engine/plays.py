"""What is to be played: workloads with their scenarios, checked and tokenized before an engine starts.

How they are played belongs to `measuring`, the command line to `run`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gst_assets.contracts.documents import WorkloadMeta
from gst_assets.engine.protocol import EngineRequest
from gst_assets.engine.replay import PlannedRequest
from gst_assets.errors import EngineError, WorkloadError
from gst_assets.provenance import git_state
from gst_assets.scenario import CPU, Scenario
from gst_assets.workload import load
from gst_assets.workload.tokenized import WorkloadRequest, requests_of

_STEP_TOKENS = 256
"""vLLM chooses an expert kernel's blocks by the nearest number of tokens in a table: 256, 512, 1024, 1536, 2048 and so
on from the largest captured graph up (vllm/model_executor/layers/fused_moe/configs)."""


@dataclass(frozen=True)
class Play:
    """One workload to be played as its scenario says; its runs are named `<group_id>-r<k>`."""

    scenario: Scenario
    workload: Path
    group_id: str


def check_one_engine(scenarios: Sequence[Scenario]) -> None:
    """The scenarios differ in name and can all be served by one engine.

    Raises:
        EngineError
    """
    first = scenarios[0]
    for other in scenarios[1:]:
        for section in ("model", "hardware", "engine"):
            if other.digest(section) != first.digest(section):
                raise EngineError(
                    f"scenarios {first.name} and {other.name} differ in {section}, so one engine cannot serve both. Run"
                    " them apart."
                )
    names = [scenario.name for scenario in scenarios]
    if len(set(names)) < len(names):
        raise EngineError(f"scenarios {', '.join(names)}: name each scenario once.")


def check_output(group_ids: Sequence[str], out: Path) -> None:
    """Directories of these names can be created in `out`: found out before the engine starts, not after the first
    repeat.

    Raises:
        EngineError: a name that is no plain file name, or an `out` that cannot be written.
        EnvironmentVariableError: the code's revision, which every run records, cannot be determined.
    """
    git_state()
    for group_id in group_ids:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", group_id):
            raise EngineError(
                f"--group-id {group_id!r}: expected a plain name of letters, digits, dots, dashes and underscores."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise EngineError(
            f"--out {out}: no directory can be created there ({error.strerror}). Name a writable directory."
        ) from None


def check_scenario_of(meta: WorkloadMeta, play: Play) -> None:
    """The workload's schedule and output lengths are those of the scenario it is paired with (its prompts may come from
    another path)."""
    built, asked = meta.params.get("workload", {}), play.scenario.workload.model_dump(mode="json")
    for key in ("arrivals", "num_decode_tokens"):
        if built.get(key) != asked[key]:
            raise WorkloadError(
                f"{play.workload}: built with workload.{key} = {built.get(key)}, but scenario {play.scenario.name} asks"
                f" for {asked[key]}. Pair each --workload with its own --scenario."
            )


def read_play(play: Play) -> tuple[WorkloadMeta, list[WorkloadRequest]]:
    """A play's workload, checked and tokenized.

    Raises:
        WorkloadError, ArtifactError, ContractError: incomplete, altered, or does not fit its scenario.
    """
    workload = load(play.workload, contract=False)
    check_scenario_of(workload.meta, play)
    asked = play.scenario.workload.closed_loop_setting is not None
    if workload.is_closed_loop != asked:
        waits = "wait" if workload.is_closed_loop else "do not wait"
        raise WorkloadError(
            f"{play.workload}: its turns {waits} for the answers before them, but scenario {play.scenario.name} has"
            f" closed_loop={str(asked).lower()}. Pair each --workload with its own --scenario."
        )
    return workload.meta, requests_of(workload, play.scenario)


def planned_requests(requests: Sequence[WorkloadRequest], scenario: Scenario, repeat: int) -> list[PlannedRequest]:
    seed = scenario.engine.sampling.seed
    return [
        PlannedRequest(
            EngineRequest(f"r{repeat}-{index}", item.prompt_token_ids, item.num_decode_tokens, seed + index),
            item.arrival_time_ns,
            item.prompt_id,
            item.previous,
            item.think_time_ns,
        )
        for index, item in enumerate(requests)
    ]


def warm_up_requests(scenario: Scenario, requests: Sequence[WorkloadRequest]) -> list[EngineRequest]:
    """Prompts as long as the workload's, of random tokens: the workload's own would warm a prefix cache."""
    rng = np.random.Generator(np.random.PCG64(scenario.workload.seed))
    model, replay_settings = scenario.model, scenario.replay
    prompts = [requests[index % len(requests)].prompt_token_ids for index in range(replay_settings.warmup_requests)]
    return [
        EngineRequest(
            f"warm-{index}",
            rng.integers(0, model.geometry.vocab_size, len(prompt)).tolist(),
            min(replay_settings.warmup_decode_tokens, model.max_model_len - len(prompt)),
            scenario.engine.sampling.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]


def lone_warm_up_requests(scenario: Scenario) -> list[EngineRequest]:
    """Of a mixture of experts on a GPU an odd and an even prompt above each `_STEP_TOKENS` tokens that a step may have,
    to be sent one by one; of others none, and none where `replay.warmup_requests` is 0.

    Its expert kernel is compiled when a step first falls into a range of tokens, and, as Triton does, once more for
    numbers that are less divisible; `warm_up_requests`, sent together, fill most steps. Without these the launch of
    steps of 275, 711 and 795 tokens took 1.2 to 1.8 s in a first repeat (Qwen3-30B-A3B on an H200).
    """
    model, engine = scenario.model, scenario.engine
    is_gpu = scenario.hardware.hardware_id != CPU
    if model.geometry.num_experts is None or not is_gpu or not scenario.replay.warmup_requests:
        return []
    rng = np.random.Generator(np.random.PCG64(scenario.workload.seed + 1))
    most = min(engine.max_num_batched_tokens, model.max_model_len - 1)
    sizes = {more for size in range(_STEP_TOKENS, most, _STEP_TOKENS) for more in (size + 1, size + 2)}
    return [
        EngineRequest(
            f"warm-alone-{size}",
            rng.integers(0, model.geometry.vocab_size, size).tolist(),
            1,
            engine.sampling.seed + size,
        )
        for size in sorted({min(size, most) for size in sizes} | ({most - 1, most} if sizes else set()))
    ]
