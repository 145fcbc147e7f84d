"""What must hold before numbers of a real and a simulated run can be compared. Computes no statistic.

By severity:
- stop (ComparisonError): different workloads, request sets, lengths, models or hardware; a run given twice; a workload
  on which the profile was calibrated. Nothing is written. Names of models and hardware stop only runs that state their
  workload: other programs name them in their own way.
- mark: engine settings that differ from what a simulation assumed, that it did not record, or that were not read back
  from the engine; other kernels, or other ways of the all-reduce, than the profile was measured with; another tensor
  parallel degree, or several replicas simulated; hardware that was only stated; a server that does not report whether
  it uses features that no simulation models; tokens that came over HTTP; a degraded real run; a driver so late that
  lateness alone leaves the pass band; many failed or stopped requests; tokens that mostly came several at a time; no
  warm-up; models or hardware of other names, arrivals further apart than the pass band, turns that wait for other
  answers, or for none; and any of these that a run does not state, since to state the worse must not be worse than to
  state nothing. A marked variant is never a `pass`.
- note: some failed requests or early stops, a few bunched tokens, preemptions, one repeat only, latencies derived from
  token times, a tensor parallel degree above 1 where the other side states none, kernels that one side did not
  record, as earlier versions of this program, what else a run of another program does not state, what could not be
  checked.

A check belongs to the variants it is about (settings, preemptions), or to all. A mark counts for those variants only;
for a reader of another it is a note.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from gst_assets.analysis.alignment import (
    KEY,
    Counts,
    check_same_workload,
    is_closed_loop,
    is_joined_by_name,
    same_turns_wait,
    states_workload,
    tells_requested_lengths,
)
from gst_assets.analysis.bootstrap import Blocks
from gst_assets.analysis.run_reading import RealRun, SimulatedRun
from gst_assets.contracts.documents import (
    KERNEL_SETTINGS,
    NOT_STATED,
    UNKNOWN_KERNELS,
    EngineSettings,
    RunMeta,
    SimulationFacts,
    StatedHardware,
)
from gst_assets.contracts.turns import PREVIOUS, PREVIOUS_TURN_FAILED, WORKLOAD_ARRIVAL
from gst_assets.errors import ComparisonError
from gst_assets.formats import milliseconds, signed_percent, unsigned_percent
from gst_assets.scenario import Bands

Severity = Literal["ok", "note", "mark"]

COMPARED_SETTINGS = (
    "max_num_seqs", "max_num_batched_tokens", "block_size", "num_kv_blocks", "enable_chunked_prefill",
    "enable_prefix_caching", "dtype", "async_scheduling", "enforce_eager", "scheduling_policy",
)  # fmt: skip
"""Keys of `engine_settings` that a simulation must assume with the same value, and record in `simulated_settings`."""

_KERNELS_IN_WORDS = dict(
    zip(
        KERNEL_SETTINGS,
        ("attention kernels", "kernels of quantised weights", "kernel of the experts", "ways of the all-reduce"),
        strict=True,
    )
)
_NOT_RECORDED = "not recorded"

QUEUED = "queued_time_ns"
PREEMPTIONS = "preemptions"
"""The check that counts the preemptions of both sides."""
TTFT_TWICE = "TTFT from arrival / from queueing"
"""The check that reports TTFT by both definitions."""
MANY = 0.05
"""Share of the requests beyond which failures or early stops mark a comparison: then the two sides carried different
loads."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: a row of `contracts.tables.GateChecks`. `finding` is empty where it is in order;
    `variants` are those it is about, empty: all."""

    check: str
    run: str
    severity: Severity
    real: str
    simulated: str
    finding: str = ""
    variants: tuple[str, ...] = ()

    def marks(self, variant: str) -> bool:
        """Whether it keeps this variant from being a pass."""
        return self.severity == "mark" and (not self.variants or variant in self.variants)

    def seen_from(self, variant: str) -> Check:
        """The check as a reader of this variant takes it: the marks of others are notes."""
        return self if self.severity != "mark" or self.marks(variant) else replace(self, severity="note")


# --- stop -------------------------------------------------------------------------------------------------------------


def check_comparable(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    calibration_sha256: Collection[str] | None,
) -> None:
    """The runs are of one workload, model and device, and the profile never saw the workload. Lengths are checked by
    `alignment.align`.

    Raises:
        ComparisonError: names the runs and what differs, or no run on one of the sides.
    """
    if not real_repeats:
        raise ComparisonError("no real run given, expected at least one directory under real_runs/.")
    if not simulations:
        raise ComparisonError("no simulation given, expected at least one directory under vidur_runs/.")
    ids = [run.meta.run_id for run in real_repeats]
    twice = [run_id for run_id in ids if ids.count(run_id) > 1]
    if twice:
        where = dict.fromkeys(str(run.directory) for run in real_repeats if run.meta.run_id == twice[0])
        raise ComparisonError(
            f"real run {twice[0]} is given more than once ({', '.join(where)}), which would hide the spread between"
            " repeats. Name it once; where they are two runs, import each into a directory of its own name."
        )
    for number, later in enumerate(real_repeats):
        for earlier in real_repeats[:number]:
            if _is_one_measurement(earlier, later):
                raise ComparisonError(
                    f"{earlier.directory} and {later.directory} are imported from the same results, which would hide"
                    " the spread between repeats. Name one of them."
                )
    both = [variant for variant in simulations if variant in ids]
    if both:
        raise ComparisonError(
            f"a real run and a simulation are both called {both[0]}, and reports distinguish them by name. Name the"
            " simulation otherwise: NAME=DIR."
        )
    for variant, sim in simulations.items():
        if sim.meta.variant not in (None, variant):
            raise ComparisonError(f"{sim.directory} is of variant {sim.meta.variant!r}, but was given as {variant!r}.")
    runs: list[RealRun | SimulatedRun] = [*real_repeats, *simulations.values()]
    check_same_workload([run.meta for run in runs])
    for other in runs[1:]:
        _check_same_subject(real_repeats[0], other)
    _check_not_calibrated_on(real_repeats[0], calibration_sha256)


def _is_one_measurement(one: RealRun, two: RealRun) -> bool:
    """Imports of the same file, and of the same part of it: two measurements never agree to the nanosecond."""
    sources = [run.meta.imported.source_sha256 if run.meta.imported else None for run in (one, two)]
    return (
        sources[0] is not None and sources[0] == sources[1] and one.requests["ttft_ns"].equals(two.requests["ttft_ns"])
    )


def _check_same_subject(first: RealRun | SimulatedRun, other: RealRun | SimulatedRun) -> None:
    """Same model and same device, of runs that state their workload; names given by other programs are reported, not
    held against each other."""
    one, two = first.meta, other.meta
    if not states_workload(first, other):
        return
    if one.model != two.model:
        raise ComparisonError(
            f"run {one.run_id} is of model {one.model}, run {two.run_id} of model {two.model}. Compare runs of one"
            " model."
        )
    for key in ("geometry", "dtype"):
        shapes = [meta.params.get("model", {}).get(key) for meta in (one, two)]
        # Runs written by other programs may not record it; then only the name can be compared.
        if None not in shapes and shapes[0] != shapes[1]:
            raise ComparisonError(
                f"run {one.run_id} is of model.{key} {shapes[0]}, run {two.run_id} of {shapes[1]}. Compare runs of one"
                " model."
            )
    # A key that is left out where nothing is quantised: only a run that states its dtype also says that.
    models = [meta.params.get("model", {}) for meta in (one, two)]
    quantised = [model.get("quantization") or "none" for model in models]
    if all("dtype" in model for model in models) and quantised[0] != quantised[1]:
        raise ComparisonError(
            f"run {one.run_id} is of model.quantization {quantised[0]}, run {two.run_id} of {quantised[1]}. Compare"
            " runs of one model."
        )
    if not _same_device(one.hardware, two.hardware):
        verb, remedy = (
            ("was simulated for", "Simulate with a profile made on the hardware of the real run.")
            if two.run_type == "vidur"
            else ("was measured on", "Repeats must come from one machine.")
        )
        raise ComparisonError(
            f"run {one.run_id} was measured on {device_of(one)}, run {two.run_id} {verb} {device_of(two)}. {remedy}"
        )


_DEVICE_KEYS = ("hardware_id", "device_name", "device_count")


def _same_device(one: StatedHardware | None, two: StatedHardware | None) -> bool:
    """Whether nothing that both state is different."""
    pairs = [(getattr(one, key, None), getattr(two, key, None)) for key in _DEVICE_KEYS]
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def device_of(meta: RunMeta) -> str:
    """A run's device in words, as far as it is stated."""
    hardware = meta.hardware
    if hardware is None or not (hardware.device_name or hardware.hardware_id):
        return NOT_STATED
    count = "" if hardware.device_count is None else f"{hardware.device_count} x "
    if hardware.device_name is None:
        return f"{count}{hardware.hardware_id}"
    return f"{count}{hardware.device_name}" + (f" ({hardware.hardware_id})" if hardware.hardware_id else "")


