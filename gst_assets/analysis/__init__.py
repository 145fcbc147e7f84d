"""Comparing real runs with simulated ones: alignment, latencies, errors, verdict, figures and the report.

Reads run directories and writes a comparison directory; runs no engine and no simulation, and knows no Dagster.
"""
