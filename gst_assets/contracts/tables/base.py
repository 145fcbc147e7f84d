"""What every contract table is: a Pandera model that knows its file, its columns and their types."""

import numpy as np
import pandas as pd
import pandera.pandas as pa

from gst_assets.contracts import csv_files

Int = pd.Int64Dtype


class Table(pa.DataFrameModel):
    """Base of the contract tables. Columns the contract does not know are allowed and not changed."""

    class Config:
        strict = False
        coerce = False
        unique_column_names = True

    @classmethod
    def file_name(cls) -> str:
        """The file this table is stored in, e.g. `request_metrics.csv`."""
        return str(cls.to_schema().name)

    @classmethod
    def column_types(cls) -> tuple[dict[str, str], dict[str, str]]:
        """Required and optional columns in contract order, each mapped to a `csv_files` type."""
        required: dict[str, str] = {}
        optional: dict[str, str] = {}
        for name, column in cls.to_schema().columns.items():
            (required if column.required else optional)[name] = _csv_type(str(column.dtype))
        return required, optional

    @pa.dataframe_check(error="every number must be finite")
    def numbers_are_finite(cls, df: pd.DataFrame) -> pd.Series:
        known = set(cls.to_schema().columns)
        good = np.ones(len(df), dtype=bool)
        for name in float_columns(df):
            if name in known:
                good &= ~np.isinf(df[name].to_numpy())
        return pd.Series(good, index=df.index)


class FilledTable(Table):
    """Base of the tables that must have a row: no workload and no run is empty."""

    @pa.dataframe_check(error="there must be at least one row")
    def has_rows(cls, df: pd.DataFrame) -> bool:
        return len(df) > 0


def _csv_type(dtype: str) -> str:
    if dtype.startswith("Int64"):
        return csv_files.INTEGER
    if dtype == "float64":
        return csv_files.FLOAT
    if dtype == "bool":
        return csv_files.BOOLEAN
    return csv_files.STRING


def float_columns(frame: pd.DataFrame) -> list[str]:
    """Names of the columns of 64-bit floats, in order."""
    return [str(name) for name, dtype in frame.dtypes.items() if dtype == np.float64]


def gap_free(df: pd.DataFrame) -> pd.Series:
    """For each row, whether its `request_id` is its position: 0..N-1, ascending, without gaps."""
    return pd.Series(df["request_id"].to_numpy(dtype="int64", na_value=-1) == np.arange(len(df)), index=df.index)
