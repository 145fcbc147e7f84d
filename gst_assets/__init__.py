"""`gst` is the short name of this package, its command `gst`, its variables `GST_*` and its run tags `gst/...`.

The project answers: how far is the Vidur LLM-inference simulator from a real engine? No longer form of `gst` is on
record, so none is given here.

Domain packages (`workload`, `engine`, `profiling`, `vidur_adapter`, `analysis`, `contracts`) know nothing of
Dagster; `assets` and the modules next to it turn them into a Dagster asset graph. See docs/architecture.md.
What other programs may rely on is in `gst_assets.api` (docs/api.md), the command `gst` (docs/commands.md) and the
artifact contract (docs/contract.md).
"""

__version__ = "0.1.0"
