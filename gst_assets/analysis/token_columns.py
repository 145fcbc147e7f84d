"""Reading a large token_metrics.csv by column, with every check of the contract.

Fast where the file is right: one scan of its bytes, one columnar parse, one pass over the numbers. Anything else, a
wrong file among it, goes to the contract's own reader, which is exact about rows, columns and remedies. Nothing is
converted or repaired on either way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from gst_assets.contracts import csv_files
from gst_assets.contracts.tables import TokenMetrics, read_table, validate
from gst_assets.contracts.token_invariants import all_hold, begins_request, latencies_ns

LATENCY = "token_latency_ns"
COLUMNS = ("request_id", "token_index", "token_time_ns", LATENCY)
# What a table of plain integers is written with. pyarrow also takes ` 1`, `0x1` and `"1"`, which the contract does not.
_PLAIN = b"0123456789,\n-"
_SCAN_BYTES = 1 << 20


def read_tokens(path: Path) -> tuple[pd.DataFrame, bool]:
    """The token table's four required columns as int64, in contract order, and whether `token_latency_ns` was derived.

    A file of another program may lack `token_latency_ns`: it is then the difference of `token_time_ns` to the previous
    token of the request, and 0 at index 0, which is what the contract says the column holds.

    Raises:
        ContractError: names the file, the first offending line and column, and what was expected.
    """
    return _read_plain(path) or _read_exactly(path)


def _read_plain(path: Path) -> tuple[pd.DataFrame, bool] | None:
    """The table, or None where it is not written in plain integers or breaks the contract anywhere."""
    if not _is_plain(path):
        return None
    import pyarrow as pa
    from pyarrow import csv

    types = {**dict.fromkeys(COLUMNS, pa.int64()), "token_id": pa.int64()}
    # Without the empty string as a null an empty field is an error, as it is in these columns.
    options = csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False)
    try:
        table = csv.read_csv(path, parse_options=csv.ParseOptions(ignore_empty_lines=False), convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None
    names = table.column_names
    known = all(table.schema.field(name).type == pa.int64() for name in names)
    if len(set(names)) < len(names) or not known or not set(COLUMNS[:3]) <= set(names):
        return None
    columns = {name: table.column(name).to_numpy() for name in COLUMNS if name in names}
    ids, index, times = (columns[name] for name in COLUMNS[:3])
    derived = LATENCY not in columns
    gaps = latencies_ns(begins_request(ids), times)
    if derived:
        columns[LATENCY] = gaps
    numbers = [ids, index, times] + ([table.column("token_id").to_numpy()] if "token_id" in names else [])
    if len(ids) and min(column.min() for column in numbers) < 0:
        return None
    if not all_hold(ids, index, columns[LATENCY], gaps):
        return None
    return pd.DataFrame({name: columns[name] for name in COLUMNS}, copy=False), derived


def _is_plain(path: Path) -> bool:
    """Whether the file is a header of bare names over nothing but digits, commas, minus signs and line ends, the last
    one included."""
    try:
        with path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n") or not header.isascii() or any(mark in header for mark in b"\r \t"):
                return False
            last = header
            while block := file.read(_SCAN_BYTES):
                if block.translate(None, _PLAIN):
                    return False
                last = block
            return last.endswith(b"\n")
    except OSError:
        return False


def _read_exactly(path: Path) -> tuple[pd.DataFrame, bool]:
    required, optional = TokenMetrics.column_types()
    given = {name: kind for name, kind in required.items() if name != LATENCY}
    frame = csv_files.read_csv(path, given, optional={LATENCY: required[LATENCY], **optional})
    derived = LATENCY not in frame
    if derived:
        whole = not frame[list(given)].isna().any(axis=None)
        # Where a value is missing the validation below says so; its own message must not be about the derived column.
        latencies = np.zeros(len(frame), dtype=np.int64)
        if whole:
            ids, times = (frame[name].to_numpy(dtype="int64") for name in ("request_id", "token_time_ns"))
            latencies = latencies_ns(begins_request(ids), times)
        frame[LATENCY] = pd.array(latencies, dtype="Int64")
        frame = validate(TokenMetrics, frame, path)
    else:
        frame = read_table(TokenMetrics, path)
    return pd.DataFrame({name: frame[name].to_numpy(dtype="int64") for name in COLUMNS}), derived
