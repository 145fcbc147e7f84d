"""What calibration plays: rounds of stretches, and the lengths of the ladder's prompts."""

from __future__ import annotations

from gst_assets.contracts.documents import EngineSettings
from gst_assets.scenario import Scenario

ROUNDS = 4
LADDER, HEAD_START, TRAFFIC, BURST = "ladder", "head start", "traffic", "burst"
FLOWING = (TRAFFIC, BURST)


def ladder_sizes(scenario: Scenario, settings: EngineSettings) -> list[int]:
    """Prompt lengths of the ladder: every captured graph size, the scenario's `profile.calibration_prefill_sizes`, and
    a prompt that takes a whole step and one that takes two, as far as the model takes them."""
    whole = settings.max_num_batched_tokens
    sizes = {*settings.cudagraph_capture_sizes, *scenario.profile.calibration_prefill_sizes, whole, 2 * whole}
    return sorted(size for size in sizes if size < settings.max_model_len)