def _check_not_calibrated_on(real: RealRun, calibration_sha256: Collection[str] | None) -> None:
    if not calibration_sha256:
        return
    # Here, since few comparisons know what was calibrated on and this imports what builds workloads.
    from gst_assets.workload.digest import workload_digest

    prompts, outputs, arrivals = (
        real.requests[name].to_numpy(dtype="int64")
        for name in ("num_prefill_tokens", "num_decode_tokens", "arrival_time_ns")
    )
    digests = {
        "workload_id": real.meta.workload_id or "",
        "lengths and arrivals": workload_digest(zip(prompts, outputs, strict=True), arrivals - arrivals.min()),
        **real.meta.workload_sha256,
    }
    for name, digest in digests.items():
        if digest in calibration_sha256:
            raise ComparisonError(
                f"workload {real.meta.workload_id} ({name} {digest[:24]}) is one the profile was calibrated on, so the"
                " comparison would only show the fit. Compare on a workload that the calibration never saw."
            )


def check_same_simulation(sim: SimulatedRun, further: Sequence[SimulatedRun]) -> None:
    """Runs under further seeds are of the same variant, workload, subject, profile and settings, each with a seed of
    its own.

    Raises:
        ComparisonError: names the two runs and what differs.
    """
    seen = {seed_of(sim): sim}
    for other in further:
        check_same_workload([sim.meta, other.meta])
        _check_same_subject(sim, other)
        for name, one, two in (
            ("variant", sim.meta.variant, other.meta.variant),
            ("profile", sim.meta.profile_sha256, other.meta.profile_sha256),
        ):
            if one != two:
                raise ComparisonError(
                    f"{sim.directory} and {other.directory} are of {name} {one} and {two}. Simulate one variant with"
                    " one profile under each seed, or name different simulations apart: NAME=DIR."
                )
        if (twice := seen.get(seed_of(other))) is not None:
            raise ComparisonError(
                f"{twice.directory} and {other.directory} are both of variant {sim.meta.variant!r} with seed"
                f" {seed_of(other)}. Name one run a seed, or name different simulations apart: NAME=DIR."
            )
        seen[seed_of(other)] = other


