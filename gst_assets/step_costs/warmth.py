"""How hard the device has just worked: many tokens in a step draw the power that its clock is then lowered for.

On an H200 at its 700 W a prompt of 2,048 tokens of Qwen3-8B took 14 % longer behind another prompt than behind decodes
or a rest, and work more than some 20 to 50 ms before made no difference. A decode step right behind prompts
takes 3 to 5 % longer (H100 and H200). What that costs a step is part of term `device` (feature `warm_token`; of decode
steps `warmth`).
"""

from __future__ import annotations

from math import exp

_TIME_CONSTANT_NS = 30e6
_MANY_TOKENS = 256
"""Steps with more new tokens are bound by arithmetic, not by memory, and draw full power."""


class Warmth:
    """Share of the last moments that the device spent in steps of many tokens, weighted exponentially (0: none, 1:
    all)."""

    def __init__(self) -> None:
        self._share, self._at_ns = 0.0, 0.0

    def at(self, time_ns: float) -> float:
        """At the begin of a step, in ns on the clock of `ran`; not before the last step's end."""
        return self._share * exp(-(time_ns - self._at_ns) / _TIME_CONSTANT_NS)

    def ran(self, begun_ns: float, ended_ns: float, num_tokens: int) -> None:
        """The device ran a step of so many new tokens."""
        kept = exp(-(ended_ns - begun_ns) / _TIME_CONSTANT_NS)
        load = 1.0 if num_tokens > _MANY_TOKENS else 0.0
        self._share = self.at(begun_ns) * kept + load * (1.0 - kept)
        self._at_ns = ended_ns
