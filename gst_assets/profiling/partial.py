"""What a profile in progress has measured so far, so that one that was interrupted, by `kill -9` too, continues where
it was.

It is next to the bundle's place, as `.<name>.partial/`, and has no run_meta.json, so it cannot be mistaken for a
bundle; it is removed when the bundle is complete. Calibration is stored by round, operator times by block of batches.
What belongs together is decided here by comparing what it was begun with: scenario, device, versions, and the machine's
boot, which fixes the clock of the recorded times.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gst_assets import provenance
from gst_assets.contracts.documents import EngineSettings, Hardware
from gst_assets.contracts.npz_files import read_npz
from gst_assets.errors import ContractError, ProfileError
from gst_assets.input_files import InputKind, JsonProblem, parse_json, read_text
from gst_assets.scenario import Scenario
from gst_assets.staging import staged_file
from gst_assets.step_costs.bundle import profile_key

_SUBJECT, _SETTINGS, _OPERATORS = "subject.json", "engine_settings.json", "operators.jsonl"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def subject(scenario: Scenario, hardware: Hardware, plays: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What a partial profile must have been begun with to be continued. `plays`: what is measured between its
    rounds."""
    environment = provenance.environment()
    return {
        "profile_key": profile_key(scenario),
        "engine": scenario.digest("engine"),
        "hardware": hardware.model_dump(mode="json"),
        "versions": environment.get("packages", {}),
        "python": environment.get("python"),
        "platform": environment.get("platform"),
        "boot": _BOOT.read_text(encoding="ascii").strip() if _BOOT.exists() else None,
        "plays": [dict(play) for play in plays],
    }


