"""Published request traces: how each format is told, read in blocks, and checked line by line.

What is selected from a trace, scaled or shortened belongs to `requests`. The formats and where they are specified: docs/workloads.md.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gst_assets.errors import WorkloadError

BLOCK_BYTES = 8 << 20
"""Bytes read at a time. What is read does not depend on it."""


@dataclass(frozen=True)
class TraceFormat:
    """A published format. `columns`: time, prompt tokens, output tokens, as the header or the JSON keys name them; `known`: further ones that
    are published and not used. `licence`: what the publisher states for the data (docs/workloads.md says where), or None where the format does
    not tell whose data a file holds."""

    name: str
    publication: str
    licence: str | None
    columns: tuple[str, ...]
    known: tuple[str, ...] = ()
    has_times: bool = True


FORMATS = {
    one.name: one
    for one in (
        TraceFormat("azure_2023", "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md", "CC-BY-4.0",
                    ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
        TraceFormat("azure_2024", "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2024.md", "CC-BY-4.0",
                    ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
        TraceFormat("burstgpt", "https://github.com/HPMLL/BurstGPT", "CC-BY-4.0", ("Timestamp", "Request tokens", "Response tokens"),
                    ("Session ID", "Elapsed time", "Model", "Total tokens", "Log Type")),
        TraceFormat("mooncake", "https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release/traces", "Apache-2.0",
                    ("timestamp", "input_length", "output_length"), ("hash_ids",)),
        TraceFormat("sharegpt", "https://github.com/vllm-project/vllm/tree/main/benchmarks", None, ("conversations",), ("id",), has_times=False),
        TraceFormat("vidur", "https://github.com/microsoft/vidur/tree/main/data/processed_traces", None,
                    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"), ("num_total_tokens", "pd_ratio")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class TraceRows:
    """Consecutive rows of a trace. All arrays have one element a row; `line` is where the row begins in the file, from 1.

    `time_ns`: int64 nanoseconds from an origin of the format's own, not decreasing; None where the format has no times.
    `prefill`, `decode`: int64 tokens; None where the format has texts. `texts`: prompt and answer of each row, either empty where missing.
    """

    line: np.ndarray
    time_ns: np.ndarray | None
    prefill: np.ndarray | None
    decode: np.ndarray | None
    texts: Sequence[tuple[str, str]] | None

    def __len__(self) -> int:
        return len(self.line)


@dataclass(frozen=True)
class Trace:
    """A trace whose format is known. `unused`: columns or keys of its first row that nothing is made of."""

    path: Path
    format: TraceFormat
    unused: tuple[str, ...]

    def rows(self, *, repeated_times: bool, block_bytes: int = BLOCK_BYTES) -> Iterator[TraceRows]:
        """Read the trace block by block. `repeated_times`: whether two rows may have the same time.

        Raises:
            WorkloadError: names the file, the line, the column and what was expected.
        """
        read = {"mooncake": _mooncake_rows, "sharegpt": _sharegpt_rows}.get(self.format.name, _csv_rows)
        before: tuple[int, int] | None = None
        empty = True
        for rows in read(self, block_bytes):
            if rows.time_ns is not None and len(rows):
                before = _check_order(self.path, rows, before, repeated_times)
            empty = empty and not len(rows)
            yield rows
        if empty:
            raise WorkloadError(f"{self.path}: no requests. Expected at least one row below the header.")


def open_trace(path: Path, name: str | None) -> Trace:
    """The trace at `path` in the format `name`, or in the one that its beginning tells.

    Raises:
        WorkloadError: missing or unreadable, empty, or not of that (of any known) format; names what was found.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(64 << 10)
    except FileNotFoundError:
        raise WorkloadError(f"{path}: no such trace. Correct workload.trace.path in the scenario.") from None
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read ({error.strerror}). Correct workload.trace.path.") from None
    if not head.strip():
        raise WorkloadError(f"{path}: empty file, expected a trace.")
    if head.startswith(codecs.BOM_UTF8):
        raise WorkloadError(f"{path}: begins with a byte order mark. Save it as UTF-8 without one.")
    found = _json_format(head) if head.lstrip()[:1] in (b"{", b"[") else _csv_format(head)
    wanted = FORMATS[name] if name else None
    told = FORMATS[found[0]] if found[0] else None
    if told is None or (wanted is not None and wanted != told):
        expected = [wanted] if wanted else list(FORMATS.values())
        raise WorkloadError(
            f"{path}: line 1: found {found[1]}, expected "
            + "; or ".join(f"{one.name}: {', '.join(one.columns)}" for one in expected)
            + ". Correct the file, or workload.trace.format."
        )
    names = set(found[2])
    return Trace(path, told, tuple(sorted(names - set(told.columns))))


