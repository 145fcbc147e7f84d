"""The requests of a scenario whose lengths come from a trace or from a distribution: which ones, how long, and at what
time of the trace.

Requests of a prompts file need no plan (see `lengths`). Everything that a plan leaves out or changes, the scenario
asked for, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gst_assets.contracts.documents import WorkloadSource
from gst_assets.errors import WorkloadError
from gst_assets.provenance import sha256_file
from gst_assets.scenario import (
    Scenario,
    SessionSource,
    SyntheticSource,
    TraceArrivals,
    TraceSource,
    TurnTimes,
    resolve_path,
)
from gst_assets.workload.arrivals import TraceTimes
from gst_assets.workload.generated_prompts import (
    PromptLengths,
    prompt_of_each,
    prompt_of_each_length,
    prompts_of_blocks,
    write_generated_prompts,
)
from gst_assets.workload.prompts import Prompt, write_prompts
from gst_assets.workload.sessions import draw_turn_times, draw_turns, previous_turns
from gst_assets.workload.synthetic import DECODE_STREAM, PREFILL_STREAM, SAMPLE_STREAM, draw_lengths, stream
from gst_assets.workload.tokenizer import Tokenizer
from gst_assets.workload.traces import BLOCK_BYTES, HASH_BLOCK_TOKENS, HashIds, Trace, TraceRows, open_trace


@dataclass(frozen=True)
class RequestPlan:
    """Requests before their prompts are written. Arrays are int64 of shape (num_requests,).

    `texts`: the prompt of each request, where the trace has texts, and `prompt_ids`, where they have names of their
    own; else they are generated, as `words` says where there are any. `time_ns`: the source's times from the first
    request on, where the arrivals are the source's. `previous`: with a closed loop inside sessions which request each
    one waits for, -1 for none.
    """

    prefill: np.ndarray
    decode: np.ndarray
    time_ns: np.ndarray | None
    texts: list[str] | None
    share_prompts: bool
    source: WorkloadSource
    words: PromptLengths | None = None
    prompt_ids: list[str] | None = None
    previous: np.ndarray | None = None

    def write_prompts(self, path: Path, tokenizer: Tokenizer, seed: int, *, workers: int = 1) -> pd.DataFrame:
        """Write prompts.jsonl; returns the requests as a `contracts.tables.TraceLengths` table, with the column
        `trace_time_ns` (since the first request) where the source has times.

        Raises:
            WorkloadError: as `write_generated_prompts`.
        """
        if self.texts is not None:
            ids = np.array(self.prompt_ids or [f"r{index}" for index in range(len(self.texts))], dtype=object)
            write_prompts((Prompt(prompt_id, text) for prompt_id, text in zip(ids, self.texts, strict=True)), path)
        else:
            share: Callable[[np.ndarray], tuple[PromptLengths, np.ndarray]] = (
                prompt_of_each_length if self.share_prompts else prompt_of_each
            )
            asked, index = share(self.prefill) if self.words is None else (self.words, np.arange(len(self.prefill)))
            write_generated_prompts(asked, path, tokenizer, seed, workers=workers)
            ids = np.array(asked.prompt_ids, dtype=object)[index]
        columns: dict[str, Any] = {
            "request_id": pd.array(np.arange(len(ids)), dtype="Int64"),
            "prompt_id": pd.Series(ids, dtype="str"),
            "num_prefill_tokens": pd.array(self.prefill, dtype="Int64"),
            "num_decode_tokens": pd.array(self.decode, dtype="Int64"),
        }
        if self.time_ns is not None:
            columns["trace_time_ns"] = pd.array(self.time_ns, dtype="Int64")
        return pd.DataFrame(columns)


def plan_requests(scenario: Scenario, tokenizer: Tokenizer, *, block_bytes: int = BLOCK_BYTES) -> RequestPlan:
    """The requests that `workload.trace`, `workload.synthetic` or `workload.sessions` asks for. The plan does not
    depend on `block_bytes`.

    Raises:
        WorkloadError: a trace that cannot be read, has no stated licence, or holds less than was asked for; a request
            without tokens, or longer than allowed, where the scenario does not say what to do with it (names file and
            line).
    """
    workload = scenario.workload
    if workload.sessions is not None:
        return _sessions(scenario, workload.sessions)
    share = workload.trace or workload.synthetic
    assert share is not None, "requests of a prompts file need no plan"
    if share.share_prompts and scenario.engine.enable_prefix_caching:
        raise WorkloadError(
            "share_prompts=true with engine.enable_prefix_caching=true: requests of equal length would be served from"
            " the cache, which the trace's requests were not. Set one of them to false."
        )
    if workload.synthetic is not None:
        return _synthetic(scenario, workload.synthetic)
    assert workload.trace is not None
    return _Selection(scenario, workload.trace, tokenizer).plan(block_bytes)


def trace_times(requests: pd.DataFrame, source: WorkloadSource) -> TraceTimes | None:
    """The trace's times of planned requests, or None where their source has none."""
    if "trace_time_ns" not in requests.columns:
        return None
    assert source.num_selected is not None and source.span_ns is not None
    return TraceTimes(requests["trace_time_ns"].to_numpy(dtype="int64"), source.num_selected, source.span_ns)


