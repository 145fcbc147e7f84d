"""Services that several test modules share; each is started at its first use and ended with the session."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from gst_assets_tests import services

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
    """Mark what `slow_tests` names, which is the one place that says so."""
    slow: list[str] = config.getini("slow_tests")
    for entry in slow:
        if not (config.rootpath / entry.partition("::")[0]).is_file():
            raise pytest.UsageError(
                f"pyproject.toml: slow_tests names {entry}, which is no file. Correct or remove it."
            )
    named = set(slow)
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix() if item.path.is_relative_to(config.rootpath) else ""
        test = getattr(item, "originalname", item.name)
        if named & {file, f"{file}::{test}"}:
            item.add_marker(pytest.mark.slow)


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