def _csv_format(head: bytes) -> tuple[str | None, str, list[str]]:
    """Name of the format that a CSV's first two lines tell, what was found in words, and the header's names."""
    lines = head.decode("utf-8", errors="replace").splitlines()
    header = lines[0].split(",")
    shown = f"the header {lines[0]!r:.200}"
    for one in FORMATS.values():
        if (
            set(one.columns) <= set(header)
            and set(header) <= {*one.columns, *one.known}
            and len(set(header)) == len(header)
        ):
            if not one.name.startswith("azure"):
                return one.name, shown, header
            stamp = lines[1].split(",")[header.index("TIMESTAMP")] if len(lines) > 1 else ""
            # Both years have the same header; only 2024 writes the zone.
            zoned = "+" in stamp or stamp.endswith("Z")
            return (
                f"azure_{2024 if zoned else 2023}",
                f"times {'with' if zoned else 'without'} a zone such as {stamp!r:.60}",
                header,
            )
    return None, shown, header


def _json_format(head: bytes) -> tuple[str | None, str, list[str]]:
    text = head.decode("utf-8", errors="replace").lstrip()
    if text.startswith("["):
        return "sharegpt", "a JSON array", []
    try:
        first = json.loads(text.split("\n", 1)[0])
    except ValueError:
        # A first line longer than what was looked at, or cut off: only its keys can be seen.
        return ("sharegpt" if '"conversations"' in text else None), f"a line that begins {text!r:.60}", []
    keys = sorted(first) if isinstance(first, dict) else []
    found = next(
        (one.name for one in (FORMATS["mooncake"], FORMATS["sharegpt"]) if set(one.columns) <= set(keys)), None
    )
    return found, f"a JSON object with the keys {', '.join(keys) or 'none'}", keys


def _check_order(path: Path, rows: TraceRows, before: tuple[int, int] | None, repeated_times: bool) -> tuple[int, int]:
    """Times do not decrease, and with `repeated_times` false increase. Takes and returns line and time of the row before."""
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
            problem = f"its time is that of line {line[at]} again. Set workload.arrivals.repeated=keep if the trace's clock is that coarse"
        raise WorkloadError(f"{path}: line {line[at + 1]}: {problem}.")
    return int(line[-1]), int(time_ns[-1])


# --- blocks of lines --------------------------------------------------------------------------------------------------


