"""The only functions that read and write contract tables, and their validation: a violation in words, with its
place."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from gst_assets.contracts import csv_files
from gst_assets.contracts.tables.base import Table, float_columns
from gst_assets.errors import ContractError


def read_table(model: type[Table], path: Path) -> pd.DataFrame:
    """Read and validate one contract table.

    Raises:
        ContractError: names the file, the first offending line and column, and what was expected.
    """
    required, optional = model.column_types()
    frame = csv_files.read_csv(path, required, optional=optional)
    return _validate(model, frame, path, lambda row: f"line {csv_files.line_of_row(path, row)}")


def write_table(model: type[Table], frame: pd.DataFrame, directory: Path) -> Path:
    """Validate `frame` and write it under its contract name into `directory`; returns the path.

    Raises:
        ContractError: nothing was written; names the first offending row and column, and what was expected.
    """
    path = directory / model.file_name()
    csv_files.write_csv(validate(model, frame, path), path)
    return path


def write_table_parts(model: type[Table], parts: Iterable[pd.DataFrame], directory: Path) -> Path:
    """As `write_table` of the parts one below the other, with one of them in memory at a time. `model` has integers
    alone; its rules hold of the whole where they hold of each part.

    Raises:
        ContractError: as `write_table`, with the row's position in its part; the parts before it were written.
    """
    path = directory / model.file_name()
    csv_files.write_integers((validate(model, part, path) for part in parts), path)
    return path


def validate(model: type[Table], frame: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    """Validate `frame` against `model`; `path` is only named in the error.

    Raises:
        ContractError: the first violation, with row (position from 0), column and value.
    """
    return _validate(model, frame, path, lambda row: f"row {row}")


def _validate(model: type[Table], frame: pd.DataFrame, path: Path | str, place: Callable[[int], str]) -> pd.DataFrame:
    if _holds(model, frame):
        return frame
    try:
        return model.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        # Lazily, so that the cause is reported and not its consequences: a missing value also breaks sums and orders.
        first = min(error.schema_errors, key=lambda one: _BY_CAUSE.get(one.reason_code, len(_BY_CAUSE)))
        described, bad = _describe(first, frame, place)
        raise ContractError(f"{path}: {described}", _sample(frame, bad)) from None


def _holds(model: type[Table], frame: pd.DataFrame) -> bool:
    """Whether every rule of the model is seen to hold, in a hundredth of the time that pandera takes for a small table.
    Where one does not, or is not known here, pandera decides, and finds the words."""
    schema = model.to_schema()
    if frame.columns.has_duplicates or (schema.strict or schema.coerce or schema.index is not None):
        return False
    if schema.unique or schema.ordered or schema.parsers or any(one.parsers for one in schema.columns.values()):
        return False  # no model has any of these
    for name, column in schema.columns.items():
        if name not in frame.columns:
            if column.required:
                return False
            continue
        values = frame[name]
        if not _has_type(values, str(column.dtype)) or (not column.nullable and values.isna().any()):
            return False
        if column.unique and values.duplicated().any():
            return False
        if not all(_is_kept(check, values.dropna() if column.nullable else values) for check in column.checks):
            return False
    return all(bool(np.all(getattr(model, str(check.name))(frame))) for check in schema.checks)


def _has_type(values: pd.Series, dtype: str) -> bool:
    if dtype.startswith("str"):
        return isinstance(values.dtype, pd.StringDtype)
    return dtype in ("Int64", "float64", "bool") and str(values.dtype) == dtype


def _is_kept(check: pa.Check, values: pd.Series) -> bool:
    given = check.statistics or {}
    match check.name:
        case "greater_than_or_equal_to":
            return bool((values >= given["min_value"]).all())
        case "greater_than":
            return bool((values > given["min_value"]).all())
        case "less_than_or_equal_to":
            return bool((values <= given["max_value"]).all())
        case "isin":
            return bool(values.isin(list(given["allowed_values"])).all())
        case "str_length" if given.get("max_value") is None and given.get("exact_value") is None:
            return bool((values.str.len() >= given["min_value"]).all())
    return False


_SAMPLE_ROWS = 10
_REASON = pa.errors.SchemaErrorReason
_BY_CAUSE = {
    reason: rank
    for rank, reason in enumerate(
        (
            _REASON.DUPLICATE_COLUMN_LABELS,
            _REASON.COLUMN_NOT_IN_DATAFRAME,
            _REASON.WRONG_DATATYPE,
            _REASON.SERIES_CONTAINS_NULLS,
            _REASON.DATAFRAME_CHECK,
            _REASON.SERIES_CONTAINS_DUPLICATES,
        )
    )
}


def _sample(frame: pd.DataFrame, bad: np.ndarray) -> list[dict[str, object]]:
    """The first offending rows with their position, as text."""
    rows = np.flatnonzero(bad)[:_SAMPLE_ROWS]
    return [
        {"row": int(row), **{str(name): _shown(frame[name].iloc[row]) for name in frame.columns}}
        for row in rows
        if not frame.columns.has_duplicates
    ]


def _describe(error: pa.errors.SchemaError, frame: pd.DataFrame, place: Callable[[int], str]) -> tuple[str, np.ndarray]:
    """One violation in words, with the first offending row by position (never by index label), and which rows
    offend."""
    nowhere = np.zeros(len(frame), dtype=bool)
    column = str(error.schema.name)
    match error.reason_code:
        case _REASON.COLUMN_NOT_IN_DATAFRAME:
            return f"column {error.failure_cases} missing. Write the file with the columns of the contract.", nowhere
        case _REASON.DUPLICATE_COLUMN_LABELS:
            twice = frame.columns[frame.columns.duplicated()]
            return f"column {twice[0]} occurs more than once. Remove all but one.", nowhere
        case _REASON.WRONG_DATATYPE:
            return f"column {column}: found {frame[column].dtype} values, expected {error.schema.dtype}.", nowhere
        case _REASON.SERIES_CONTAINS_NULLS:
            bad, rule = frame[column].isna(), "expected a value in every row"
        case _REASON.SERIES_CONTAINS_DUPLICATES:
            bad, rule = frame[column].duplicated(), "expected no value twice"
        case _ if isinstance(error.check, pa.Check) and isinstance(error.check_output, pd.Series):
            bad, rule = _failed_rows(error.check_output, frame, column), _rule(error.check)
        case _ if isinstance(error.check, pa.Check):
            return f"found {len(frame)} rows, but {error.check.error}.", nowhere
        case _:
            return f"{error}.", nowhere
    row = int(bad.to_numpy(dtype=bool).argmax())
    if column in frame.columns:
        found = f"column {column}: found {_shown(frame[column].iloc[row])}"
    else:
        named = _mentioned(rule, frame) or [name for name in float_columns(frame) if np.isinf(frame[name].iloc[row])]
        found = "found " + ", ".join(f"{name} {_shown(frame[name].iloc[row])}" for name in named)
    more = f" ({int(bad.sum())} rows in all)" if bad.sum() > 1 else ""
    return f"{place(row)}, {found}, {rule}{more}.", bad.to_numpy(dtype=bool)


def _failed_rows(output: pd.Series, frame: pd.DataFrame, column: str) -> pd.Series:
    """Which rows of `frame` failed a check. Pandera leaves rows without a value out of the check of a column."""
    failed = np.zeros(len(frame), dtype=bool)
    checked = (
        np.ones(len(frame), dtype=bool) if len(output) == len(frame) else frame[column].notna().to_numpy(dtype=bool)
    )
    failed[checked] = ~output.fillna(True).to_numpy(dtype=bool)
    return pd.Series(failed)


def _rule(check: pa.Check) -> str:
    given = check.statistics or {}
    match check.name:
        case "greater_than_or_equal_to":
            return f"expected at least {given['min_value']}"
        case "greater_than":
            return f"expected more than {given['min_value']}"
        case "less_than_or_equal_to":
            return f"expected at most {given['max_value']}"
        case "isin":
            return f"expected one of {', '.join(map(str, given['allowed_values']))}"
        case "str_length":
            return f"expected text of at least {given['min_value']} character"
    return f"but {check.error}"


def _shown(value: object) -> str:
    if value is pd.NA or value != value:
        return "no value"
    return repr(value) if isinstance(value, str) else str(value)


def _mentioned(rule: str, frame: pd.DataFrame) -> list[str]:
    """The columns that `rule` is about, in its order. Vidur's column names are shown by their middle part."""
    by_word = {str(name).removeprefix("time_stats.").removesuffix(".median"): str(name) for name in frame.columns}
    return list(dict.fromkeys(by_word[word] for word in re.findall(r"\w+", rule) if word in by_word))


def column_descriptions(model: type[Table]) -> Mapping[str, str]:
    """Column name to description, for a UI."""
    return {name: column.description or "" for name, column in model.to_schema().columns.items()}