def _synthetic(scenario: Scenario, synthetic: SyntheticSource) -> RequestPlan:
    count, seed = scenario.workload.num_requests, scenario.workload.seed
    assert count is not None
    prefill, prefill_redrawn = draw_lengths(
        synthetic.prefill_tokens, count, seed, PREFILL_STREAM, "workload.synthetic.prefill_tokens"
    )
    decode, decode_redrawn = draw_lengths(
        synthetic.decode_tokens, count, seed, DECODE_STREAM, "workload.synthetic.decode_tokens"
    )
    long = prefill + decode > scenario.model.max_model_len
    if long.any():
        at = int(long.argmax())
        raise WorkloadError(
            f"workload.synthetic: request {at} has {prefill[at]} prompt and {decode[at]} output tokens, beyond"
            f" model.max_model_len {scenario.model.max_model_len} ({int(long.sum())} of {count} requests are). Lower"
            " the max_tokens of the lengths, or raise the limit."
        )
    source = WorkloadSource(
        kind="synthetic", prefill_lengths_redrawn=prefill_redrawn, decode_lengths_redrawn=decode_redrawn
    )
    return RequestPlan(prefill, decode, None, None, synthetic.share_prompts, source)


def _sessions(scenario: Scenario, settings: SessionSource) -> RequestPlan:
    workload, limit = scenario.workload, scenario.model.max_model_len
    turns = draw_turns(settings, workload.seed)
    count = len(turns.time_ns) if workload.num_requests is None else workload.num_requests
    if count > len(turns.time_ns):
        raise WorkloadError(
            f"workload.sessions: {settings.num_sessions} sessions have {len(turns.time_ns)} turns, but"
            f" workload.num_requests asks for {count}. Raise num_sessions, or lower num_requests."
        )
    total = turns.prefill + turns.decode
    long = total[:count] > limit
    if long.any():
        at = int(long.argmax())
        raise WorkloadError(
            f"workload.sessions: prompt {turns.prompts.prompt_ids[at]!r} and its answer have {total[at]} tokens, beyond"
            f" model.max_model_len {limit} ({int(long.sum())} of {count} turns are). Lower max_turns or the lengths, or"
            " raise the limit."
        )
    source = WorkloadSource(
        kind="sessions",
        num_sessions=settings.num_sessions,
        num_selected=len(turns.time_ns),
        span_ns=int(turns.time_ns[-1]),
    )
    return RequestPlan(
        turns.prefill[:count],
        turns.decode[:count],
        turns.time_ns[:count],
        None,
        False,
        source,
        turns.prompts.first(count),
        previous=previous_turns(turns.session[:count]) if settings.closed_loop else None,
    )


@dataclass(frozen=True)
class _Kept:
    """Rows, or turns of rows, selected from one block of a trace. `hash_ids` are those of the whole prompts, also of
    shortened ones; `row` is the number of the row in the file, from 0."""

    prefill: np.ndarray
    decode: np.ndarray
    time_ns: np.ndarray | None
    hash_ids: HashIds | None
    row: np.ndarray
    turn: np.ndarray | None


