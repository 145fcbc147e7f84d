"""The highest rate at which scheduling delay stays bounded: the search, its probes on an engine and in a simulation,
and its report.

`search`, `engine_probe` and `capacity_report` are importable on a bare GPU host; `simulated_probe` needs Vidur.
"""
