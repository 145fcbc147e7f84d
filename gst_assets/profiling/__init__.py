"""Measuring a Vidur profiling bundle on this machine: operator times, whole engine steps, and the bundle's own checks.

`worker_ops` times the engine's own modules inside its worker, `operators` turns that into tables, `calibration` drives whole engine steps,
(`traffic` what they are given, `step_samples` what their parts took, `term_fit` the terms made of that), `coverage` holds operators against whole steps,
`bundle` reads and checks a bundle, `run` is the command.
How Vidur uses a bundle belongs to `vidur_adapter`. Importable on a GPU host (no dagster, pandera, vidur or omegaconf).
"""