class PartialProfile:
    """The folder of one profile in progress; `opened` yields it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextmanager
    def opened(cls, out: Path, begun_with: dict[str, Any]) -> Iterator[PartialProfile]:
        """The partial profile of the bundle `out`, begun or continued; no other process uses it meanwhile.

        Raises:
            ProfileError: it cannot be created, another process measures it, or it was begun with something else (names
                what).
        """
        folder = out.parent / f".{out.name}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise ProfileError(
                f"--out {out}: no directory can be created next to it ({error.strerror}). Name one in a writable"
                " directory."
            ) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProfileError(
                    f"{folder}: another process is measuring this bundle. Wait for it, or use another --out."
                ) from None
            found = cls(folder)
            found._begin(begun_with)
            try:
                yield found
            finally:
                if not found.described():
                    found.remove()
        finally:
            os.close(handle)

    def _begin(self, begun_with: dict[str, Any]) -> None:
        path = self.folder / _SUBJECT
        if not path.exists():
            self._write(path, json.dumps(begun_with, indent=2))
            return
        before = self._begun_with()
        for key, now in begun_with.items():
            if key == "plays":  # their groups are named after the time at which the command was given
                same = [_without_group(one) for one in before[key]] == [_without_group(one) for one in now]
                described = (str([one["scenario"] for one in before[key]]), str([one["scenario"] for one in now]))
            else:
                same, described = before.get(key) == now, _difference(before.get(key), now)
            if not same:
                raise ProfileError(
                    f"{self.folder}: a profile was begun here with {key} {described[0]}, and now has {described[1]}."
                    " What it measured cannot be continued: remove the folder to begin anew, or use another --out."
                )

    def described(self) -> str:
        """What was measured so far, in words; empty where nothing was."""
        rounds, blocks = len(list(self.folder.glob("round-*.npz"))), len(self.operator_blocks())
        return f"{rounds} calibration rounds and {blocks} blocks of operators measured" if rounds or blocks else ""

    def group_ids(self) -> list[str]:
        """Names of the groups of runs, as they were when the profile was begun."""
        return [play["group_id"] for play in self._begun_with()["plays"]]

    def _begun_with(self) -> dict[str, Any]:
        path = self.folder / _SUBJECT
        found = self._object(path)
        plays = found.get("plays")
        if not isinstance(plays, list) or not all(
            isinstance(one, dict) and {"scenario", "group_id"} <= one.keys() for one in plays
        ):
            raise self._unusable(path, "no list of plays")
        return found

    def _object(self, path: Path) -> dict[str, Any]:
        kind = self._kind()
        try:
            found = parse_json(read_text(path, kind))
        except JsonProblem as problem:
            raise self._unusable(path, problem.reason) from None
        if not isinstance(found, dict):
            raise self._unusable(path, "no object")
        return found

    def _kind(self) -> InputKind:
        remedy = f"Remove {self.folder} to begin anew."
        return InputKind(ProfileError, f"missing. {remedy}", "a file of this program", remedy, most_bytes=1 << 30)

    def _unusable(self, path: Path, reason: str) -> ProfileError:
        return ProfileError(f"{path}: not what this program writes ({reason}). Remove {self.folder} to begin anew.")

    def check_settings(self, settings: EngineSettings) -> None:
        """The engine that was started again runs with the settings of the first one, but for the number of KV blocks it
        found room for.

        Raises:
            ProfileError: names the setting.
        """
        path = self.folder / _SETTINGS
        now = settings.model_dump(mode="json")
        if not path.exists():
            self._write(path, json.dumps(now, indent=2))
            return
        before = self._object(path)
        for key in sorted((before.keys() | now.keys()) - {"num_kv_blocks"}):
            if before.get(key) != now.get(key):
                raise ProfileError(
                    f"{self.folder}: the engine that this profile was begun on had {key} {before.get(key)}, the one"
                    f" started now has {now.get(key)}. What was measured cannot be continued: remove the folder to"
                    " begin anew, or use another --out."
                )

    # --- calibration rounds ---

    def round(self, index: int) -> tuple[str, np.ndarray] | None:
        """What `keep_round` stored of a round, or None."""
        path = self.folder / f"round-{index}.npz"
        if not path.exists():
            return None
        try:
            arrays = read_npz(path)
            played, steps = arrays["played"], arrays["steps"]
            if played.ndim or played.dtype.kind != "U" or steps.ndim != 2 or steps.dtype != np.int64:
                raise ContractError(f"{path}: not what this program writes.")
        except (ContractError, KeyError) as error:
            reason = f"{path}: no array {error}." if isinstance(error, KeyError) else error
            raise ProfileError(f"{reason} Remove the file to measure the round again.") from None
        return str(played), steps

    def keep_round(self, index: int, played: str, steps: np.ndarray) -> None:
        """Store a round: its requests as text, its steps as int64. Appears whole or not at all."""
        beside = self.folder / f".round-{index}.npz"
        np.savez(beside, played=np.array(played), steps=steps)
        beside.replace(self.folder / f"round-{index}.npz")

    def copy_rounds(self, to: Path) -> None:
        """Copy what `keep_round` stored into a directory, made if it is not there."""
        to.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("round-*.npz"):
            shutil.copy2(path, to / path.name)

    def drop_rounds(self) -> None:
        """Remove all rounds: they are not what was designed."""
        for path in self.folder.glob("round-*.npz"):
            path.unlink()

    # --- operators ---

    def operator_blocks(self) -> dict[str, Any]:
        """What `keep_operator_block` stored, by key. A last line that was cut off is not there."""
        path = self.folder / _OPERATORS
        if not path.exists():
            return {}
        text = read_text(path, self._kind())
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")  # so that the next line does not continue half of one
        blocks = {}
        for number, line in enumerate(whole.split("\n")[:-1], start=1):
            try:
                entry = parse_json(line)
            except JsonProblem as problem:
                raise self._unusable(path, f"line {number}: {problem.reason}") from None
            if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or "value" not in entry:
                raise self._unusable(path, f"line {number}: no object with key and value")
            blocks[entry["key"]] = entry["value"]
        return blocks

    def keep_operator_block(self, key: str, value: Any) -> None:
        """Store the times of one block of batches."""
        with (self.folder / _OPERATORS).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"key": key, "value": value}) + "\n")

    def remove(self) -> None:
        """Remove the folder: the bundle is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, path: Path, text: str) -> None:
        with staged_file(path) as beside:
            beside.write_text(text, encoding="utf-8")


def _without_group(play: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in play.items() if key != "group_id"}


def _difference(before: Any, now: Any) -> tuple[str, str]:
    """Both values in words; of two mappings only what differs."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return str(before), str(now)
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    told = [", ".join(f"{key} {values.get(key)}" for key in keys) for values in (before, now)]
    return told[0], told[1]
