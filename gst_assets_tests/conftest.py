"""What all tests share: the order in which several processes take the files, marks, and services, each started at its
first use and ended with the session."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from gst_assets.environment import Services, read
from gst_assets.testing import services

if TYPE_CHECKING:
    from gst_assets_tests.night import Night

# An example may wait for a core that other tests use: no test may depend on how long one takes.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "slow_tests", "test files, and `file::test`, that are marked slow: `make test-fast` leaves them out", "linelist"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what `slow_tests` names, which is the one place that says so, and put what takes long first: files that
    start an engine, then those of `slow_tests` in its order."""
    slow: list[str] = config.getini("slow_tests")
    for entry in slow:
        if not (config.rootpath / entry.partition("::")[0]).is_file():
            raise pytest.UsageError(
                f"pyproject.toml: slow_tests names {entry}, which is no file. Correct or remove it."
            )
    named = set(slow)
    places = {entry.partition("::")[0]: place for place, entry in reversed(list(enumerate(slow)))}
    order: dict[pytest.Item, tuple[bool, int]] = {}
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix() if item.path.is_relative_to(config.rootpath) else ""
        test = getattr(item, "originalname", item.name)
        if named & {file, f"{file}::{test}"}:
            item.add_marker(pytest.mark.slow)
        order[item] = (not _starts_an_engine(item.path), places.get(file, len(slow)))
    items.sort(key=order.__getitem__)


@cache
def _starts_an_engine(file: Path) -> bool:
    """Whether a test of the file has the mark `engine`. By its text, since the process that hands out the files
    collects no tests."""
    return "pytest.mark.engine" in file.read_text(encoding="utf-8")


class _OneEngineAtATime(LoadFileScheduling):
    """As `--dist loadfile`, but for the files that start an engine, which are one unit: engines take turns by their
    lock, so that a second process would only wait. Sessions that some of these files share are then made once, too."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "engine" if _starts_an_engine(self.config.rootpath / file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return _OneEngineAtATime(config, log) if config.getvalue("dist") == "loadfile" else None


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
