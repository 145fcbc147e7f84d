"""The artifact contract: names, columns, types and invariants of everything written to disk.

`tables` (Pandera model per table), `documents` (pydantic model per JSON file), `csv_files` (the one CSV reader and
writer) and `store` (directories that appear completely or not at all). Nothing here computes a result.
"""