def seed_of(run: SimulatedRun) -> int:
    """The seed a simulation was run with."""
    return int(run.meta.params.get("simulation", {}).get("seed", 0))


# --- mark and note ----------------------------------------------------------------------------------------------------


def settings_parity(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[dict[str, str]]:
    """Rows of `contracts.tables.SettingsParity`: what the engine reported and what each simulation assumed."""
    rows = []
    for variant, sim in simulations.items():
        assumed = sim.meta.simulated_settings
        for name in COMPARED_SETTINGS:
            reported = list(
                dict.fromkeys(
                    NOT_STATED if run.meta.engine_settings is None else getattr(run.meta.engine_settings, name)
                    for run in real_repeats
                )
            )
            if assumed.get(name) is None or reported == [NOT_STATED]:
                parity = "not_recorded"
            else:
                parity = "equal" if reported == [assumed[name]] else "differs"
            rows.append(
                {
                    "variant": variant,
                    "setting": name,
                    "real": " / ".join(str(value) for value in reported),
                    "simulated": "" if assumed.get(name) is None else str(assumed[name]),
                    "parity": parity,
                }
            )
    return rows


def checks(
    real_repeats: Sequence[RealRun],
    simulations: Mapping[str, SimulatedRun],
    counts: Mapping[str, Counts],
    parity: pd.DataFrame,
    bands: Bands,
    calibration_sha256: Collection[str] | None,
) -> list[Check]:
    """Everything that was looked at, in the order of the report. `counts` are the alignment counts of each real run."""
    every = ", ".join(simulations)
    found = [
        *_same_workload(real_repeats, simulations, bands),
        *_sessions(real_repeats, simulations),
        *_closed_loop(real_repeats, simulations),
        *_named_alike(real_repeats, simulations),
        _held_out(calibration_sha256),
        *_settings(parity, every),
        *_degree(real_repeats, simulations),
        *_kernels(real_repeats, simulations),
        *_replicas(simulations),
    ]
    for run in real_repeats:
        found += [
            *_stated(run),
            *_not_told(run),
            *_not_known(run),
            *_transport(run),
            *_degraded(run),
            *_lateness(run, bands),
            *_warmup(run),
            *_failures(run, counts[run.meta.run_id]),
            _early_stops(run, counts[run.meta.run_id]),
            _bunched(run),
        ]
    found += [_self_fit(variant, sim) for variant, sim in simulations.items() if "self_fit_misfits" in _assumed(sim)]
    found += [
        _preemptions(real_repeats, variant, sim.meta.num_preemptions)
        for variant, sim in simulations.items()
        if sim.meta.num_preemptions is not None
    ]
    every_run: list[RealRun | SimulatedRun] = [*real_repeats, *simulations.values()]
    for one in every_run:
        if one.latency_derived:
            text = (
                f"run {one.meta.run_id}: token_metrics.csv has no token_latency_ns; taken as the differences of"
                " token_time_ns"
            )
            found.append(Check("token_latency_ns", one.meta.run_id, "note", "", "", text))
        found += [_unstated(one, text) for text in one.unstated]
    found += [check for run in real_repeats for check in _ttft_from_queue(run, simulations)]
    if len(real_repeats) == 1:
        text = "one real repeat only: no real-against-real spread to read the errors against"
        found.append(Check("repeats", "", "note", "1", "", text))
    else:
        found.append(Check("repeats", "", "ok", str(len(real_repeats)), ""))
    return found


def _same_workload(
    real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun], bands: Bands
) -> list[Check]:
    """That it is one workload, or, where it is not stated, how far the requests agree."""
    first = real_repeats[0]
    every_run: dict[str, RealRun | SimulatedRun] = {run.meta.run_id: run for run in real_repeats[1:]} | dict(
        simulations
    )
    if states_workload(first, *every_run.values()):
        workload = str(first.meta.workload_id)
        return [Check("workload", ", ".join(simulations), "ok", workload, workload)]
    found = []
    for name, run in every_run.items():
        if states_workload(first, run):
            continue
        key = KEY if is_joined_by_name(first, run) else "request_id"
        about = (name,) if name in simulations else ()
        text = f"{name}: not every run states its workload; requests are joined by {key}, prompt lengths are the same"
        found.append(
            Check(
                "workload",
                name,
                "note",
                first.meta.workload_id or NOT_STATED,
                run.meta.workload_id or NOT_STATED,
                text,
                about,
            )
        )
        found.append(_arrivals(first, name, run, bands, about))
    return found


