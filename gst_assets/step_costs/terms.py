"""The terms of overheads.csv: what the parts of a step cost by what the step holds, as curves and slopes.

A term is `base at a position + slope at that position x feature + ...` (`contracts.tables.Overheads`). Fitting belongs
to `profiling.term_fit`; how the parts of a step add up to its time belongs to `engine_costs` and to the clock of a
simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gst_assets.errors import ProfileError
from gst_assets.step_costs.interpolation import HeldCurve
from gst_assets.step_costs.shapes import DECODE, CapturedGraphs, StepShape

ANY_KIND = "any"
BASE = "base"
REREAD = "reread_context_token"
FORM = "form"
"""Term of engines whose workers are processes of their own."""


class Features(NamedTuple):
    """What slopes are of; the names of the fields are the values of column `feature`."""

    prefill_request: int
    prefill_token: int
    decode_request: int
    decode_context_token: int
    """Of what decodes share in a prefix cache each token counts once."""
    attention_pair: int
    """See `shapes.attention_pairs`; of the prompts in the step."""
    warm_token: float = 0.0
    """New tokens of the step times the device's warmth (`warmth.Warmth`) when it begins."""
    warmth: float = 0.0
    reread_context_token: int = 0
    """See `shapes.StepShape.reread_context_tokens`: near the device after the first decode read it."""

    def at_warmth(self, warmth: float) -> Features:
        """The same of a step that finds the device this warm."""
        return self._replace(warm_token=(self.prefill_token + self.decode_request) * warmth, warmth=warmth)


_POSITION_BY_REQUESTS = ("process", "copy_out", "form")
_HOST_SLOPES = ("prefill_request", "prefill_token", "decode_request")


def features(shape: StepShape, warmth: float = 0.0) -> Features:
    """Of a step that finds the device this warm."""
    return Features(
        len(shape.chunks),
        shape.num_prefill_tokens,
        shape.num_decodes,
        shape.decode_context_tokens - shape.reread_context_tokens,
        shape.num_attention_pairs,
        reread_context_token=shape.reread_context_tokens,
    ).at_warmth(warmth)


def slopes_of(term: str, kind: str) -> tuple[str, ...]:
    """The features that the term has a slope for in steps of a kind."""
    if term == "device":
        return (
            ("decode_context_token", REREAD, "warmth")
            if kind == DECODE
            else ("prefill_request", "decode_request", "decode_context_token", REREAD, "attention_pair", "warm_token")
        )
    return _HOST_SLOPES if term in ("prepare", "launch") and kind != DECODE else ()


def position_of(term: str, kind: str, step: Features, graphs: CapturedGraphs) -> float:
    """Where on its base curve the term of a step lies: tokens that the device processes, requests, or 0 where the base
    is one value."""
    if term == "device":
        return float(graphs.padded(step.prefill_token + step.decode_request))
    if term in _POSITION_BY_REQUESTS:
        return float(step.prefill_request + step.decode_request)
    return float(step.decode_request) if kind == DECODE and term in ("prepare", "launch") else 0.0


class Term:
    """One term for steps of one kind."""

    def __init__(self, base: HeldCurve, largest_position: float, slopes: Mapping[str, HeldCurve]) -> None:
        """`slopes` by feature, each a curve over the position as `base` is."""
        self.base, self.largest_position, self._slopes = base, largest_position, slopes
        self._places = [Features._fields.index(name) for name in slopes]

    def ns(self, position: float, step: Features) -> float:
        """Of a step at a position (`position_of`)."""
        found = self.base.at(position)
        for place, slope in zip(self._places, self._slopes.values(), strict=True):
            found += slope.at(position) * step[place]
        return found

    def slope_over(self, feature: str, size: int) -> NDArray[np.float64]:
        """`slope` at the positions 0, 1, ... `size` - 1."""
        return self._slopes[feature].over(size) if feature in self._slopes else np.zeros(size)

    def slope(self, feature: str, position: float) -> float:
        """By how many ns the term grows with each unit of a feature; 0 for one that it has no slope for, as in `ns`."""
        return self._slopes[feature].at(position) if feature in self._slopes else 0.0


class Terms:
    """All terms of a bundle."""

    def __init__(self, overheads: pd.DataFrame, graphs: CapturedGraphs, where: str) -> None:
        """`overheads` is `contracts.tables.Overheads`; `where` names it in errors."""
        self._graphs, self._where = graphs, where
        self._terms: dict[tuple[str, str], Term] = {}
        points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
        columns = ("term", "step_kind", "feature", "position", "ns")
        for term, kind, feature, position, ns in zip(*(overheads[name].tolist() for name in columns), strict=True):
            points.setdefault((term, kind), {}).setdefault(feature, []).append((position, ns))
        for (term, kind), by_feature in sorted(points.items()):
            if BASE not in by_feature:
                raise ProfileError(
                    f"{where}: term {term} of step_kind {kind} has no row with feature {BASE}. Profile again."
                )
            curves = {
                feature: HeldCurve(*zip(*sorted(found), strict=True)) for feature, found in sorted(by_feature.items())
            }
            # Where the calibration shared nothing it is not known what sharing saves, so nothing is saved.
            if "decode_context_token" in curves:
                curves.setdefault(REREAD, curves["decode_context_token"])
            largest = float(max(position for position, _ in by_feature[BASE]))
            base = curves.pop(BASE)
            self._terms[term, kind] = Term(base, largest, dict(sorted(curves.items())))

    def require(self, wanted: Sequence[tuple[str, str]]) -> None:
        """Raises:
        ProfileError: a (term, step kind) has no rows.
        """
        missing = [f"{term} rows of step_kind {kind}" for term, kind in wanted if (term, kind) not in self._terms]
        if missing:
            raise ProfileError(
                f"{self._where}: no {', no '.join(missing)}, which variant calibrated needs. Profile again."
            )

    def has(self, term: str) -> bool:
        """Whether there are rows of the term under step_kind `any`."""
        return (term, ANY_KIND) in self._terms

    def of(self, term: str, kind: str = ANY_KIND) -> Term:
        """A term that `require` found."""
        return self._terms[term, kind]

    def for_kind(self, term: str, kind: str) -> Term:
        """A term that `require` found, as steps of a kind have it."""
        return self._terms[term, kind if (term, kind) in self._terms else ANY_KIND]

    def step_ns(self, term: str, kind: str, step: Features) -> float:
        """The term of a step of a kind."""
        own = kind if (term, kind) in self._terms else ANY_KIND
        return self._terms[term, own].ns(position_of(term, own, step, self._graphs), step)
