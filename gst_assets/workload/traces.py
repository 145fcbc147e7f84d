"""Published request traces: how each format is recognised, read in blocks, and checked line by line.

What is selected from a trace, scaled or shortened belongs to `requests`. The formats and where they are specified:
docs/workloads.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gst_assets.errors import WorkloadError
from gst_assets.input_files import (
    LONGEST_LINE_BYTES,
    InputKind,
    JsonProblem,
    decoded,
    json_decoder,
    json_problem,
    line_too_long,
    open_input,
    parse_json,
    read_from,
    refuse_foreign,
)

BLOCK_BYTES = 8 << 20
"""Bytes read at a time. What is read does not depend on it."""
_KIND = InputKind(
    WorkloadError,
    missing="no such trace. Correct workload.trace.path in the scenario.",
    expected="a trace",
    remedy="Correct workload.trace.path in the scenario.",
)
_LATEST_S = 9 * 10**9
"""Seconds since the trace's origin, below. Nanoseconds since 1970 fit 64 bits until then."""
_MOST_TOKENS = 10**9
HASH_BLOCK_TOKENS = 512
"""Prompt tokens that one of Mooncake's `hash_ids` stands for; the last one of a request stands for the rest."""
_MOST_HASH_ID = 10**15
_HASH_IDS = "hash_ids"
BETWEEN_TURNS = "\n\n"
"""Between what one speaker of a conversation says and what the next one says, in a prompt that holds both."""
_USERS = ("human", "user")
_SYSTEM = "system"


