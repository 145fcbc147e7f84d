"""From a scenario to the artifacts made for it: which are the newest that were made with the settings asked for now,
and are they still what they were.

A pointer of the store holds, in addition to ids, the resolved scenario that asked (`params`) and the sha256 of each
artifact's metadata file (`sealed`), so that an override reuses nothing and edited metadata is refused. How pointers are
stored belongs to `store`. Pointers of earlier versions have no seals, and, except for workloads, no settings: they come
last and are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gst_assets.contracts.store import ArtifactStore, Kind, id_levels, is_plain
from gst_assets.errors import ArtifactError, WorkloadError
from gst_assets.provenance import sha256_file

if TYPE_CHECKING:
    from gst_assets.scenario import Scenario

PARAMS = "params"


def _plain(name: str) -> str:
    if not is_plain(name):
        raise ValueError(f"{name!r} is not the name of an artifact")
    return name


def _artifact(name: str) -> str:
    folder, *parts = name.split("/")
    if folder not in set(Kind) or len(parts) != id_levels(Kind(folder)) or not all(map(is_plain, parts)):
        raise ValueError(f"{name!r} is not the <kind>/<id> of an artifact")
    return name


Id = Annotated[str, AfterValidator(_plain)]


class Pointer(BaseModel):
    """What every pointer holds. `sealed`: sha256 of the metadata file of each artifact, by `<kind>/<id>`; `params`: the
    scenario that asked."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    sealed: dict[Annotated[str, AfterValidator(_artifact)], str] = Field(default_factory=dict)
    params: dict[str, Any] | None = None


class WorkloadPointer(Pointer):
    """`source`: sha256 of the file that prompts or requests came from."""

    workload_id: Id
    source: str | None = None


class RealRunsPointer(Pointer):
    """The repeats of one measurement."""

    run_ids: list[Id] = Field(min_length=1)


class VidurRunsPointer(Pointer):
    """By variant: its simulation, and those under further seeds."""

    run_ids: dict[str, Id] = Field(min_length=1)
    seed_run_ids: dict[str, list[Id]] = Field(default_factory=dict)


class ComparisonPointer(Pointer):
    """One comparison."""

    comparison_id: Id


class CapacityPointer(Pointer):
    """One search for capacity."""

    capacity_id: Id


P = TypeVar("P", bound=Pointer)


@dataclass(frozen=True)
class Slot(Generic[P]):
    """A kind of pointer: its `name` in the store, `what` it points to in words, the `asset` that sets it, and the
    `settings` (sections, or `section.key`) that decide what is made."""

    name: str
    what: str
    asset: str
    settings: tuple[str, ...]
    model: type[P]


WORKLOAD = Slot("workload", "workload", "workload_spec", ("workload", "model.tokenizer"), WorkloadPointer)
REAL_RUNS = Slot(
    "real_runs",
    "real run",
    "real_request_metrics",
    ("workload", "model", "hardware", "engine", "replay"),
    RealRunsPointer,
)
VIDUR_RUNS = Slot(
    "vidur_runs", "simulation", "vidur_request_metrics",
    ("workload", "model", "hardware", "engine", "profile", "simulation"), VidurRunsPointer,
)  # fmt: skip
COMPARISON = Slot(
    "comparison", "comparison", "comparison_report",
    (*REAL_RUNS.settings, "profile", "simulation", "comparison"), ComparisonPointer,
)  # fmt: skip
CAPACITY = Slot("capacity", "search for capacity", "capacity", (*VIDUR_RUNS.settings, "capacity"), CapacityPointer)
SLOTS: tuple[Slot[Any], ...] = (WORKLOAD, REAL_RUNS, VIDUR_RUNS, COMPARISON, CAPACITY)


@dataclass(frozen=True)
class Reference(Generic[P]):
    """A pointer that leads somewhere. `gone`: artifacts of newer pointers with the same settings that are no longer
    there, as `<kind>/<id>`."""

    pointer: P
    gone: tuple[str, ...] = ()

    def open(self, store: ArtifactStore, kind: Kind, artifact_id: str) -> Path:
        """Path of an artifact it names, verified down to its metadata file.

        Raises:
            ArtifactError: missing, incomplete or altered.
        """
        return store.open(kind, artifact_id, seal=self.pointer.sealed.get(f"{kind.value}/{artifact_id}"))


