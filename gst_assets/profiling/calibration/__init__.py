"""Calibration: what the running engine is given so that its steps show what their parts cost, and the tables made of
it.

Three kinds of stretches are played in each of `ROUNDS` rounds, so that a disturbance does not fall on one of them
alone, and nothing of a comparison's workload is in them:

- a ladder of lone prompts, one for each captured graph size and beyond, with a head start on a GPU: device times of
  every size;
- on a GPU, open-loop traffic with a head start: device times of steps with prompts and decodes, also where the host
  decides how long they take;
- open-loop traffic at several rates and a burst (`traffic`): everything else, at the speed at which host and device
  serve.

What a step's parts are belongs to `step_samples`, operator times to `operator_tables`, how a simulation uses the tables
to `vidur_adapter`.
"""

from gst_assets.profiling.calibration.collect import Driven
from gst_assets.profiling.calibration.drive import Calibrator, WatchedEngine
from gst_assets.profiling.calibration.plan import BURST, HEAD_START, LADDER, ROUNDS, TRAFFIC, ladder_sizes
from gst_assets.profiling.calibration.stretches import Round, SeenRequest, Stretch

__all__ = [
    "BURST", "HEAD_START", "LADDER", "ROUNDS", "TRAFFIC", "Calibrator", "Driven", "Round", "SeenRequest", "Stretch",
    "WatchedEngine", "ladder_sizes",
]  # fmt: skip