@dataclass(frozen=True)
class TraceFormat:
    """A published format. `time`, `prefill` and `decode` are its columns as the header or the JSON keys name them, or
    `conversations` the key of its texts; `others` are published and not used, of them `always` in every file.
    `times_optional`: files of it exist without times. `licence`: what the publisher states for the data
    (docs/workloads.md says where), or None where the format does not show whose data a file holds."""

    name: str
    publication: str
    licence: str | None
    time: str | None = None
    prefill: str | None = None
    decode: str | None = None
    conversations: str | None = None
    others: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    times_optional: bool = False

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns or keys without which no request can be made."""
        return tuple(name for name in (self.prefill, self.decode, self.conversations) if name)

    @property
    def used(self) -> tuple[str, ...]:
        return (self.time, *self.needed) if self.time else self.needed

    @property
    def is_json(self) -> bool:
        return self.name in ("mooncake", "sharegpt")

    def is_published_as(self, names: Sequence[str]) -> bool:
        """Whether a file with the columns or keys `names` is one as the publisher writes them."""
        required = {*(self.needed if self.times_optional else self.used), *self.always}
        return required <= set(names) <= {*self.used, *self.others}


FORMATS = {
    one.name: one
    for one in (
        TraceFormat(
            "azure_2023",
            "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md",
            "CC-BY-4.0",
            "TIMESTAMP",
            "ContextTokens",
            "GeneratedTokens",
        ),
        TraceFormat(
            "azure_2024",
            "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2024.md",
            "CC-BY-4.0",
            "TIMESTAMP",
            "ContextTokens",
            "GeneratedTokens",
        ),
        TraceFormat(
            "burstgpt",
            "https://github.com/HPMLL/BurstGPT",
            "CC-BY-4.0",
            "Timestamp",
            "Request tokens",
            "Response tokens",
            others=("Session ID", "Elapsed time", "Model", "Total tokens", "Log Type"),
        ),
        TraceFormat(
            "mooncake",
            "https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release/traces",
            "Apache-2.0",
            "timestamp",
            "input_length",
            "output_length",
            others=("hash_ids",),
            always=("hash_ids",),
            times_optional=True,
        ),
        TraceFormat(
            "sharegpt",
            "https://github.com/vllm-project/vllm/tree/main/benchmarks",
            None,
            conversations="conversations",
            others=("id",),
        ),
        TraceFormat(
            "vidur",
            "https://github.com/microsoft/vidur/tree/main/data/processed_traces",
            None,
            "arrived_at",
            "num_prefill_tokens",
            "num_decode_tokens",
            others=("num_total_tokens", "pd_ratio"),
            times_optional=True,
        ),
    )
}
_AZURE_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$")
_AZURE_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")


@dataclass(frozen=True)
class HashIds:
    """Ids of the prompt blocks of consecutive rows: those of row i are `ids[first[i] : first[i + 1]]`. Both int64;
    `first` of shape (rows + 1,)."""

    ids: np.ndarray
    first: np.ndarray

    def of(self, positions: np.ndarray) -> HashIds:
        """Those of the rows at `positions`."""
        counts = np.diff(self.first)[positions]
        first = np.concatenate([[0], np.cumsum(counts)])
        return HashIds(self.ids[np.arange(first[-1]) + np.repeat(self.first[positions] - first[:-1], counts)], first)

    @staticmethod
    def joined(parts: Sequence[HashIds]) -> HashIds:
        """Those of the rows of all `parts`, one part after another."""
        counts = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.first) for part in parts)])
        ids = np.concatenate([np.zeros(0, np.int64), *(part.ids for part in parts)])
        return HashIds(ids, np.concatenate([[0], np.cumsum(counts)]))


@dataclass(frozen=True)
class TraceRows:
    """Consecutive rows of a trace. All arrays have one element a row; `line` is where the row begins in the file, from
    1.

    `time_ns`: int64 nanoseconds from an origin of the format's own, not decreasing; None where they were not asked for.
    `prefill`, `decode`: int64 tokens; None where the format has texts. `texts`: prompt and answer of each row, either
    empty where missing. `item`: the number of the row in a JSON array, from 1, where the file is one. `hash_ids`: one
    for each `HASH_BLOCK_TOKENS` tokens of a row's prompt; None where they were not asked for. `talks`: prompt and
    answer of each turn of a conversation, in place of `texts` where all turns were asked for. `turn`: where a row is
    one of those turns, its number from 0.
    """

    line: np.ndarray
    time_ns: np.ndarray | None
    prefill: np.ndarray | None
    decode: np.ndarray | None
    texts: Sequence[tuple[str, str]] | None
    item: np.ndarray | None = None
    hash_ids: HashIds | None = None
    talks: Sequence[Sequence[tuple[str, str]]] | None = None
    turn: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.line)

    def where(self, position: int) -> str:
        """The place of a row in the file, for messages."""
        item = "" if self.item is None else f", item {self.item[position]}"
        turn = "" if self.turn is None else f", turn {self.turn[position]}"
        return f"line {self.line[position]}{item}{turn}"

    def by_turn(self, chosen: np.ndarray) -> tuple[TraceRows, np.ndarray]:
        """Each turn of the conversations at the positions `chosen` as a row, and the position that it comes from."""
        assert self.talks is not None
        talks = [self.talks[position] for position in chosen.tolist()]
        counts = np.array([len(talk) for talk in talks], dtype=np.int64)
        position = np.repeat(chosen, counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        rows = TraceRows(
            self.line[position],
            None,
            None,
            None,
            list(chain.from_iterable(talks)),
            None if self.item is None else self.item[position],
            turn=np.arange(len(position)) - first,
        )
        return rows, position


@dataclass(frozen=True)
class Trace:
    """A trace whose format is known. `unused`: columns or keys of its first row that are not used. `has_times`:
    of its first row. `licence` and `publication` are those of its format, or None where the file is not as published.
    `stated`: the scenario names the format."""

    path: Path
    format: TraceFormat
    unused: tuple[str, ...]
    has_times: bool
    licence: str | None
    publication: str | None
    stated: bool
    header: tuple[str, ...] = field(default=(), repr=False)

    def rows(
        self,
        *,
        times: bool,
        repeated_times: bool,
        hash_ids: bool = False,
        all_turns: bool = False,
        block_bytes: int = BLOCK_BYTES,
    ) -> Iterator[TraceRows]:
        """Read the trace block by block. `times`, `hash_ids` (Mooncake's), `all_turns` (ShareGPT's): whether they are
        asked for; else they are neither read nor checked. `repeated_times`: whether two rows may have the same time.

        Raises:
            WorkloadError: names the file, the line, the column and what was expected.
        """
        read: Callable[[Trace, bool, int], Iterator[TraceRows]] = {
            "mooncake": partial(_mooncake_rows, hash_ids),
            "sharegpt": partial(_sharegpt_rows, all_turns),
        }.get(self.format.name, _csv_rows)
        before: tuple[int, int] | None = None
        empty = True
        for rows in read(self, times, block_bytes):
            if rows.time_ns is not None and len(rows):
                before = _check_order(self.path, rows, before, repeated_times)
            empty = empty and not len(rows)
            yield rows
        if empty:
            raise WorkloadError(f"{self.path}: no requests. Expected at least one row.")


@dataclass(frozen=True)
class _Beginning:
    """What a file begins with. `names`: columns or keys of its first row; `told`: the formats that are published like
    that; `found`: in words."""

    names: tuple[str, ...]
    told: tuple[str, ...]
    found: str
    is_json: bool


def open_trace(path: Path, name: str | None) -> Trace:
    """The trace at `path` in the format `name`, or in the one that its whole first row shows. A file that is not as a
    format is published (columns or keys that it does not know) is one of that format only where `name` says so.

    Raises:
        WorkloadError: missing or unreadable, empty, no text, or not of that (of any known) format; names what was
            found.
    """
    with open_input(path, _KIND) as handle:
        begun = _beginning(path, handle)
    stated = FORMATS[name] if name else None
    if stated is None:
        if len(begun.told) == 1:
            return _trace(path, FORMATS[begun.told[0]], begun, as_published=True, stated=False)
        raise WorkloadError(f"{path}: line 1: found {begun.found}, {_nearest(begun)}")
    if stated.name in begun.told:
        return _trace(path, stated, begun, as_published=True, stated=True)
    missing = [one for one in stated.needed if one not in begun.names]
    if begun.told or missing or stated.is_json is not begun.is_json:
        lacks = f" It lacks {', '.join(missing)}." if missing else ""
        raise WorkloadError(
            f"{path}: line 1: found {begun.found}, expected {stated.name}: {', '.join(stated.used)}.{lacks} Correct the"
            " file, or workload.trace.format."
        )
    return _trace(path, stated, begun, as_published=False, stated=True)


def _trace(path: Path, found: TraceFormat, begun: _Beginning, *, as_published: bool, stated: bool) -> Trace:
    return Trace(
        path,
        found,
        unused=tuple(sorted(set(begun.names) - set(found.used))),
        has_times=found.time is not None and found.time in begun.names,
        licence=found.licence if as_published else None,
        publication=found.publication if as_published else None,
        stated=stated,
        header=() if begun.is_json else begun.names,
    )


def _nearest(begun: _Beginning) -> str:
    """Why a beginning is of no published format, and what to do."""
    if begun.told:
        return (
            f"which both {' and '.join(begun.told)} have, and no time below it that shows which. Set"
            " workload.trace.format."
        )
    of_kind = [one for one in FORMATS.values() if one.is_json is begun.is_json]
    near = [one for one in of_kind if set(one.needed) <= set(begun.names)]
    if not near:
        every = "; or ".join(f"{one.name}: {', '.join(one.used)}" for one in FORMATS.values())
        return f"expected {every}. Correct the file, or workload.trace.path."
    one = near[0]
    others = sorted(set(begun.names) - {*one.used, *one.others})
    absent = sorted({*one.used, *one.always} - set(begun.names))
    differs = " and ".join(
        [f"has {_listed(others)} besides"] * bool(others) + [f"lacks {', '.join(absent)}"] * bool(absent)
    )
    unit = {"mooncake": ", whose times are milliseconds", "vidur": ", whose times are seconds"}.get(one.name, "")
    return (
        f"which is like {one.name} but {differs or 'is not as published'}. If it is of that format{unit}, set"
        f" workload.trace.format={one.name} and workload.trace.licence; what is not used stays unread."
    )


def _beginning(path: Path, handle: BinaryIO) -> _Beginning:
    """Read the first row. Of a CSV two lines, of JSON lines the first that is not blank, of a JSON array the first
    item."""
    number, first = 1, _line(path, handle, 1)
    while first and not first.strip():
        number += 1
        first = _line(path, handle, number)
    if not first:
        raise WorkloadError(f"{path}: empty file, expected a trace.")
    refuse_foreign(first, path, _KIND)
    start = first.lstrip()[:1]
    if start == b"[":
        item = next(iter(_json_items(path, BLOCK_BYTES // 8)), None)
        names = _keys(item[2] if item else None)
        found = f"a JSON array whose first item has the keys {_listed(names)}"
        if item is None:
            raise WorkloadError(f"{path}: no requests: an empty JSON array.")
        return _Beginning(names, _published_as(("sharegpt",), names), found, is_json=True)
    text = decoded(first, path, _KIND, number).rstrip("\r\n")
    if start == b"{":
        try:
            value = parse_json(text, exact=str)  # numbers that are not used may be of any size
        except JsonProblem as problem:
            raise WorkloadError(f"{path}: line {number}: not valid JSON ({problem.reason}).") from None
        names = _keys(value)
        told = _published_as(("mooncake", "sharegpt"), names)
        return _Beginning(names, told, f"a JSON object with the keys {_listed(names)}", is_json=True)
    if number > 1:
        raise WorkloadError(f"{path}: line 1 is blank, expected a header. Remove it.")
    header = tuple(text.split(","))
    shown = f"the header {text!r:.200}"
    if "\r" in text:
        raise WorkloadError(f"{path}: line 1: {shown} holds a carriage return. End lines with \\n or \\r\\n.")
    twice = sorted({one for one in header if header.count(one) > 1})
    if twice:
        raise WorkloadError(f"{path}: line 1: column {_listed(twice)} occurs more than once. Remove all but one.")
    told = _published_as([one.name for one in FORMATS.values() if not one.is_json], header)
    if "azure_2023" not in told:
        return _Beginning(header, told, shown, is_json=False)
    row = _line(path, handle, 2).decode("utf-8", errors="replace").rstrip("\r\n").split(",")
    at = header.index("TIMESTAMP")
    stamp = row[at] if at < len(row) else ""
    if not _AZURE_TIME.match(stamp):
        return _Beginning(header, told, shown, is_json=False)
    # Both years have the same header; only 2024 writes the zone.
    zoned = _AZURE_ZONE.search(stamp) is not None
    shown = f"times {'with' if zoned else 'without'} a zone such as {stamp!r:.60}"
    return _Beginning(header, ("azure_2024" if zoned else "azure_2023",), shown, is_json=False)


def _published_as(formats: Sequence[str], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in formats if FORMATS[one].is_published_as(names))


def _line(path: Path, handle: BinaryIO, number: int) -> bytes:
    try:
        line = handle.readline(LONGEST_LINE_BYTES + 1)
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror}). Check the disk.") from None
    if len(line) > LONGEST_LINE_BYTES:
        raise line_too_long(path, number, _KIND)
    return line


def _listed(names: Sequence[str]) -> str:
    """Names out of a file, of any number and length, for a message."""
    return f"{', '.join(names) or 'none':.300}"


def _keys(value: Any) -> tuple[str, ...]:
    return tuple(sorted(value)) if isinstance(value, dict) else ()


def _check_order(path: Path, rows: TraceRows, before: tuple[int, int] | None, repeated_times: bool) -> tuple[int, int]:
    """Times do not decrease, and with `repeated_times` false increase. Takes and returns line and time of the row
    before."""
    assert rows.time_ns is not None
    line, time_ns = rows.line, rows.time_ns
    if before is not None:
        line, time_ns = np.append(before[0], line), np.append(before[1], time_ns)
    gap = np.diff(time_ns)
    bad = gap < 0 if repeated_times else gap <= 0
    if bad.any():
        at = int(bad.argmax())
        if gap[at] < 0:
            problem = f"its time is {-int(gap[at])} ns before that of line {line[at]}. Sort the trace by time"
        else:
            problem = (
                f"its time is that of line {line[at]} again. Set workload.arrivals.repeated=keep if the trace's clock"
                " is that coarse"
            )
        raise WorkloadError(f"{path}: line {line[at + 1]}: {problem}.")
    return int(line[-1]), int(time_ns[-1])


# --- blocks of lines --------------------------------------------------------------------------------------------------


def _blocks(path: Path, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The file in blocks of whole lines, each with the number of its first line. Lines end with `\\n`; a `\\r` before
    it is taken off, and the last line may lack its end: whether it is whole, its content says."""
    line, rest = 1, b""
    with open_input(path, _KIND) as handle:
        while data := read_from(handle, path, _KIND, max(block_bytes, len(rest))):
            data = rest + data
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end:
                block = data[:end]
                yield line, block.replace(b"\r\n", b"\n")
                line += block.count(b"\n")
            if len(rest) > LONGEST_LINE_BYTES:
                raise line_too_long(path, line, _KIND)
    if rest:
        yield line, rest.removesuffix(b"\r") + b"\n"


