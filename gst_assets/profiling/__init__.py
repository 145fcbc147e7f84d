"""Measuring a Vidur profiling bundle on this machine: operator times, whole engine steps, and how the two agree.

`worker_ops` times the engine's own modules inside its worker, `operator_tables` turns that into tables, `calibration`
drives whole engine steps, (`traffic` what they are given, `step_samples` what their parts took, `term_fit` the terms
made of that), `coverage` compares operators with whole steps, `measure_bundle` is the command.
Reading a bundle and whether it serves a scenario belong to `step_costs.bundle`, how Vidur uses it to `vidur_adapter`.
Importable on a GPU host (no dagster, pandera, vidur or omegaconf).
"""
