"""Trace files as their publishers write them: headers, line ends, last line, repeated times and odd rows; the values
are invented.

Not a test module. Which file each stands for: docs/workloads.md.
"""

from __future__ import annotations

import json

_LENGTHS = [
    (374, 44),
    (396, 109),
    (879, 55),
    (91, 16),
    (91, 16),
    (381, 84),
    (1313, 142),
    (388, 84),
    (242, 14),
    (209, 152),
    (394, 124),
    (27, 59),
]
_SECONDS = [
    "00:00:00",
    "00:00:01.25",
    "00:00:01.2500010",
    "00:00:02",
    "00:00:02.5",
    "00:00:03",
    "00:00:03.9799600",
    "00:00:04.0319600",
    "00:00:05",
    "00:00:06",
    "00:00:07",
    "00:00:08",
]


def _azure_2023() -> bytes:
    """AzureLLMInferenceTrace_code.csv and _conv.csv: CRLF, seven decimals, and no end of the last line."""
    times = [f"2023-11-16 18:{15 + index}:46.{6805900 + index}" for index in range(len(_LENGTHS))]
    rows = [f"{time},{prefill},{decode}" for time, (prefill, decode) in zip(times, _LENGTHS, strict=True)]
    return "\r\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]).encode()


def _azure_2024() -> bytes:
    """AzureLLMInferenceTrace_code_1week.csv and _conv_1week.csv: a zone, and no fraction where it is zero."""
    rows = [f"2024-05-10 {time}+00:00,{a},{b}" for time, (a, b) in zip(_SECONDS, _LENGTHS, strict=True)]
    return "".join(f"{row}\n" for row in ["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]).encode()


def _burstgpt() -> bytes:
    """BurstGPT_1.csv: whole seconds, several requests in one, and failed requests with no output."""
    rows = [
        f"{5 + 7 * (index // 2)},{'GPT-4' if index % 3 else 'ChatGPT'},{a},{0 if index == 3 else b},{a + (0 if index == 3 else b)},"
        f"{'API log' if index % 4 else 'Conversation log'}"
        for index, (a, b) in enumerate(_LENGTHS)
    ]
    return "".join(
        f"{row}\n" for row in ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", *rows]
    ).encode()


def _burstgpt_sessions() -> bytes:
    """BurstGPT_3.csv: fractions of seconds, and columns of sessions of which many fields are empty."""
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    rows = [
        f"{index * 1.5},{'' if index % 2 else f's-{index}'},{'' if index % 2 else 0.75},ChatGPT,{a},{b},{a + b},Conversation log"
        for index, (a, b) in enumerate(_LENGTHS)
    ]
    return "".join(f"{row}\n" for row in [header, *rows]).encode()


def _mooncake() -> bytes:
    """conversation_trace.jsonl, toolagent_trace.jsonl, synthetic_trace.jsonl: milliseconds of which many are equal, and
    lines of any length."""
    rows = [
        {
            "timestamp": 3000 * (index // 4),
            "input_length": a,
            "output_length": b,
            "hash_ids": [0, *range(index * 20, index * 20 + a // 512)],
        }
        for index, (a, b) in enumerate(_LENGTHS)
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _conversations() -> list[dict[str, object]]:
    """ShareGPT_V3_unfiltered_cleaned_split.json: parts of longer talks, some begun by the answer, some empty, and every
    kind of character."""
    talks: list[list[tuple[str, str]]] = [
        [
            ("human", f"Question {index}: summarise this \u201cquoted\u201d text.\n\nThen list it."),
            ("gpt", f"1. First\n2. Second {index} \U0001f600"),
        ]
        for index in range(11)
    ]
    talks[2].append(("human", "And again?"))
    talks.insert(
        4, [("gpt", "An answer whose question stands in the part before."), ("human", "Go on"), ("gpt", "It goes on.")]
    )
    talks.insert(6, [])
    return [
        {"id": f"QWJhYvA_{index}", "conversations": [{"from": who, "value": text} for who, text in talk]}
        for index, talk in enumerate(talks)
    ]


def _vidur() -> bytes:
    """splitwise_conv.csv and splitwise_code.csv: seconds as Python prints them."""
    rows = [f"{index * 0.1 + 0.2 * index},{a},{b}" for index, (a, b) in enumerate(_LENGTHS)]
    return "".join(f"{row}\n" for row in ["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]).encode()


def _vidur_lengths() -> bytes:
    """arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv: lengths without times, with their sum and ratio
    as well."""
    rows = [f"{a},{b},{a + b},{a / b}" for a, b in _LENGTHS]
    return "".join(
        f"{row}\n" for row in ["num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio", *rows]
    ).encode()


PUBLISHED: dict[str, tuple[str, bytes]] = {
    "azure_2023": ("azure_2023", _azure_2023()),
    "azure_2024": ("azure_2024", _azure_2024()),
    "burstgpt": ("burstgpt", _burstgpt()),
    "burstgpt_sessions": ("burstgpt", _burstgpt_sessions()),
    "mooncake": ("mooncake", _mooncake()),
    "sharegpt": ("sharegpt", json.dumps(_conversations(), indent=2).encode()),
    "sharegpt_one_line": ("sharegpt", json.dumps(_conversations(), ensure_ascii=False).encode()),
    "vidur": ("vidur", _vidur()),
    "vidur_lengths": ("vidur", _vidur_lengths()),
}
"""Format and bytes, by a name of the file."""
WITHOUT_TIMES = {"sharegpt", "sharegpt_one_line", "vidur_lengths"}
