"""Helpers that the tests share with `benchmarks/`, `scripts/` and the pages of `docs/`: real services, a browser, and
inputs made by formulas.

The rest of the package imports nothing from here (import-linter holds that). What only tests use stands in
`gst_assets_tests/`. Needs the extra `testing`.
"""