def _csv_rows(trace: Trace, times: bool, block_bytes: int) -> Iterator[TraceRows]:
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    path, header, form = trace.path, list(trace.header), trace.format
    assert form.time is not None and form.prefill is not None and form.decode is not None
    parse_time = _datetime_ns if form.name.startswith("azure") else _seconds_ns
    columns = [form.time, form.prefill, form.decode] if times else [form.prefill, form.decode]
    for line, block in _blocks(path, block_bytes):
        if line == 1:
            block, line = block[block.index(b"\n") + 1 :], 2
        if not block:
            continue
        _check_fields(path, block, line, header)
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block),
                read_options=pa_csv.ReadOptions(column_names=header, use_threads=False, block_size=len(block) + 1),
                parse_options=pa_csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.string()), include_columns=columns, strings_can_be_null=False
                ),
            )
        except pa.ArrowException as error:
            for at, text in enumerate(block.split(b"\n")):
                decoded(text, path, _KIND, line + at)
            raise WorkloadError(f"{path}: below line {line}: not usable CSV ({error}).") from None
        texts = {name: table[name].combine_chunks() for name in columns}
        yield TraceRows(
            np.arange(line, line + len(table), dtype=np.int64),
            parse_time(path, form.time, texts[form.time], line, form.name) if times else None,
            _counts(path, form.prefill, texts[form.prefill], line),
            _counts(path, form.decode, texts[form.decode], line),
            None,
        )


