"""Real services on loopback: Ceph (its S3 gateway), PostgreSQL and Redis, each in a folder of its own.

What a test does where a program is absent (skipped, or failed with GST_REQUIRE_SERVICES=1) stands in
`gst_assets_tests/conftest.py`.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gst_assets.errors import GstError

_PACKAGES = {
    "radosgw": "ceph-mon ceph-osd radosgw",
    "ceph-mon": "ceph-mon ceph-osd radosgw",
    "ceph-osd": "ceph-mon ceph-osd radosgw",
    "redis-server": "redis-server",
    "initdb": "postgresql",
    "chromium": "chromium",
}
BUCKET = "gst"
_START_S = 300
"""A service starts in some seconds; on a machine with other work it may take many times that."""


class ServiceError(GstError):
    """A service did not start."""


class ProgramMissing(ServiceError):
    """A service's program is not installed."""


@dataclass(frozen=True)
class S3:
    """A running S3 gateway; `environment` is all that a client needs besides a URL."""

    environment: dict[str, str]

    def new_root(self) -> str:
        """An artifact root in the bucket that nobody uses."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


def program(name: str) -> str:
    """Path of a service's program.

    Raises:
        ProgramMissing: it is not installed.
    """
    found = shutil.which(name) or next((str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        raise ProgramMissing(f"{name} is not installed: apt-get install --no-install-recommends {_PACKAGES[name]}.")
    return found


@contextmanager
def s3_gateway(folder: Path) -> Iterator[S3]:
    """Ceph's object gateway over one monitor and one storage daemon that keeps its data in memory; about 20 s to
    start.

    Raises:
        ServiceError: a program is not installed, or ended, or did not start within five minutes.
    """
    monitor, storage, gateway = program("ceph-mon"), program("ceph-osd"), program("radosgw")
    monitor_port, port = free_port(), free_port()
    keyring = folder / "keyring"
    configuration = folder / "ceph.conf"
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    configuration.write_text(
        textwrap.dedent(f"""\
        [global]
        fsid = {uuid.uuid4()}
        mon host = [v2:127.0.0.1:{monitor_port}]
        ms bind msgr1 = false
        public addr = 127.0.0.1
        auth allow insecure global id reclaim = false
        osd pool default size = 1
        osd pool default min size = 1
        osd pool default pg num = 1
        osd pool default pgp num = 1
        mon allow pool size one = true
        mon data avail crit = 0
        osd crush chooseleaf type = 0
        osd objectstore = memstore
        memstore device bytes = 1073741824
        run dir = {folder}
        admin socket = {folder}/$name.asok
        pid file =
        log file = {folder}/$name.log
        mon cluster log file = {folder}/cluster.log
        mon data = {folder}/mon
        osd data = {folder}/osd
        rgw data = {folder}/rgw
        keyring = {keyring}
        rgw frontends = beast endpoint=127.0.0.1:{port}
        """)
    )
    environment = os.environ | {"CEPH_CONF": str(configuration)}
    secret = {"AWS_ACCESS_KEY_ID": "gst-test", "AWS_SECRET_ACCESS_KEY": "gst-test-secret"}

    def call(*command: str) -> None:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_START_S, text=True)
        if done.returncode != 0:
            raise ServiceError(f"{' '.join(command)}: {done.stdout} {done.stderr}")

    keyring.write_text(
        _ceph_key("mon.", mon="allow *")
        + _ceph_key("client.admin", mon="allow *", osd="allow *")
        + _ceph_key("client.rgw", mon="allow rw", osd="allow rwx")
        + _ceph_key("osd.0", mon="allow profile osd", osd="allow *")
    )
    call("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", str(folder / "monmap"))
    call(monitor, "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"), "--keyring", str(keyring))
    with ExitStack() as running:
        running.enter_context(_daemon([monitor, "-i", "a", "-f"], environment, folder / "mon.out"))
        identity = str(uuid.uuid4())
        call("ceph", "--connect-timeout", "60", "osd", "new", identity, "0")
        call(storage, "-i", "0", "--mkfs", "--osd-uuid", identity)
        running.enter_context(_daemon([storage, "-i", "0", "-f"], environment, folder / "osd.out"))
        served = running.enter_context(_daemon([gateway, "-n", "client.rgw", "-f"], environment, folder / "rgw.out"))
        _wait(lambda: _listens(port), served, folder / "rgw.out", "the S3 gateway")
        call(
            "radosgw-admin", "user", "create", "--uid=gst", "--display-name=gst",
            f"--access-key={secret['AWS_ACCESS_KEY_ID']}", f"--secret-key={secret['AWS_SECRET_ACCESS_KEY']}",
        )  # fmt: skip
        client = secret | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        _make_bucket(client)
        yield S3(client)


def _ceph_key(name: str, **caps: str) -> str:
    """A keyring section with a new key: type, time and length before 16 random bytes."""
    key = base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()
    return (
        "\n".join([f"[{name}]", f"key = {key}", *(f'caps {service} = "{what}"' for service, what in caps.items())])
        + "\n"
    )


def _make_bucket(environment: dict[str, str]) -> None:
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=BUCKET)


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server with an empty database; yields its SQLAlchemy URL. It refuses root, so root starts it as
    `postgres`.

    Raises:
        ServiceError: it is not installed, or ended, or did not start within five minutes.
    """
    initdb = Path(program("initdb")).resolve()  # the other programs are next to it
    user = "postgres" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gst-postgresql-") as name, tempfile.NamedTemporaryFile("w+") as log:
        data = Path(name) / "data"
        if user:
            shutil.chown(name, user)
        made = subprocess.run(
            [str(initdb), "-D", str(data), "-U", "gst", "-A", "trust", "-E", "UTF8", "-N"],
            user=user, cwd=name, capture_output=True, text=True, timeout=_START_S,
        )  # fmt: skip
        if made.returncode != 0:
            raise ServiceError(f"{initdb}: {made.stderr}")
        command = [
            str(initdb.parent / "postgres"),
            "-D",
            str(data),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            name,
            "-F",
        ]
        with _daemon(command, dict(os.environ), Path(log.name), user=user, stop=signal.SIGINT) as running:
            # It listens before it answers.
            asks = [str(initdb.parent / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            _wait(lambda: subprocess.run(asks).returncode == 0, running, Path(log.name), "PostgreSQL")
            yield f"postgresql+psycopg2://gst@127.0.0.1:{port}/postgres"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis server that keeps nothing; yields its URL.

    Raises:
        ServiceError: it is not installed, or ended, or did not start within five minutes.
    """
    port = free_port()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with _daemon(command, dict(os.environ), folder / "redis.out") as running:
        _wait(lambda: _listens(port), running, folder / "redis.out", "Redis")
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def _daemon(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    *,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        running = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd="/", user=user)
    try:
        yield running
    finally:
        running.send_signal(stop)
        try:
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _wait(ready: Callable[[], bool], running: subprocess.Popen[bytes], log: Path, what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        ended = running.poll() is not None
        if ended or time.monotonic() > deadline:
            raise ServiceError(
                f"{what} {'ended' if ended else f'did not start in {_START_S} s'}:\n{log.read_text()[-3000:]}"
            )
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now.

    Below those that Linux gives to connections (32768 and up), so that none is given away before the service listens
    there, and drawn, so that two processes seldom choose the same.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
