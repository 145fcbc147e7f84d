"""Token lengths of each request: what its prompt counts, and how many tokens are asked of it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from gst_assets.errors import WorkloadError
from gst_assets.scenario import Scenario
from gst_assets.workload.prompts import Prompt, prompts_of_requests
from gst_assets.workload.tokenizer import Tokenizer


def build_trace_lengths(scenario: Scenario, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> pd.DataFrame:
    """The trace_lengths table (`contracts.tables.TraceLengths`) of a scenario's requests.

    Raises:
        WorkloadError: a prompt without tokens, or one that leaves no room for the requested tokens within model.max_model_len
            (names the prompt and both lengths; nothing is cut).
    """
    counts = dict(
        zip((prompt.prompt_id for prompt in prompts), tokenizer.count([prompt.text for prompt in prompts]), strict=True)
    )
    decode, limit = scenario.workload.num_decode_tokens, scenario.model.max_model_len
    for prompt_id, count in counts.items():
        if count == 0:
            raise WorkloadError(
                f"{scenario.workload.prompts}: prompt {prompt_id!r} has no tokens under {tokenizer.reference}. Remove or extend it."
            )
        if count + decode > limit:
            raise WorkloadError(
                f"{scenario.workload.prompts}: prompt {prompt_id!r} has {count} tokens; with workload.num_decode_tokens {decode} that is "
                f"{count + decode}, beyond model.max_model_len {limit}. Shorten the prompt, ask for fewer tokens, or raise the limit."
            )
    requests = prompts_of_requests(prompts, scenario.workload.num_requests)
    frame = pd.DataFrame(
        {
            "request_id": range(len(requests)),
            "prompt_id": pd.Series([prompt.prompt_id for prompt in requests], dtype="str"),
            "num_prefill_tokens": [counts[prompt.prompt_id] for prompt in requests],
            "num_decode_tokens": decode,
        }
    )
    return frame.astype({"request_id": "Int64", "num_prefill_tokens": "Int64", "num_decode_tokens": "Int64"})