def _blocks(path: Path, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The file in blocks of whole lines, each with the number of its first line. Lines end with `\\n`; a `\\r` before it is taken off."""
    line, rest = 1, b""
    with path.open("rb") as handle:
        while data := handle.read(block_bytes):
            data = rest + data
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end:
                block = data[:end]
                yield line, block.replace(b"\r\n", b"\n")
                line += block.count(b"\n")
    if rest:
        # A count cut short is still a count: only the line end shows that the last line is whole.
        raise WorkloadError(
            f"{path}: line {line}: the last line has no line end, so the file may be cut off. Fetch it again; if it is whole, end it with a newline."
        )


def _csv_rows(trace: Trace, block_bytes: int) -> Iterator[TraceRows]:
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    path, columns = trace.path, trace.format.columns
    parse_time = _datetime_ns if trace.format.name.startswith("azure") else _seconds_ns
    header: list[str] = []
    for line, block in _blocks(path, block_bytes):
        if not header:
            first, block = block.split(b"\n", 1)
            header, line = first.decode("utf-8").split(","), line + 1
        if not block:
            continue
        _check_fields(path, block, line, header)
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(block),
                read_options=pa_csv.ReadOptions(column_names=header, use_threads=False, block_size=len(block) + 1),
                parse_options=pa_csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name: pa.string() for name in columns},
                    include_columns=list(columns),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            raise WorkloadError(f"{path}: below line {line}: not usable CSV ({error}).") from None
        time, prefill, decode = (table[name].combine_chunks() for name in columns)
        lines = np.arange(line, line + len(table), dtype=np.int64)
        yield TraceRows(
            lines,
            parse_time(path, columns[0], time, line, trace.format.name),
            _counts(path, columns[1], prefill, line),
            _counts(path, columns[2], decode, line),
            None,
        )


def _check_fields(path: Path, block: bytes, first_line: int, header: list[str]) -> None:
    """Every line has as many fields as the header."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    commas = np.diff(np.searchsorted(np.flatnonzero(data == ord(",")), ends), prepend=0)
    bad = commas != len(header) - 1
    if bad.any():
        at = int(bad.argmax())
        raise WorkloadError(
            f"{path}: line {first_line + at}: has {commas[at] + 1} field{'s' if commas[at] else ''}, expected {len(header)} "
            f"({', '.join(header)}). Is the file damaged?"
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
    """Seconds as decimal text to int64 nanoseconds, in decimal arithmetic: exact, and rounded half to even beyond nine decimals."""
    import pyarrow as pa
    import pyarrow.compute as pc

    good = pc.match_substring_regex(text, r"^[0-9]{1,9}(\.[0-9]{0,25})?([eE]-?[0-9]{1,2})?$")
    _require(path, column, text, good, first_line, "a time in seconds, a finite number of at least 0")
    exponent = pc.match_substring_regex(text, "[eE]")
    if pc.any(exponent).as_py():
        # Very short times only (Python writes 1e-05). Decimal's own parser takes them one by one.
        from decimal import Decimal

        plain = [
            f"{Decimal(one):.30f}" if has else one
            for one, has in zip(text.to_pylist(), exponent.to_pylist(), strict=True)
        ]
        text = pa.array(plain, pa.string())
        _require(
            path,
            column,
            text,
            pc.match_substring_regex(text, r"^[0-9]{1,9}(\.|$)"),
            first_line,
            "a time below 1e9 seconds",
        )
    decimal = pc.cast(text, pa.decimal256(45, 30))
    ns = pc.round(pc.multiply(decimal, pa.scalar(10**9, pa.decimal256(10, 0))), 0, "half_to_even")
    return np.asarray(pc.cast(ns, pa.int64()))


def _datetime_ns(path: Path, column: str, text: Any, first_line: int, name: str) -> np.ndarray:
    """`2023-11-16 18:15:46.6805900`, in 2024 with a zone behind it, to int64 nanoseconds since 1970."""
    import pyarrow as pa
    import pyarrow.compute as pc

    zone = r"([+-]\d\d:\d\d|Z)" if name == "azure_2024" else ""
    expected = "a time such as " + ("2024-05-10 00:00:00.009930+00:00" if zone else "2023-11-16 18:15:46.6805900")
    good = pc.match_substring_regex(text, rf"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{{1,9}})?{zone}$")
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


def _mooncake_rows(trace: Trace, block_bytes: int) -> Iterator[TraceRows]:
    import pyarrow as pa
    from pyarrow import json as pa_json

    path, columns = trace.path, trace.format.columns
    schema = pa.schema([pa.field(name, pa.int64()) for name in columns])
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    for line, block in _blocks(path, block_bytes):
        count = block.count(b"\n")
        try:
            table = pa_json.read_json(
                pa.BufferReader(block), pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1), options
            )
            arrays = [table[name].combine_chunks() for name in columns]
            lowest = min((int(np.asarray(one).min()) for one in arrays if one.null_count == 0 and len(one)), default=0)
            highest = max(
                (int(np.asarray(one).max()) for one in arrays[1:] if one.null_count == 0 and len(one)), default=0
            )
            good = len(table) == count and not any(one.null_count for one in arrays) and lowest >= 0 and highest < 10**9
            good = good and (not len(table) or int(np.asarray(arrays[0]).max()) < 10**12)
        except pa.ArrowInvalid:
            good = False
        if not good:
            _explain_mooncake(path, block, line, columns)
        time_ms, prefill, decode = (np.asarray(one) for one in arrays)
        yield TraceRows(np.arange(line, line + count, dtype=np.int64), time_ms * 1_000_000, prefill, decode, None)


def _explain_mooncake(path: Path, block: bytes, first_line: int, columns: tuple[str, ...]) -> NoReturn:
    """Say which line of a refused block is wrong: one Python step a line, for the error only."""
    for line, text in enumerate(block.split(b"\n")[:-1], start=first_line):
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise WorkloadError(f"{path}: line {line}: not valid JSON ({reason}).") from None
        if not isinstance(value, dict):
            raise WorkloadError(f"{path}: line {line}: expected a JSON object with {', '.join(columns)}.")
        for name in columns:
            limit = 10**12 if name == columns[0] else 10**9
            number = value.get(name)
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < limit:
                found = repr(number)[:80] if name in value else "nothing"
                what = "a time in milliseconds" if name == columns[0] else "a number of tokens"
                raise WorkloadError(
                    f"{path}: line {line}, key {name}: found {found}, expected {what}, an integer of at least 0 and below {limit:.0e}."
                )
    raise WorkloadError(f"{path}: lines {first_line} to {line}: not usable as JSON lines.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _sharegpt_rows(trace: Trace, block_bytes: int) -> Iterator[TraceRows]:
    lines: list[int] = []
    texts: list[tuple[str, str]] = []
    size = 0
    for line, item in _json_items(trace.path, block_bytes):
        lines.append(line)
        texts.append(_first_turns(trace.path, line, item))
        size += len(texts[-1][0]) + len(texts[-1][1])
        if size >= block_bytes:
            yield TraceRows(np.array(lines, dtype=np.int64), None, None, None, texts)
            lines, texts, size = [], [], 0
    yield TraceRows(np.array(lines, dtype=np.int64), None, None, None, texts)


def _first_turns(path: Path, line: int, item: Any) -> tuple[str, str]:
    """Prompt and answer: the first two turns, whoever speaks them, as vLLM's benchmark takes them; empty where there is none."""
    turns = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(turns, list):
        raise WorkloadError(f"{path}: line {line}: expected a JSON object with a list of conversations.")
    values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
    for value in values:
        if not isinstance(value, str):
            raise WorkloadError(f"{path}: line {line}: expected turns with a text under value, found {value!r:.60}.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise WorkloadError(
                f"{path}: line {line}: holds half of a surrogate pair, which is no character."
            ) from None
    return (values[0] or "" if values else ""), (values[1] or "" if len(values) > 1 else "")


def _json_items(path: Path, block_bytes: int) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, or the values of a file of JSON lines, each with the line it begins on. Reads on only as needed."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    reader = codecs.getreader("utf-8")
    line, buffer, at, ended = 1, "", 0, False
    in_array: bool | None = None
    with path.open("rb") as raw:
        handle = reader(raw)

        def read_more() -> None:
            nonlocal buffer, at, ended
            try:
                # Twice as much as is left, so that a very long value is not scanned again and again.
                more = handle.read(max(block_bytes, 2 * (len(buffer) - at)))
            except UnicodeDecodeError as error:
                raise WorkloadError(f"{path}: below line {line}: not UTF-8 ({error.reason}).") from None
            buffer, at, ended = buffer[at:] + more, 0, not more

        def skip(marks: str) -> str:
            """Move over blanks and `marks`; the next character, empty at the end of the file."""
            nonlocal at, line
            while True:
                while at < len(buffer) and (buffer[at].isspace() or buffer[at] in marks):
                    line += buffer[at] == "\n"
                    at += 1
                if at < len(buffer) or ended:
                    return buffer[at : at + 1]
                read_more()

        def expect(mark: str, found: str) -> None:
            if found != mark:
                raise WorkloadError(
                    f"{path}: line {line}: found {found or 'the end of the file'}, expected {mark}. Is the file cut off?"
                )

        in_array = skip("") == "["
        if in_array:
            at += 1
        first = True
        while (character := skip("")) and not (in_array and character == "]"):
            if in_array and not first:
                expect(",", character)
                at += 1
                skip("")
            while True:
                try:
                    value, end = decoder.raw_decode(buffer, at)
                    if end < len(buffer) or ended:
                        break
                except json.JSONDecodeError as error:
                    if ended:
                        where = line + buffer.count("\n", at, error.pos)
                        raise WorkloadError(
                            f"{path}: line {where}: not valid JSON ({error.msg}). Is the file cut off?"
                        ) from None
                except (ValueError, RecursionError) as error:
                    raise WorkloadError(f"{path}: line {line}: not usable JSON ({error}).") from None
                read_more()
            yield line, value
            line += buffer.count("\n", at, end)
            at, first = end, False
        if in_array:
            expect("]", character)
            at += 1
            if extra := skip(""):
                raise WorkloadError(f"{path}: line {line}: found {extra} behind the end of the array.")
