"""What every section of a scenario is: frozen, without unknown keys, its numbers within bounds.

What the settings mean belongs to the sections.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all scenario sections: frozen; an unknown key and a number that is not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _not_vanishing(rate_per_s: float) -> float:
    if rate_per_s < _LOWEST_RATE:
        raise ValueError(f"expected at least {_LOWEST_RATE:g} per second, found {rate_per_s:g}")
    return rate_per_s


# Results of numbers within these bounds neither overflow nor vanish, in 64-bit integers and floats; all are
# far beyond any use.
MOST_REQUESTS = 10**7
_LOWEST_RATE = 1e-15
MOST_TOKENS = 2**31 - 1
Rate = Annotated[float, Field(gt=0, le=1e9), AfterValidator(_not_vanishing)]
RateOrZero = Annotated[float, Field(ge=0, le=1e9)]
Duration = Annotated[float, Field(ge=1e-9, le=1e12)]
Tokens = Annotated[int, Field(gt=0, le=MOST_TOKENS)]
