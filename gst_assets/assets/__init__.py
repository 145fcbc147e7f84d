"""The Dagster assets, one module per entity. Assets are thin: read, compute, validate, commit, return metadata."""
