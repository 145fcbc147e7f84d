"""gst_assets: how far is the Vidur LLM-inference simulator from a real engine?

Domain packages (`workload`, `engine`, `profiling`, `vidur_adapter`, `analysis`, `contracts`) know nothing of
Dagster; `assets` and the modules beside it turn them into a Dagster asset graph. See docs/architecture.md.
"""

__version__ = "0.1.0"