def _check_fields(path: Path, block: bytes, first_line: int, header: list[str]) -> None:
    """Every line has as many fields as the header, and none a carriage return, which pyarrow would take for its end."""
    if (returned := block.find(b"\r")) >= 0:
        line = first_line + block.count(b"\n", 0, returned)
        raise WorkloadError(f"{path}: line {line}: holds a carriage return. End lines with \\n or \\r\\n.")
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    commas = np.diff(np.searchsorted(np.flatnonzero(data == ord(",")), ends), prepend=0)
    bad = commas != len(header) - 1
    if bad.any():
        at = int(bad.argmax())
        raise WorkloadError(
            f"{path}: line {first_line + at}: has {commas[at] + 1} field{'s' if commas[at] else ''}, expected"
            f" {len(header)} ({_listed(header)}). Is the file damaged or cut off?"
        )


def _require(path: Path, column: str, text: Any, good: Any, first_line: int, expected: str) -> None:
    good = np.asarray(good)
    if not good.all():
        at = int((~good).argmax())
        raise WorkloadError(
            f"{path}: line {first_line + at}, column {column}: found {text[at].as_py()!r:.80}, expected {expected}."
        )


def _counts(path: Path, column: str, text: Any, first_line: int) -> np.ndarray:
    """Token counts, int64, from an array of texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    good = pc.match_substring_regex(text, r"^[0-9]{1,9}$")
    _require(path, column, text, good, first_line, "a number of tokens, an integer of at least 0 in plain digits")
    return np.asarray(pc.cast(text, pa.int64()))


def _seconds_ns(path: Path, column: str, text: Any, first_line: int, _: str) -> np.ndarray:
    """Seconds as decimal text to int64 nanoseconds, in decimal arithmetic: exact, and rounded half to even beyond nine
    decimals."""
    import pyarrow as pa
    import pyarrow.compute as pc

    good = pc.match_substring_regex(text, r"^[0-9]{1,10}(\.[0-9]{0,25})?([eE]-?[0-9]{1,2})?$")
    expected = f"a time in seconds of at least 0 and below {_LATEST_S:.0e}, in digits with at most 25 decimals"
    _require(path, column, text, good, first_line, expected)
    exponent = pc.match_substring_regex(text, "[eE]")
    if pc.any(exponent).as_py():
        # Very short times only (Python writes 1e-05). Decimal's own parser takes them one by one.
        plain = [
            f"{Decimal(one):.30f}" if has else one
            for one, has in zip(text.to_pylist(), exponent.to_pylist(), strict=True)
        ]
        small = [len(one.split(".")[0]) <= 10 for one in plain]
        _require(path, column, text, small, first_line, expected)
        text = pa.array(plain, pa.string())
    decimal = pc.cast(text, pa.decimal256(45, 30))
    _require(path, column, text, pc.less(decimal, pa.scalar(_LATEST_S, pa.decimal256(10, 0))), first_line, expected)
    ns = pc.round(pc.multiply(decimal, pa.scalar(10**9, pa.decimal256(10, 0))), 0, "half_to_even")
    return np.asarray(pc.cast(ns, pa.int64()))


def _datetime_ns(path: Path, column: str, text: Any, first_line: int, name: str) -> np.ndarray:
    """`2023-11-16 18:15:46.6805900`, in 2024 with a zone behind it, to int64 nanoseconds since 1970."""
    import pyarrow as pa
    import pyarrow.compute as pc

    zone = r"([+-]\d\d:\d\d|Z)" if name == "azure_2024" else ""
    expected = "a time such as " + ("2024-05-10 00:00:00.009930+00:00" if zone else "2023-11-16 18:15:46.6805900")
    good = pc.match_substring_regex(text, rf"^(19[7-9]\d|2[01]\d\d)-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{{1,9}})?{zone}$")
    _require(path, column, text, good, first_line, expected)
    kind = pa.timestamp("ns", "UTC" if zone else None)
    try:
        return np.asarray(pc.cast(pc.cast(text, kind), pa.int64()))
    except pa.ArrowInvalid:
        # Such as a thirteenth month. Which row it is, is looked for only now.
        good = [_casts(one, kind) for one in text]
        _require(path, column, text, good, first_line, expected)
        raise


def _casts(value: Any, kind: Any) -> bool:
    import pyarrow as pa

    try:
        value.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


# --- JSON -------------------------------------------------------------------------------------------------------------


def _mooncake_rows(hash_ids: bool, trace: Trace, times: bool, block_bytes: int) -> Iterator[TraceRows]:
    for line, block in _blocks(trace.path, block_bytes):
        rows = _plain_mooncake(trace, times, hash_ids, line, block)
        yield rows or _mooncake_by_line(trace, times, hash_ids, line, block)


def _plain_mooncake(trace: Trace, times: bool, hash_ids: bool, first_line: int, block: bytes) -> TraceRows | None:
    """The rows of a block, or None where they are not all plain integers within bounds."""
    import pyarrow as pa
    from pyarrow import json as pa_json

    names = trace.format.used if times else trace.format.needed
    fields = [pa.field(name, pa.int64()) for name in names]
    if hash_ids:
        fields.append(pa.field(_HASH_IDS, pa.list_(pa.int64())))
    options = pa_json.ParseOptions(explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore")
    try:
        table = pa_json.read_json(
            pa.BufferReader(block), pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1), options
        )
    except pa.ArrowException:
        return None
    count = block.count(b"\n")
    columns = [table[one.name].combine_chunks() for one in fields]
    if len(table) != count or any(one.null_count for one in columns):
        return None
    found = _plain_hash_ids(columns.pop()) if hash_ids else None
    *time, prefill, decode = (np.asarray(one) for one in columns)
    limits = [_LATEST_S * 1000] * len(time) + [_MOST_TOKENS] * 2
    for values, limit in zip((*time, prefill, decode), limits, strict=True):
        if values.min() < 0 or values.max() >= limit:
            return None
    if hash_ids and (found is None or not np.array_equal(np.diff(found.first), _hash_blocks(prefill))):
        return None
    lines = np.arange(first_line, first_line + count, dtype=np.int64)
    return TraceRows(lines, time[0] * 1_000_000 if time else None, prefill, decode, None, hash_ids=found)


def _plain_hash_ids(lists: Any) -> HashIds | None:
    """Those of an array of lists, or None where they are not all within bounds."""
    values = lists.flatten()
    if values.null_count:
        return None
    ids = np.asarray(values)
    if len(ids) and (ids.min() < 0 or ids.max() >= _MOST_HASH_ID):
        return None
    return HashIds(ids, np.asarray(lists.offsets, dtype=np.int64))


def _hash_blocks(prefill: Any) -> Any:
    """How many hash ids a prompt of `prefill` tokens has: int or int64 array."""
    return -(-prefill // HASH_BLOCK_TOKENS)


def _mooncake_by_line(trace: Trace, times: bool, hash_ids: bool, first_line: int, block: bytes) -> TraceRows:
    """The rows of a block, one Python step a line: for what `_plain_mooncake` does not read, and for the place of what
    is wrong."""
    path, form = trace.path, trace.format
    rows: list[tuple[int, int, int, int]] = []
    ids: list[list[int]] = []
    for line, text in enumerate(block.split(b"\n")[:-1], start=first_line):
        if not text.strip():
            continue
        try:
            value = parse_json(decoded(text, path, _KIND, line), keys_once=True, exact=Decimal)
        except JsonProblem as problem:
            raise WorkloadError(f"{path}: line {line}: not valid JSON ({problem.reason}).") from None
        if not isinstance(value, dict):
            raise WorkloadError(f"{path}: line {line}: expected a JSON object with {', '.join(form.used)}.")
        counts = [_json_count(path, line, value, name) for name in form.needed]
        rows.append((line, _json_time_ns(trace, line, value) if times else 0, counts[0], counts[1]))
        if hash_ids:
            ids.append(_json_hash_ids(path, line, value, counts[0]))
    lines, time_ns, prefill, decode = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    found = None
    if hash_ids:
        first = np.concatenate([[0], np.cumsum([len(one) for one in ids], dtype=np.int64)])
        found = HashIds(np.array(list(chain.from_iterable(ids)), dtype=np.int64), first)
    return TraceRows(lines, time_ns if times else None, prefill, decode, None, hash_ids=found)


def _json_hash_ids(path: Path, line: int, row: dict[str, Any], prefill: int) -> list[int]:
    where, wanted = f"{path}: line {line}, key {_HASH_IDS}", _hash_blocks(prefill)
    remedy = "Correct the file, or set workload.trace.shared_prefixes=false to leave them unread."
    ids = row.get(_HASH_IDS)
    if not isinstance(ids, list):
        raise WorkloadError(f"{where}: found {_shown(row, _HASH_IDS)}, expected a list of {wanted} integers. {remedy}")
    for number, one in enumerate(ids, start=1):
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < _MOST_HASH_ID:
            shown = str(one) if isinstance(one, Decimal) else repr(one)
            raise WorkloadError(
                f"{where}, item {number}: found {shown:.80}, expected an integer of at least 0 and below"
                f" {_MOST_HASH_ID:.0e}. {remedy}"
            )
    if len(ids) != wanted:
        raise WorkloadError(
            f"{where}: found {len(ids)} for {prefill} input tokens, expected {wanted}: one for every"
            f" {HASH_BLOCK_TOKENS} tokens, the last one for the rest. {remedy}"
        )
    return ids


def _json_count(path: Path, line: int, row: dict[str, Any], key: str) -> int:
    number = row.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < _MOST_TOKENS:
        found = _shown(row, key)
        raise WorkloadError(
            f"{path}: line {line}, key {key}: found {found}, expected a number of tokens, an integer of at least 0 and"
            f" below {_MOST_TOKENS:.0e}."
        )
    return number


def _json_time_ns(trace: Trace, line: int, row: dict[str, Any]) -> int:
    """A time in milliseconds as nanoseconds, exact, and rounded half to even beyond six decimals."""
    key = trace.format.time
    assert key is not None
    number, limit_ms = row.get(key), _LATEST_S * 1000
    if not isinstance(number, int | Decimal) or isinstance(number, bool) or not 0 <= number < limit_ms:
        raise WorkloadError(
            f"{trace.path}: line {line}, key {key}: found {_shown(row, key)}, expected a time in milliseconds, at least"
            f" 0 and below {limit_ms:.0e}. Where a trace has no such times, choose arrivals of another kind, such as"
            " poisson."
        )
    if isinstance(number, Decimal) and not trace.stated:
        raise WorkloadError(
            f"{trace.path}: line {line}, key {key}: found {number}, a fraction, so these may be seconds; published"
            f" times are whole milliseconds. Set workload.trace.format={trace.format.name} if they are milliseconds, or"
            " choose arrivals of another kind."
        )
    return int((Decimal(number) * 1_000_000).to_integral_value(ROUND_HALF_EVEN))


def _shown(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return "nothing"
    value = row[key]
    return str(value)[:80] if isinstance(value, Decimal) else repr(value)[:80]


def _sharegpt_rows(all_turns: bool, trace: Trace, times: bool, block_bytes: int) -> Iterator[TraceRows]:
    assert not times, "conversations have no times"
    found: list[tuple[int, int]] = []
    texts: list[tuple[str, str]] = []
    talks: list[list[tuple[str, str]]] = []
    size = 0

    def rows() -> TraceRows:
        lines, items = np.array(found, dtype=np.int64).reshape(-1, 2).T
        numbered = items if items.any() else None
        return TraceRows(
            lines,
            None,
            None,
            None,
            None if all_turns else texts,
            numbered,
            talks=talks if all_turns else None,
        )

    for line, item, value in _json_items(trace.path, block_bytes):
        found.append((line, item))
        where = f"{trace.path}: {_place(line, item)}"
        read = _turns(where, value) if all_turns else [_first_turns(where, value)]
        if all_turns:
            talks.append(read)
        else:
            texts += read
        size += sum(len(prompt) + len(answer) for prompt, answer in read)
        if size >= block_bytes:
            yield rows()
            found, texts, talks, size = [], [], [], 0
    yield rows()


def _first_turns(where: str, value: Any) -> tuple[str, str]:
    """Prompt and answer: the first two turns, whoever speaks them, as vLLM's benchmark takes them; empty where there is
    none."""
    texts = [text for _, text in _spoken(where, value, 2)]
    return (texts[0] if texts else ""), (texts[1] if len(texts) > 1 else "")


def _turns(where: str, value: Any) -> list[tuple[str, str]]:
    """Of each turn of a user the prompt, which is all that was said until its end, and the answer, which is what
    the next speaker says who is no `system`; empty where that is a user or nobody. One empty pair for a conversation
    without a user."""
    spoken = list(_spoken(where, value, None))
    for speaker, _ in spoken:
        if not isinstance(speaker, str):
            raise WorkloadError(f"{where}: expected turns with a speaker under from, found {speaker!r:.60}.")
    turns, said = [], ""
    for number, (speaker, text) in enumerate(spoken):
        said = f"{said}{BETWEEN_TURNS}{text}" if number else text
        if speaker in _USERS:
            following = next((turn for turn in spoken[number + 1 :] if turn[0] != _SYSTEM), (None, ""))
            turns.append((said, "" if following[0] in _USERS else following[1]))
    return turns or [("", "")]


def _spoken(where: str, value: Any, most: int | None) -> Iterator[tuple[Any, str]]:
    """Speaker and text of the first `most` turns (None: all)."""
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(turns, list):
        raise WorkloadError(f"{where}: expected a JSON object with a list of conversations.")
    for turn in turns[:most]:
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(text, str):
            raise WorkloadError(f"{where}: expected turns with a text under value, found {text!r:.60}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise WorkloadError(f"{where}: holds half of a surrogate pair, which is no character. Remove it.") from None
        yield turn.get("from"), text


def _place(line: int, item: int) -> str:
    return f"line {line}, item {item}" if item else f"line {line}"


def _json_items(path: Path, block_bytes: int) -> Iterator[tuple[int, int, Any]]:
    """The elements of a JSON array, or the values of a file of JSON lines, each with the line it begins on and its
    number in the array, from 1 (0 for JSON lines). Reads on only as needed."""
    decoder = json_decoder(exact=str)
    line, item, buffer, at, ended, undecoded = 1, 0, "", 0, False, b""

    with open_input(path, _KIND) as handle:

        def read_more() -> None:
            nonlocal buffer, at, ended, undecoded
            if len(buffer) - at > LONGEST_LINE_BYTES:
                raise line_too_long(path, line, _KIND)
            # Twice as much as is left, so that a very long value is not scanned again and again.
            data = read_from(handle, path, _KIND, max(block_bytes, 2 * (len(buffer) - at)))
            ended = not data
            data = undecoded + data
            # A character that the block cuts is carried over to the next one.
            cut = 0 if ended else _cut_character(data)
            whole, undecoded = (data[:-cut], data[-cut:]) if cut else (data, b"")
            left = buffer[at:]
            buffer, at = left + decoded(whole, path, _KIND, line + left.count("\n")), 0

        def skip() -> str:
            """Move over blanks; the next character, empty at the end of the file."""
            nonlocal at, line
            while True:
                while at < len(buffer) and buffer[at].isspace():
                    line += buffer[at] == "\n"
                    at += 1
                if at < len(buffer) or ended:
                    return buffer[at : at + 1]
                read_more()

        def expect(mark: str, found: str) -> None:
            if found != mark:
                raise WorkloadError(
                    f"{path}: {_place(line, item)}: found {found or 'the end of the file'} behind it, expected {mark}."
                    " Is the file cut off?"
                )

        in_array = skip() == "["
        if in_array:
            at += 1
        while (character := skip()) and not (in_array and character == "]"):
            if in_array and item:
                expect(",", character)
                at += 1
                skip()
            item += in_array
            while True:
                try:
                    value, end = decoder.raw_decode(buffer, at)
                    if end < len(buffer) or ended:
                        break
                except (ValueError, RecursionError) as error:
                    problem = json_problem(error)
                    # What is cut off by the block's end looks wrong as well.
                    if ended or not isinstance(error, json.JSONDecodeError):
                        begun = error.pos if isinstance(error, json.JSONDecodeError) else at
                        where = _place(line + buffer.count("\n", at, begun), item)
                        hint = " Is the file cut off?" if isinstance(error, json.JSONDecodeError) else ""
                        raise WorkloadError(f"{path}: {where}: not valid JSON ({problem.reason}).{hint}") from None
                read_more()
            yield line, item, value
            line += buffer.count("\n", at, end)
            at = end
        if in_array:
            expect("]", character)
            at += 1
            if extra := skip():
                raise WorkloadError(f"{path}: line {line}: found {extra} behind the end of the array.")


def _cut_character(data: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of a UTF-8 character that goes on behind it."""
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte >= 0xC0:
            return length if length < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0