def refer(
    store: ArtifactStore, scenario: Scenario, slot: Slot[Any], made: Iterable[tuple[Kind, str]], **facts: Any
) -> dict[str, Any]:
    """Point `slot` of the scenario at the complete artifacts `made`; returns what was stored: `facts`, the settings,
    and the seals.

    Raises:
        ArtifactError: the root cannot be written.
    """
    sealed = {f"{kind.value}/{name}": sha256_file(store.path(kind, name) / kind.meta_name) for kind, name in made}
    value = {**facts, "sealed": sealed, PARAMS: scenario.model_dump(mode="json")}
    store.set_current(scenario.name, slot.name, value)
    return value


def pointers(store: ArtifactStore, scenario: str, slot: Slot[P]) -> Iterator[tuple[str, P]]:
    """Everything `slot` of the scenario pointed to, newest first, with the pointer's file relative to the root; read as
    it is asked for.

    Raises:
        ArtifactError: one cannot be read, or is not what `refer` writes; names file and key.
    """
    for name, value in store.pointers(scenario, slot.name):
        yield name, understood(value, slot, f"{store}/{name}")


def understood(value: object, slot: Slot[P], where: str) -> P:
    """The pointer of `slot` that was read from `where`.

    Raises:
        ArtifactError
    """
    try:
        return slot.model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])[:200]
        raise ArtifactError(
            f"{where}: key {key}: {first['msg']} (found {first['input']!r:.80}). Remove {where} and materialize"
            f" {slot.asset} again."
        ) from None


def newest(store: ArtifactStore, scenario: Scenario, slot: Slot[P]) -> Reference[P]:
    """The newest pointer of `slot` that was set with the scenario's values of the settings that matter, and whose
    artifacts are all there.

    Raises:
        WorkloadError: all were made with other settings; names the first difference to the newest.
        ArtifactError: there is none, or what it names no longer exists, or a pointer is damaged.
    """
    return _newest(store, scenario, slot, slot.settings)


def newest_of_any(store: ArtifactStore, scenario: Scenario, slot: Slot[P]) -> Reference[P]:
    """As `newest`, whatever the settings.

    Raises:
        ArtifactError
    """
    return _newest(store, scenario, slot, ())


def _newest(store: ArtifactStore, scenario: Scenario, slot: Slot[P], settings: Sequence[str]) -> Reference[P]:
    other = ""
    gone: list[str] = []
    for _, pointer in pointers(store, scenario.name, slot):
        differs = first_difference(pointer.params, scenario, settings) if pointer.params is not None else None
        if differs is not None:
            other = other or differs
            continue
        absent = [name for name in pointer.sealed if not store.has(*split(name))]
        if not absent:
            return Reference(pointer, tuple(gone))
        gone += absent
    if gone:
        raise ArtifactError(
            f"{store}/{gone[0]}: no longer there, nor is any other {slot.what} of scenario {scenario.name} with these"
            f" settings. Mount or move it back, or materialize {slot.asset} again."
        )
    if other:
        raise WorkloadError(
            f"{store}: no {slot.what} for scenario {scenario.name} as it is asked for: the newest was {other}."
            f" Materialize {slot.asset} again, with the same overrides."
        )
    raise ArtifactError(
        f"{store}: no {slot.what} for scenario {scenario.name}. Materialize {slot.asset} for this partition first."
    )


def first_difference(made: Mapping[str, Any], scenario: Scenario, settings: Sequence[str]) -> str | None:
    """The first of `settings` (sections, or `section.key`) in which `made`, a resolved scenario, differs from
    `scenario`, in words with both values. A setting that did not exist when it was made has its default."""
    now = scenario.model_dump(mode="json")
    for name in settings:
        section, _, only = name.partition(".")
        before, after = made.get(section), now[section]
        if not isinstance(before, Mapping):
            before = {}
        for key in (only,) if only else tuple(after):
            then = before[key] if key in before else _default(getattr(scenario, section), key)
            if then != after[key]:
                return f"built with {section}.{key} = {then}, but scenario {scenario.name} now asks for {after[key]}"
    return None


def _default(section: object, key: str) -> Any:
    """The default of a section's setting, as JSON holds it; None where it has none."""
    field = type(section).model_fields[key] if isinstance(section, BaseModel) else None
    if field is None or field.is_required():
        return None
    default = field.get_default(call_default_factory=True, validated_data={})
    return TypeAdapter(Any).dump_python(default, mode="json")


def split(name: str) -> tuple[Kind, str]:
    """Kind and id of what `sealed` calls `<kind>/<id>`."""
    folder, _, artifact_id = name.partition("/")
    return Kind(folder), artifact_id