class _Selection:
    """Goes through a trace once and selects what the scenario asks for."""

    def __init__(self, scenario: Scenario, settings: TraceSource, tokenizer: Tokenizer) -> None:
        self.scenario, self.settings, self.tokenizer = scenario, settings, tokenizer
        self.trace: Trace = open_trace(resolve_path(settings.path), settings.format)
        self.licence = settings.licence or self.trace.licence
        if not self.licence:
            what = (
                f"a file that is not as {self.trace.format.name} publishes it"
                if self.trace.format.licence
                else f"the format {self.trace.format.name}"
            )
            raise WorkloadError(
                f"{self.trace.path}: no licence is known for {what}. State in workload.trace.licence under which terms"
                " the file may be used."
            )
        if settings.sessions is not None and not self.trace.format.conversations:
            raise WorkloadError(
                f"{self.trace.path}: workload.trace.sessions asks for every turn of conversations, but this file is of"
                f" the format {self.trace.format.name}, which holds none. Set it to null."
            )
        self.with_times = isinstance(scenario.workload.arrivals, TraceArrivals) and settings.sessions is None
        if self.with_times and not self.trace.has_times:
            own = ", or set workload.trace.sessions" if self.trace.format.conversations else ""
            raise WorkloadError(
                f"{self.trace.path}: this file of the format {self.trace.format.name} has no times. Choose arrivals of"
                f" another kind, such as poisson{own}."
            )
        if settings.shared_prefixes and self.trace.format.name != "mooncake":
            raise WorkloadError(
                f"{self.trace.path}: workload.trace.shared_prefixes=true, but only the format mooncake says which"
                f" prefixes are shared, and this file is of the format {self.trace.format.name}. Set it to false."
            )
        self.limit = settings.max_total_tokens or scenario.model.max_model_len
        if self.limit > scenario.model.max_model_len:
            raise WorkloadError(
                f"workload.trace.max_total_tokens {self.limit} exceeds model.max_model_len"
                f" {scenario.model.max_model_len}. Lower it."
            )
        self.counts = dict.fromkeys(
            ("rows", "unusable_dropped", "sampled_out", "over_length_dropped", "prompts_truncated", "tokens_truncated"),
            0,
        )

    def plan(self, block_bytes: int) -> RequestPlan:
        settings, workload = self.settings, self.scenario.workload
        keep_repeated = not isinstance(workload.arrivals, TraceArrivals) or workload.arrivals.repeated == "keep"
        sampler = stream(workload.seed, SAMPLE_STREAM)
        kept: list[_Kept] = []
        texts: list[str] = []
        before = 0
        trace_rows = self.trace.rows(
            times=self.with_times,
            repeated_times=keep_repeated,
            hash_ids=settings.shared_prefixes,
            all_turns=settings.sessions is not None,
            block_bytes=block_bytes,
        )
        for rows in trace_rows:
            begin = min(max(settings.start_row - before, 0), len(rows))
            end = len(rows) if settings.num_rows is None else settings.start_row + settings.num_rows - before
            first_row, before = before, before + len(rows)
            if end <= 0:
                break
            # Drawn for every row of the window, so that the selection of one row does not depend on another's.
            chosen = np.arange(begin, min(end, len(rows)))
            self.counts["rows"] += len(chosen)
            drawn = sampler.random(len(chosen)) if settings.sample_fraction is not None else None
            kept.append(self._keep(rows, first_row, chosen, drawn, texts))
        if settings.num_rows is not None and self.counts["rows"] < settings.num_rows:
            raise WorkloadError(
                f"{self.trace.path}: {before} rows, but workload.trace asks for {settings.num_rows} from row"
                f" {settings.start_row} on. Ask for fewer."
            )
        nothing = np.zeros(0, np.int64)
        prefill = np.concatenate([nothing, *(one.prefill for one in kept)])
        decode = np.concatenate([nothing, *(one.decode for one in kept)])
        count = len(prefill) if workload.num_requests is None else workload.num_requests
        if len(prefill) < max(count, 1):
            raise WorkloadError(
                f"{self.trace.path}: workload.trace selects {len(prefill)} requests, but {count or 'at least 1'} are"
                f" asked for ({', '.join(f'{name} {number}' for name, number in self.counts.items())}). Select more, or"
                " lower workload.num_requests."
            )
        time_ns, span_ns, num_sessions, prompt_ids, previous = None, None, None, None, None
        if settings.sessions is not None:
            order, time_ns, session, prompt_ids = self._in_order_of_arrival(settings.sessions, kept)
            num_sessions = len(np.unique(session))
            previous = previous_turns(session[:count]) if settings.sessions.closed_loop else None
            prefill, decode, texts = prefill[order], decode[order], [texts[at] for at in order.tolist()]
        elif self.with_times:
            time_ns = np.concatenate([one.time_ns for one in kept if one.time_ns is not None])
        if time_ns is not None:
            time_ns = time_ns - time_ns[0]
            span_ns, time_ns = int(time_ns[-1]), time_ns[:count]
        source = WorkloadSource(
            kind="trace",
            path=settings.path,
            sha256=sha256_file(self.trace.path),
            format=self.trace.format.name,
            publication=self.trace.publication,
            licence=self.licence,
            unused_columns=[name for name in self.trace.unused if name != "hash_ids" or not settings.shared_prefixes],
            num_selected=len(prefill),
            span_ns=span_ns,
            max_total_tokens=self.limit,
            num_sessions=num_sessions,
            **self.counts,
        )
        chosen_texts = texts[:count] if self.trace.format.conversations else None
        words = None
        if settings.shared_prefixes:
            shared = HashIds.joined([one.hash_ids for one in kept if one.hash_ids is not None])
            words = prompts_of_blocks(prefill[:count], shared.ids, shared.first[:count], HASH_BLOCK_TOKENS)
        return RequestPlan(
            prefill[:count],
            decode[:count],
            time_ns,
            chosen_texts,
            settings.share_prompts,
            source,
            words,
            None if prompt_ids is None else prompt_ids[:count],
            previous,
        )

    def _in_order_of_arrival(
        self, settings: TurnTimes, kept: Sequence[_Kept]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Of the turns kept, conversation after conversation: their order of arrival, and in that order their times,
        the conversations they are of and their ids. Prompt `s<i>t<k>` is turn k of the file's conversation i, both from
        0."""
        row = np.concatenate([one.row for one in kept])
        turn = np.concatenate([one.turn for one in kept if one.turn is not None])
        _, counts = np.unique(row, return_counts=True)
        time_ns = draw_turn_times(settings, counts, self.scenario.workload.seed)
        order = np.lexsort((turn, row, time_ns))
        return order, time_ns[order], row[order], [f"s{row[at]}t{turn[at]}" for at in order.tolist()]

    def _keep(
        self, rows: TraceRows, first_row: int, chosen: np.ndarray, drawn: np.ndarray | None, texts: list[str]
    ) -> _Kept:
        """What is selected from the rows `chosen` (positions); their texts are added to `texts`. `first_row`: the
        number of the first of `rows` in the file."""
        if drawn is not None:
            sampled = drawn < self.settings.sample_fraction
            self.counts["sampled_out"] += int((~sampled).sum())
            chosen = chosen[sampled]
        row = first_row + np.arange(len(rows))
        if self.settings.sessions is not None:
            rows, position = rows.by_turn(chosen)
            row, chosen = row[position], np.arange(len(rows))
        prefill, decode = self._lengths(rows, chosen)
        asked = self.scenario.workload.num_decode_tokens
        usable = (prefill > 0) & (decode > 0)
        if not usable.all():
            if self.settings.unusable == "error":
                at = int((~usable).argmax())
                raise WorkloadError(
                    f"{self.trace.path}: {rows.where(chosen[at])}: {prefill[at]} prompt and {decode[at]} output tokens,"
                    " expected at least 1 of each. Set workload.trace.unusable=drop to leave such rows out."
                )
            self.counts["unusable_dropped"] += int((~usable).sum())
            chosen, prefill, decode = chosen[usable], prefill[usable], decode[usable]
        if asked is not None:
            decode = np.full(len(decode), asked, dtype=np.int64)
        excess = prefill + decode - self.limit
        long = excess > 0
        if long.any():
            chosen, prefill, decode = self._shorten(rows, chosen, prefill, decode, excess, long)
        if rows.texts is not None:
            texts += [rows.texts[position][0] for position in chosen.tolist()]
        return _Kept(
            prefill,
            decode,
            None if rows.time_ns is None else rows.time_ns[chosen],
            None if rows.hash_ids is None else rows.hash_ids.of(chosen),
            row[chosen],
            None if rows.turn is None else rows.turn[chosen],
        )

    def _lengths(self, rows: TraceRows, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if rows.texts is None:
            assert rows.prefill is not None and rows.decode is not None
            return rows.prefill[chosen], rows.decode[chosen]
        pairs = [rows.texts[position] for position in chosen.tolist()]
        prompts, answers = (self.tokenizer.count([pair[part] for pair in pairs]) for part in (0, 1))
        return np.array(prompts, dtype=np.int64), np.array(answers, dtype=np.int64)

    def _shorten(
        self,
        rows: TraceRows,
        chosen: np.ndarray,
        prefill: np.ndarray,
        decode: np.ndarray,
        excess: np.ndarray,
        long: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Do with requests beyond the limit what the scenario says."""
        policy = self.settings.over_length
        if policy == "drop":
            self.counts["over_length_dropped"] += int(long.sum())
            return chosen[~long], prefill[~long], decode[~long]
        hopeless = long & (prefill - excess < 1)
        refused = hopeless if policy == "truncate" and rows.texts is None else long
        if refused.any():
            at = int(refused.argmax())
            if policy == "error":
                remedy = "Set workload.trace.over_length to drop or truncate, or raise the limit."
            elif rows.texts is not None:
                remedy = (
                    "Texts are not cut, because their tokens may change where they are: set"
                    " workload.trace.over_length=drop."
                )
            else:
                remedy = (
                    "Its output alone leaves no room for a prompt, and outputs are not shortened: set"
                    " workload.trace.over_length=drop."
                )
            raise WorkloadError(
                f"{self.trace.path}: {rows.where(chosen[at])}: {prefill[at]} prompt and {decode[at]} output tokens,"
                f" beyond the limit of {self.limit}. {remedy}"
            )
        self.counts["prompts_truncated"] += int(long.sum())
        self.counts["tokens_truncated"] += int(excess[long].sum())
        return chosen, np.where(long, prefill - excess, prefill), decode