def _arrivals(first: RealRun, name: str, run: RealRun | SimulatedRun, bands: Bands, about: tuple[str, ...]) -> Check:
    """Runs of one workload by their requests only: how far are their arrivals apart? Later turns of a closed loop
    arrive when their own side has answered, so of two closed loops the workload's times are compared, and of a
    closed and an open one only the requests that wait on neither side."""
    if len(first.requests) != len(run.requests):
        return Check(
            "arrivals", name, "note", "", "", f"{name}: another number of requests, so arrivals are not compared", about
        )
    closed = [one for one in (first, run) if is_closed_loop(one)]
    column, what = (
        (WORKLOAD_ARRIVAL, "the workload's arrivals") if len(closed) == 2 else ("arrival_time_ns", "arrivals")
    )
    apart = np.abs((first.requests[column] - run.requests[column]).to_numpy(dtype="float64"))
    if len(closed) == 1:
        apart, what = apart[closed[0].requests[PREVIOUS].isna().to_numpy()], "arrivals of first turns"
    if not apart.any():
        return Check("arrivals", name, "ok", "the same", "the same", variants=about)
    median, worst = float(np.median(apart)), float(apart.max())
    told = f"up to {milliseconds(worst, '.2f')} ms, P50 {milliseconds(median, '.2f')} ms apart"
    ttft = float(first.requests["ttft_ns"].dropna().astype("float64").median())
    severity: Severity = "mark" if median > bands.pass_band * ttft else "note"
    text = (
        f"{name}: {what} are {told} from those of {first.meta.run_id}; each latency counts from its own side's arrival"
    )
    return Check("arrivals", name, severity, "", told, text, about)


CLOSED_LOOP = "closed loop in sessions"
"""The check that says that turns wait for answers, and how far the two sides' arrivals come apart."""


