"""gst_assets: how far is the Vidur LLM-inference simulator from a real engine?

Domain packages (`workload`, `engine`, `profiling`, `vidur_adapter`, `analysis`, `contracts`) know nothing of
Dagster; `assets` and the modules beside it turn them into a Dagster asset graph. See docs/architecture.md.
What other programs may rely on is in `gst_assets.api` (docs/api.md), the command `gst` (docs/commands.md) and the
artifact contract (docs/contract.md).
"""

__version__ = "0.1.0"
