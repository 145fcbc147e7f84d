"""The deterministic workload: prompts, their token lengths, and when each request arrives.

`build` makes a workload directory, `load` reads one, `tokenized.requests_of` turns it into what an engine is given. The
same directory drives the real engine and the simulator. Running it belongs to `engine` and `vidur_adapter`.
"""

from gst_assets.workload.building import build
from gst_assets.workload.spec import load

__all__ = ["build", "load"]
