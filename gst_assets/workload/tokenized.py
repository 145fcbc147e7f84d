"""A workload as an engine is given it: the token ids of each request, as the scenario's model knows them.

Importable on a GPU host; transformers is imported when the tokenizer is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Scenario
from gst_assets.workload.prompts import iterate_prompts
from gst_assets.workload.spec import TURN_TYPES, LoadedWorkload, check_tokenizer
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class WorkloadRequest:
    """One request of a workload directory, tokenized. `arrival_time_ns` is since the workload's start; with `previous`,
    the number of the request whose last token it waits for, it arrives `think_time_ns` after that."""

    prompt_id: str
    prompt_token_ids: list[int]
    num_decode_tokens: int
    arrival_time_ns: int
    previous: int | None = None
    think_time_ns: int = 0


def requests_of(
    workload: LoadedWorkload,
    scenario: Scenario,
    *,
    tokenizer: Tokenizer | None = None,
    where: Path | str | None = None,
) -> list[WorkloadRequest]:
    """The requests of a workload in order, tokenized for the scenario's model. `tokenizer`: the scenario's, where it is
    loaded already. `where` is named in errors, unless the workload's directory says more.

    Raises:
        WorkloadError: another tokenizer or count than the workload's, a request that asks for no token or exceeds
            model.max_model_len, or a token id outside the vocabulary (names the request).
    """
    where = where or workload.directory
    tokenizer = tokenizer or load_tokenizer(scenario.model.tokenizer)
    check_tokenizer(tokenizer, workload.meta, workload.directory)
    ids = workload.token_ids or _encoded(workload, tokenizer)
    lengths, limit = workload.lengths, scenario.model.max_model_len
    columns = [
        lengths[name].tolist() for name in ("request_id", "prompt_id", "num_prefill_tokens", "num_decode_tokens")
    ]
    requests = []
    for request_id, prompt_id, num_prefill, num_decode, arrival_ns, (previous, think_ns) in zip(
        *columns, workload.intervals["arrival_time_ns"].tolist(), _turns(workload), strict=True
    ):
        at = f"{where}: request {request_id} (prompt {prompt_id!r})"
        tokens = ids[prompt_id]
        if len(tokens) != num_prefill:
            raise WorkloadError(
                f"{at}: has {len(tokens)} tokens under {tokenizer.reference}, but trace_lengths says {num_prefill}."
                " Materialize workload_spec again."
            )
        if num_prefill < 1 or num_decode < 1:
            raise WorkloadError(
                f"{at}: has {num_prefill} prompt tokens and asks for {num_decode}; an engine needs at least 1 of each."
            )
        if num_prefill + num_decode > limit:
            raise WorkloadError(
                f"{at}: {num_prefill} prompt and {num_decode} output tokens exceed model.max_model_len {limit}. "
                "Shorten the prompt, ask for fewer tokens, or raise the limit."
            )
        known = _fit_vocabulary(tokens, scenario, at)
        requests.append(WorkloadRequest(prompt_id, known, num_decode, arrival_ns, previous, think_ns))
    return requests


def _turns(workload: LoadedWorkload) -> list[tuple[int | None, int]]:
    """Which request each one waits for, and its think time after that."""
    if not workload.is_closed_loop:
        return [(None, 0)] * len(workload.intervals)
    previous, think_ns = (workload.intervals[name] for name in TURN_TYPES)
    return [
        (None if one is pd.NA else one, 0 if one is pd.NA else ns)
        for one, ns in zip(previous.tolist(), think_ns.tolist(), strict=True)
    ]


def prompts_of(workload: LoadedWorkload, scenario: Scenario) -> list[list[int]] | None:
    """The token ids of each request's prompt in order, where the scenario's engine has a prefix cache; None elsewhere:
    no time depends on them.

    Raises:
        WorkloadError: as `requests_of`.
    """
    if not scenario.engine.enable_prefix_caching:
        return None
    return [request.prompt_token_ids for request in requests_of(workload, scenario)]


def _encoded(workload: LoadedWorkload, tokenizer: Tokenizer) -> Mapping[str, list[int]]:
    """Token ids of each prompt that a request has."""
    used = set(workload.lengths["prompt_id"])
    prompts = [
        prompt
        for prompt in iterate_prompts(workload.directory / workload.meta.paths.prompts)
        if prompt.prompt_id in used
    ]
    encoded = tokenizer.encode([prompt.text for prompt in prompts])
    return {prompt.prompt_id: ids for prompt, ids in zip(prompts, encoded, strict=True)}


def _fit_vocabulary(tokens: list[int], scenario: Scenario, where: str) -> list[int]:
    """Token ids as the model knows them: unchanged, or modulo the vocabulary with `model.fold_token_ids`.

    Raises:
        WorkloadError: an id outside the vocabulary without folding; begins with `where`.
    """
    vocabulary = scenario.model.geometry.vocab_size
    if scenario.model.fold_token_ids:
        return [token % vocabulary for token in tokens]
    if max(tokens) >= vocabulary:
        raise WorkloadError(
            f"{where}: token id {max(tokens)} is outside the model's vocabulary of {vocabulary}. Use the model's own"
            " tokenizer, or set model.fold_token_ids=true."
        )
    return tokens
