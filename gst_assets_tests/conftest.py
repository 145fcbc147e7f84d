"""What all tests share: the order in which several processes take the files, marks, and services, each started at its
first use and ended with the session."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from gst_assets.environment import Services, read
from gst_assets.testing import services

if TYPE_CHECKING:
    from gst_assets_tests.night import Night

# An example may wait for a core that other tests use: no test may depend on how long one takes. And the examples of a
# test are the same in every run, so that a run fails for what was changed and not for what was drawn.
settings.register_profile(
    "same_everywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same_everywhere")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "slow_tests", "test files, and `file::test`, that are marked slow: `make test-fast` leaves them out", "linelist"
    )
    parser.addini("one_process_tests", "test files that one process of several runs, one after the other", "linelist")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `make test-fast` would leave out file by file: that is a tenth of its collection."""
    if "not slow" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    inside = collection_path.is_relative_to(config.rootpath)
    named = inside and collection_path.relative_to(config.rootpath).as_posix() in config.getini("slow_tests")
    return True if named else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what `slow_tests` names, which is the one place that says so; and put first what takes long, so that the
    processes end together: `one_process_tests`, other files that start an engine, then `slow_tests` as they stand."""
    slow: list[str] = config.getini("slow_tests")
    together: list[str] = config.getini("one_process_tests")
    for name, entry in [*(("slow_tests", entry) for entry in slow), *(("one_process_tests", one) for one in together)]:
        if not (config.rootpath / entry.partition("::")[0]).is_file():
            raise pytest.UsageError(f"pyproject.toml: {name} names {entry}, which is no file. Correct or remove it.")
    named = set(slow)
    files: dict[pytest.Item, str] = {}
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix() if item.path.is_relative_to(config.rootpath) else ""
        test = getattr(item, "originalname", item.name)
        if named & {file, f"{file}::{test}"}:
            item.add_marker(pytest.mark.slow)
        files[item] = file
    engines = dict.fromkeys(files[item] for item in items if item.get_closest_marker("engine"))
    order = dict.fromkeys([*together, *engines, *(entry.partition("::")[0] for entry in slow)])
    places = {file: place for place, file in enumerate(order)}
    items.sort(key=lambda item: places.get(files[item], len(places)))


class _SomeFilesTogether(LoadFileScheduling):
    """As `--dist loadfile`, with the files of `one_process_tests` as one unit."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "one process" if file in self.config.getini("one_process_tests") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return _SomeFilesTogether(config, log) if config.getvalue("dist") == "loadfile" else None


@contextmanager
def _without_a_program() -> Iterator[None]:
    """A test whose service is not installed is skipped, and with GST_REQUIRE_SERVICES=1 fails."""
    try:
        yield
    except services.ProgramMissing as missing:
        if read(Services).required:
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    with _without_a_program():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with _without_a_program():
        return (yield)


def pytest_configure() -> None:
    """Processes that tests start inherit what this one ignores, and some must end by SIGTERM.

    A script's background command ignores SIGINT, and Dagster (`dagster._utils.interrupts`) gives SIGTERM whatever
    disposition SIGINT has.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.S3]:
    """A real S3 gateway (Ceph)."""
    with services.s3_gateway(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """SQLAlchemy URL of a real PostgreSQL server."""
    with services.postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis server."""
    with services.redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """A nightly run of two scenarios on the real engine, in a real Dagster instance whose web server still runs."""
    from gst_assets_tests.night import a_night

    with a_night(tmp_path_factory.mktemp("night")) as done:
        yield done