def _sessions(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """One mark for each run in which other turns wait for answers than in the first real one. Runs that state their
    workload are refused for it (`alignment`)."""
    first, found = real_repeats[0], []
    others: dict[str, RealRun | SimulatedRun] = {run.meta.run_id: run for run in real_repeats[1:]} | dict(simulations)
    for name, run in others.items():
        closed = [is_closed_loop(one) for one in (first, run)]
        if states_workload(first, run) or not any(closed) or same_turns_wait(first, run):
            continue
        real, told = ("turns wait" if waits else "no turn is stated to wait" for waits in closed)
        if all(closed):
            text = f"{name}: its turns wait for other answers ({PREVIOUS}) than those of {first.meta.run_id}"
        else:
            waits, free = (first.meta.run_id, name) if closed[0] else (name, first.meta.run_id)
            text = (
                f"{name}: turns of {waits} wait for the answers before them ({PREVIOUS}), none of {free} is stated to"
            )
        text += ", so the two may have carried different loads"
        found.append(Check("same sessions", name, "mark", real, told, text, _about(name, simulations)))
    return found


def _closed_loop(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """What it means that turns wait for answers, and by how much it moved their arrivals: simulated ones against the
    median repeat, and repeats against each other."""
    first = real_repeats[0]
    if not is_closed_loop(first):
        return []
    alike = [run for run in real_repeats if same_turns_wait(first, run)]  # `_sessions` marks the others
    arrivals = np.array([run.requests["arrival_time_ns"].to_numpy(dtype="float64") for run in alike])
    answered = np.all([run.requests["status"] == "ok" for run in alike], axis=0)
    compared = answered & first.requests[PREVIOUS].notna().to_numpy()
    against = first.meta.run_id if len(alike) == 1 else f"the median of {len(alike)} repeats"
    found = []
    for variant, sim in simulations.items():
        if not same_turns_wait(first, sim):
            continue
        both = compared & (sim.requests["status"] == "ok").to_numpy()
        told, own = "no later turn was compared", ""
        if both.any():
            apart = sim.requests["arrival_time_ns"].to_numpy(dtype="float64")[both] - np.median(
                arrivals[:, both], axis=0
            )
            ends = [milliseconds(float(np.percentile(apart, at)), "+.1f") for at in (0, 50, 100)]
            told = f"{len(apart)} later turns arrived {ends[1]} ms apart at P50 ({ends[0]} to {ends[2]} ms, + is later)"
            if len(alike) > 1:
                spread = np.ptp(arrivals[:, both], axis=0)
                middle, most = (milliseconds(float(one), ".1f") for one in (np.median(spread), spread.max()))
                own = f"repeats {middle} ms apart at P50, up to {most} ms"
        text = (
            f"{variant}: turns wait for the answers before them, so later turns arrive later where a side is slower."
            f" Simulated, against {against}: {told}{own and f'; the {own}'}. Each latency counts from its own side's"
            " arrival; a slower side also meets less load, so a difference in speed is partly in throughput"
            f"{_unsent(real_repeats)}"
        )
        found.append(Check(CLOSED_LOOP, variant, "note", own, told, text, (variant,)))
    return found


def _unsent(real_repeats: Sequence[RealRun]) -> str:
    """How many turns an engine was not asked, because the one before failed; the simulation is asked them."""
    numbers = {
        run.meta.run_id: int((run.requests["error_type"] == PREVIOUS_TURN_FAILED).sum())
        for run in real_repeats
        if "error_type" in run.requests
    }
    told = ", ".join(f"{number} in {run_id}" for run_id, number in numbers.items() if number)
    if not told:
        return ""
    return (
        f". Turns that were not sent, because the one before failed ({PREVIOUS_TURN_FAILED}): {told}; the simulation"
        " carries them, the engine did not"
    )


def _named_alike(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """Model and hardware by the names that the runs give them."""
    first, every = real_repeats[0], ", ".join(simulations)
    others: dict[str, RealRun | SimulatedRun] = {run.meta.run_id: run for run in real_repeats[1:]} | dict(simulations)
    found, device = [], device_of(first.meta)
    models = [first.meta.model, *(run.meta.model for run in others.values())]
    odd_models = {name: run for name, run in others.items() if run.meta.model != first.meta.model}
    if NOT_STATED in models:
        text = "not every run states its model, so it is not known whether it is the same"
        found.append(Check("model", every, "mark", models[0], ", ".join(dict.fromkeys(models[1:])), text))
        odd_models = {}
    elif not odd_models:
        found.append(Check("model", every, "ok", first.meta.model, first.meta.model))
    for name, run in odd_models.items():
        text = (
            f"{name}: model is named {run.meta.model}, that of the real run {first.meta.model}; not checked that they"
            " are one"
        )
        found.append(Check("model", name, "mark", first.meta.model, run.meta.model, text, _about(name, simulations)))
    odd_devices = {
        name: run for name, run in others.items() if not _same_device(first.meta.hardware, run.meta.hardware)
    }
    for name, run in odd_devices.items():
        theirs = device_of(run.meta)
        text = f"{name}: hardware is {theirs}, that of the real run {device}; not checked that they are one"
        found.append(Check("hardware", name, "mark", device, theirs, text, _about(name, simulations)))
    told = {name: device_of(run.meta) for name, run in others.items()}
    # Of real runs `_not_known` says it.
    silent = [name for name in simulations if told[name] == NOT_STATED]
    for name in silent:
        text = f"{name}: hardware not stated, so it is not known whether it is that of the real run"
        found.append(Check("hardware", name, "mark", device, NOT_STATED, text, _about(name, simulations)))
    if not odd_devices and not silent and device != NOT_STATED:
        found.append(Check("hardware", every, "ok", device, ", ".join(dict.fromkeys(told.values()))))
    return found


def _about(name: str, simulations: Mapping[str, SimulatedRun]) -> tuple[str, ...]:
    return (name,) if name in simulations else ()


def _unstated(run: RealRun | SimulatedRun, text: str) -> Check:
    """Something that a run of another program does not state."""
    about = (run.meta.variant,) if isinstance(run.meta, SimulationFacts) and run.meta.variant else ()
    return Check("stated", run.meta.run_id, "note", "", "", f"run {run.meta.run_id}: {text}", about)


def _ttft_from_queue(run: RealRun, simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """TTFT under the other definition, where the engine reported when it queued a request: from there on, as other
    projects count it."""
    if QUEUED not in run.requests or run.requests[QUEUED].isna().all():
        return []
    told = run.requests[[QUEUED, "first_token_time_ns", "ttft_ns"]].dropna().astype("int64")
    queued = (told["first_token_time_ns"] - told[QUEUED]).to_numpy(dtype="float64")
    arrived = told["ttft_ns"].to_numpy(dtype="float64")
    found = []
    for variant, sim in simulations.items():
        simulated = sim.requests["ttft_ns"].iloc[told.index].dropna().to_numpy(dtype="float64")
        parts, ours, theirs = [], [], []
        for at in (50, 90, 99):
            one, other, mine = (float(np.percentile(values, at)) for values in (arrived, queued, simulated))
            errors = [signed_percent((mine - real) / real) if real > 0 else "no error, real 0" for real in (one, other)]
            parts.append(
                f"P{at} {milliseconds(one, '.1f')} ms from arrival ({errors[0]}), {milliseconds(other, '.1f')} ms from"
                f" queueing ({errors[1]})"
            )
            ours.append(f"P{at} {one / 1e6:.1f} / {milliseconds(other, '.1f')} ms")
            theirs.append(f"P{at} {milliseconds(mine, '.1f')} ms")
        text = (
            f"real run {run.meta.run_id}, TTFT by both definitions, error of {variant} in brackets: {'; '.join(parts)}."
            " Cells are from arrival"
        )
        found.append(
            Check(
                TTFT_TWICE,
                run.meta.run_id,
                "note",
                ", ".join(ours),
                ", ".join(theirs),
                text,
                (variant,),
            )
        )
    return found


def _assumed(sim: SimulatedRun) -> dict[str, Any]:
    return sim.meta.simulated_settings


def _self_fit(variant: str, sim: SimulatedRun) -> Check:
    """What the profile, simulated on its own calibration traffic, did not fit (`vidur_adapter.self_fit`)."""
    misfits: list[str] = _assumed(sim)["self_fit_misfits"]
    if not misfits:
        return Check("profile fits its calibration", variant, "ok", "", "every statistic")
    text = f"{variant}: the profile does not fit the traffic it was calibrated on: {'; '.join(misfits)}"
    return Check("profile fits its calibration", variant, "note", "", f"{len(misfits)} statistics do not", text)


def _held_out(calibration_sha256: Collection[str] | None) -> Check:
    if calibration_sha256 is None:
        text = "the profile's calibration digests were not available: not checked that this workload is held out"
        return Check("held out from calibration", "", "note", "", "unknown", text)
    return Check("held out from calibration", "", "ok", "", f"{len(calibration_sha256)} calibration digests")


def _settings(parity: pd.DataFrame, every: str) -> list[Check]:
    """One mark per setting and difference, naming every variant that has it. Equal settings stand in their own
    table."""
    found = []
    if (parity["real"] == NOT_STATED).all():
        text = "the engine's settings are not stated, so it is not known whether the simulation assumed the same"
        return [Check("settings", every, "mark", NOT_STATED, "", text)]
    silent = [
        str(name) for name, rows in parity.groupby("variant", sort=False) if (rows["parity"] == "not_recorded").all()
    ]
    for name in silent:
        text = f"{name} does not state the settings it assumed, so it is not known whether they are the engine's"
        found.append(Check("settings", name, "mark", "stated", NOT_STATED, text, (name,)))
    parity = parity[~parity["variant"].isin(silent)]
    unequal = parity.loc[parity["parity"] != "equal"]
    for (setting, real, simulated, kind), rows in unequal.groupby(
        ["setting", "real", "simulated", "parity"], sort=False
    ):
        variants = ", ".join(rows["variant"])
        what = (
            f"simulated with {simulated}"
            if kind == "differs"
            else "not recorded by the simulation, so parity is unknown"
        )
        text = f"setting {setting}: engine {real}, {what} ({variants})"
        found.append(Check("settings", variants, "mark", str(real), str(simulated), text, tuple(rows["variant"])))
    return found


def _degree(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """One mark per simulation of another tensor parallel degree than the engine's, where both sides state one; one
    note per simulation where only some do and one is above 1."""
    degrees = {run.meta.run_id: _degree_of(run) for run in real_repeats}
    stated, found = sorted({degree for degree in degrees.values() if degree is not None}), []
    engine = " / ".join(str(degree) for degree in stated) or NOT_STATED
    silent = [f"real run {run_id}" for run_id, degree in degrees.items() if degree is None]
    for variant, sim in simulations.items():
        assumed = _assumed(sim).get("tensor_parallel_size")
        simulated = NOT_STATED if assumed is None else str(assumed)
        if stated and assumed is not None and stated != [assumed]:
            severity: Severity = "mark"
            text = f"tensor parallel degree: engine {engine}, simulated with {simulated} ({variant})"
        elif (silent or assumed is None) and any(degree not in (None, 1) for degree in (*stated, assumed)):
            severity = "note"
            by = ", ".join([*silent, *([f"simulation {variant}"] if assumed is None else [])])
            text = f"tensor parallel degree not stated by {by}; engine {engine}, simulated {simulated} ({variant})"
        else:
            continue
        found.append(Check("tensor parallel degree", variant, severity, engine, simulated, text, (variant,)))
    return found


def _kernels(real_repeats: Sequence[RealRun], simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """What computed in the engine, and in the one that the profile was measured on: a mark where both are recorded and
    differ, a note where one is not. Engines or simulations that state no settings at all are marked elsewhere."""
    reported = [run.meta.engine_settings for run in real_repeats if run.meta.engine_settings is not None]
    found = []
    for setting, what in _KERNELS_IN_WORDS.items() if reported else ():
        values = [getattr(settings, setting) for settings in reported]
        known = list(dict.fromkeys(value for value in values if value not in (None, UNKNOWN_KERNELS)))
        is_known = len(reported) == len(real_repeats) and not {None, UNKNOWN_KERNELS} & {*values}
        real = " / ".join([*known, *([] if is_known else [_NOT_RECORDED])])
        by_value: dict[str | None, list[str]] = {}
        for variant, sim in simulations.items():
            value = _assumed(sim).get(setting)
            if known or _computes_with(setting, value, reported, [*real_repeats, sim]):
                by_value.setdefault(None if value is None else str(value), []).append(variant)
        for value, variants in by_value.items():
            if value is None and all(simulations[variant].meta.profiling_root is None for variant in variants):
                continue  # of another program, which has no profile
            differs = value is not None and any(one != value for one in known)
            severity: Severity = "mark" if differs else "ok" if is_known and value is not None else "note"
            simulated, names = value or _NOT_RECORDED, ", ".join(variants)
            text = f"{what}: engine {real}, profile measured with {simulated} ({names})"
            finding = "" if severity == "ok" else text
            found.append(Check(what, names, severity, real, simulated, finding, tuple(variants)))
    return found


def _computes_with(
    setting: str,
    value: object | None,
    reported: Sequence[EngineSettings],
    runs: Sequence[RealRun | SimulatedRun],
) -> bool:
    """Whether the real engine has such kernels at all, as far as it is known; `value` is what the simulation states."""
    if setting == "all_reduce":
        degree = 1 if value is None else 2
        return any((settings.tensor_parallel_size or degree) > 1 for settings in reported)
    models = [model for run in runs if isinstance(model := run.meta.params.get("model"), dict)]
    if setting == "quantized_kernels":
        quantised = [
            *(settings.quantization for settings in reported),
            *(model.get("quantization") for model in models),
        ]
        return value is not None or any(quantised)
    if setting == "expert_kernel":
        shapes = [shape for model in models if isinstance(shape := model.get("geometry"), dict)]
        return value is not None or any(shape.get("num_experts") for shape in shapes)
    return True


def _replicas(simulations: Mapping[str, SimulatedRun]) -> list[Check]:
    """One mark per simulation of several replicas: a real run is of one engine, or does not say of how many."""
    found = []
    for variant, sim in simulations.items():
        number = _assumed(sim).get("num_replicas")
        if number not in (None, 1):
            text = f"simulated with {number} replicas ({variant}); not known that as many engines served the real run"
            found.append(Check("replicas", variant, "mark", NOT_STATED, str(number), text, (variant,)))
    return found


def _degree_of(run: RealRun) -> int | None:
    settings = run.meta.engine_settings
    return None if settings is None else settings.tensor_parallel_size


def _stated(run: RealRun) -> list[Check]:
    """Settings and hardware that the scenario states and that were not read back."""
    run_id, found, settings = run.meta.run_id, list[Check](), run.meta.engine_settings
    stated = [name for name in COMPARED_SETTINGS if settings is not None and name in settings.not_read_back]
    if settings is None:
        pass
    elif stated:
        text = f"real run {run_id}: {', '.join(stated)} as the scenario states, not read back from the engine"
        found.append(Check("settings read back", run_id, "mark", ", ".join(stated), "", text))
    else:
        found.append(Check("settings read back", run_id, "ok", "all", ""))
    if run.meta.hardware is not None and run.meta.hardware.stated:
        by = "whoever imported it" if run.meta.imported else "the scenario"
        text = f"real run {run_id}: hardware {run.meta.hardware.hardware_id} is as {by} states, not detected"
        found.append(Check("hardware seen", run_id, "mark", "stated", "", text))
    return found


def _not_told(run: RealRun) -> list[Check]:
    """Features that would make it another engine than the simulated one, and that the server does not report."""
    run_id, settings = run.meta.run_id, run.meta.engine_settings
    missing = settings.not_told if settings else []
    if not missing:
        return []
    text = (
        f"real run {run_id}: {', '.join(missing)} not verified: the server does not report them, and the simulation"
        " models none of them"
    )
    return [Check("one plain engine", run_id, "mark", "not verified", "none", text)]


def _not_known(run: RealRun) -> list[Check]:
    """What is a mark where it is stated, and is not stated: one mark for all of it."""
    meta = run.meta
    unknown = {
        "its hardware": device_of(meta) == NOT_STATED,
        "how tokens came from the engine": _transport_of(run) is None,
        "how late requests were sent": "p50" not in meta.lateness_ns,
        "whether the driver kept up": meta.degraded is None,
        "whether it was warmed up": "num_requests" not in meta.warmup,
        "which requests failed": not run.has_status,
        "how long answers were asked to be": not tells_requested_lengths(run),
    }
    names = [name for name, missing in unknown.items() if missing]
    if not names:
        return []
    text = f"real run {meta.run_id} does not state {' or '.join(filter(None, (', '.join(names[:-1]), names[-1])))}"
    return [Check("not known", meta.run_id, "mark", ", ".join(names), "", text)]


def _transport_of(run: RealRun) -> str | None:
    settings, imported = run.meta.engine_settings, run.meta.imported
    return settings.transport if settings else imported.transport if imported else None


def _transport(run: RealRun) -> list[Check]:
    run_id, transport = run.meta.run_id, _transport_of(run)
    if transport is None:
        return []
    if transport == "in_process":
        return [Check("transport", run_id, "ok", transport, "none")]
    text = (
        f"real run {run_id}: tokens came over {transport}, whose time is in every real latency and in no simulated one"
    )
    return [Check("transport", run_id, "mark", transport, "none", text)]


def _degraded(run: RealRun) -> list[Check]:
    if run.meta.degraded is None:
        return []
    if not run.meta.degraded:
        return [Check("degraded", run.meta.run_id, "ok", "no", "")]
    reasons = getattr(run.meta, "degraded_reasons", None)
    late = run.meta.lateness_ns
    why = (
        f": {'; '.join(reasons)}"
        if reasons
        else f", send lateness P99 {milliseconds(late['p99'], '.1f')} ms"
        if "p99" in late
        else ""
    )
    return [Check("degraded", run.meta.run_id, "mark", "yes", "", f"real run {run.meta.run_id} is degraded{why}")]


def _lateness(run: RealRun, bands: Bands) -> list[Check]:
    """Lateness stays inside the real TTFT and is unknown to the simulation: is its median alone beyond the pass
    band?"""
    run_id, late = run.meta.run_id, run.meta.lateness_ns.get("p50")
    if late is None:
        return []
    median = run.requests["ttft_ns"].dropna().astype("float64").median()
    of_ttft = late / median if median > 0 else math.inf if late else 0.0
    told = f"P50 {milliseconds(late, '.2f')} ms" + (
        f", {unsigned_percent(of_ttft)} of TTFT P50" if math.isfinite(of_ttft) else ""
    )
    if of_ttft <= bands.pass_band:
        return [Check("lateness", run_id, "ok", told, "none")]
    text = f"real run {run_id}: the driver was late by {told}, which is beyond the pass band by itself"
    return [Check("lateness", run_id, "mark", told, "none", text)]


def _warmup(run: RealRun) -> list[Check]:
    run_id, number = run.meta.run_id, run.meta.warmup.get("num_requests")
    if number is None:
        return []
    if number == 0:
        return [Check("warm-up", run_id, "mark", "none", "", f"real run {run_id} was measured without warm-up")]
    return [Check("warm-up", run_id, "ok", f"{number} requests", "")]


def _failures(run: RealRun, counts: Counts) -> list[Check]:
    run_id, lost = run.meta.run_id, counts.num_errors + counts.num_no_token
    if not lost:
        return [Check("failed requests", run_id, "ok", "0", "")] if run.has_status else []
    text = (
        f"real run {run_id}: {counts.num_errors} failed and {counts.num_no_token} gave no token, of"
        f" {counts.num_requests} requests; left out on both sides"
    )
    severity: Severity = "mark" if lost > MANY * counts.num_requests else "note"
    return [Check("failed requests", run_id, severity, str(lost), "left out too", text)]


def _early_stops(run: RealRun, counts: Counts) -> Check:
    run_id, stops = run.meta.run_id, counts.num_early_stops
    if stops is None:
        text = f"real run {run_id}: what answers were asked to be is not stated, so early stops cannot be seen"
        return Check("early stops", run_id, "note", "not known", "", text)
    if not stops:
        return Check("early stops", run_id, "ok", "0", "")
    text = (
        f"real run {run_id}: {stops} of {counts.num_compared} requests stopped early, while the simulation ran each to"
        " its requested length: after the first early stop it carries more load than the engine did"
    )
    severity: Severity = "mark" if stops > MANY * counts.num_compared else "note"
    return Check("early stops", run_id, severity, str(stops), f"{counts.num_tokens_cut} tokens cut", text)


def _bunched(run: RealRun) -> Check:
    run_id, number, delivery = run.meta.run_id, run.meta.num_bunched_messages, delivery_of(run)
    if not run.has_tokens:
        text = f"real run {run_id}: without token times it is not known whether tokens came several at a time"
        return Check("bunched tokens", run_id, "note", "not known", "", text)
    if not number and not delivery.tokens:
        return Check("bunched tokens", run_id, "ok", "0", "")
    told = f"{unsigned_percent(delivery.tokens)} of the tokens"
    if delivery.tokens <= MANY:
        text = (
            f"real run {run_id}: {told} came together with the one before, whose gaps read as 0"
            if number is None
            else f"real run {run_id}: {number} messages carried more than one token, whose gaps read as 0"
        )
        return Check("bunched tokens", run_id, "note", told if number is None else str(number), "", text)
    text = (
        f"real run {run_id}: {told} came together with the one before, so gaps are those of the delivery; ITL is not"
        " judged"
    )
    if delivery.whole_answers > MANY:
        text += (
            f". {unsigned_percent(delivery.whole_answers)} of the answers of two tokens or more came in one message,"
            " whose first token is seen at the last; TTFT and TPOT are not judged either"
        )
    return Check("bunched tokens", run_id, "mark", told, "", text)


@dataclass(frozen=True)
class Delivery:
    """How tokens reached the client: `tokens`, share of the tokens after the first that came at the time of the one
    before; `whole_answers`, share of the answers of two tokens or more that came all at once."""

    tokens: float
    whole_answers: float

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Measures that say more about the delivery than about the engine."""
        if self.tokens <= MANY:
            return ()
        return ("itl",) if self.whole_answers <= MANY else ("itl", "tpot", "ttft")


def delivery_of(run: RealRun) -> Delivery:
    """The delivery of a real run, from its token times."""
    later = run.tokens["token_index"].to_numpy() > 0
    if not later.any():
        return Delivery(0.0, 0.0)
    ids, together = run.tokens["request_id"].to_numpy()[later], run.tokens["token_latency_ns"].to_numpy()[later] == 0
    gaps, bunched = np.bincount(ids), np.bincount(ids, together)
    asked = gaps > 0
    return Delivery(float(together.mean()), float((bunched[asked] == gaps[asked]).mean()))


def _preemptions(real_repeats: Sequence[RealRun], variant: str, simulated: int) -> Check:
    columns = [run.requests.get("num_preemptions") for run in real_repeats]
    numbers = [int(column.sum()) if column is not None and column.notna().all() else None for column in columns]
    real = " / ".join("unknown" if number is None else str(number) for number in numbers)
    if not simulated and all(number == 0 for number in numbers):
        return Check(PREEMPTIONS, variant, "ok", real, "0", variants=(variant,))
    text = f"simulation {variant}: {simulated} preemptions, real {real}"
    return Check(PREEMPTIONS, variant, "note", real, str(simulated), text, (variant,))


def few_stretches(blocks: Blocks) -> Check:
    """Whether the requests hold enough stretches that do not depend on each other to resample. Not a mark: cells that
    rest on it are judged accordingly."""
    number, items = blocks.num_items / blocks.length, blocks.items
    told = f"{number:.0f} blocks of {blocks.length} {items}"
    if blocks.long_enough:
        return Check("independent stretches", "", "ok", told, "")
    # Blocks are never longer than a quarter of the run, whatever the dependence.
    over = "at least" if blocks.length >= blocks.num_items // 4 else "about"
    text = (
        f"latencies depend on each other over {over} {blocks.length} {items}, so {blocks.num_items} {items} are"
        f" only {number:.0f} independent stretches: intervals from resampled {items} cover less than they claim, and"
        f" {'nothing but a fail is concluded from them' if blocks.sessions is None else 'decide nothing'}"
    )
    return Check("independent stretches", "", "note", told, "", text)
