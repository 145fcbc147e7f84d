"""Any input, through every loader: a valid object or one project error that names the file comes out, within bounds of
time and memory.

Inputs are good files with parts exchanged, cut and repeated, JSON with one value replaced, and bytes of any kind.
`FOUND` are those that once got out as another exception, hung, or took the memory; they are tried every time. What each
error says belongs to the loaders' own tests.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import lzma
import os
import re
import resource
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gst_assets.analysis.run_reading import load_run
from gst_assets.contracts.csv_files import FLOAT, INTEGER, STRING, read_csv
from gst_assets.contracts.documents import ProfileMeta, WorkloadMeta, read_document
from gst_assets.contracts.npz_files import read_npz
from gst_assets.contracts.pointers import SLOTS, Slot, pointers
from gst_assets.contracts.store import ArtifactStore, Kind, directory_digests, open_directory, pointer_folder
from gst_assets.engine.openai_http import Http, Reply
from gst_assets.engine.openai_server import read_server
from gst_assets.engine.openai_stream import EventReader
from gst_assets.engine.recorded import expand, pack
from gst_assets.errors import EngineError, GstError
from gst_assets.profiling.partial import PartialProfile
from gst_assets.scenario import Server, load_scenario, read_resolved
from gst_assets.vidur_adapter.table_cache import TableCache
from gst_assets.workload import spec, traces
from gst_assets.workload.arrivals import build_trace_intervals
from gst_assets.workload.building import build
from gst_assets.workload.prompts import read_prompts
from gst_assets.workload.requests import plan_requests
from gst_assets.workload.tokenizer import Tokenizer, load_tokenizer
from gst_assets_tests.analysis.run_directories import steady, write_real
from gst_assets_tests.workload.published import PUBLISHED

SECONDS, GROWN_MIB = 20.0, 600
"""Of one input, on a shared machine; and of the process's peak memory over those of a loader. Without bounds each is
some gigabytes or minutes."""

ODD_BYTES = [
    b"",
    b"\x00",
    b"\r",
    b"\n",
    b"\n\n",
    b"\x0b",
    b"\x1a",
    b'"',
    b",",
    b"-1",
    b"1e999",
    b"1e-400",
    b"NaN",
    b"null",
    b"true",
    b"9" * 25,
    b"9" * 5000,
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"[" * 150,
    b'{"a":' * 150,
    b"[" * 3000,
    b"\\ud800",
    b"[]",
    b"{}",
    b"0001-01-01T00:00:00+14:00",
    b"${",
    b"&a [*a]",
    b"*a",
    b"!!binary ",
    b"!!python/name:os.system ",
    b"? [1]\n: 2\n",
    b"'",
    b"#",
    b"\t",
    b"+",
    b" ",
    b"1787267980.5",
    b"0x1F",
    b".5",
    b"1_000",
    b"x" * 5000,
    b"\xc2",
    b"-07:00",
    b"<<: ",
    b"%",
    b"@",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"0,0,0\n",
    b"~nobody/x",
    b"${oc.env:HOME}",
    b'"\\UFFFFFFFF"',
]
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**70),
    10**400,
    1.5,
    1e308,
    "",
    "x",
    "a/b",
    "..",
    "\x00",
    "\ud800",
    "nan",
    [],
    [None],
    {},
    {"": 1},
    "9" * 50,
    "x" * 300,
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-01-01T00:00:00",
    [[[]]],
    {"a": {"b": 2**64}},
    "~nobody/x",
]


def changed_bytes(good: list[bytes]) -> st.SearchStrategy[bytes]:
    """A good file with one to three stretches replaced by something odd, by a copy of a part of it, or by nothing; or
    any bytes at all."""

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(good))
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            begin = draw(st.integers(0, len(data)))
            end = min(len(data), begin + draw(st.sampled_from([0, 0, 1, 1, 2, 5, 30, 1 << 20])))
            put = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=8))
            if draw(st.integers(0, 3)) == 0:
                first = draw(st.integers(0, len(data)))
                put = data[first : first + 200]
            data = data[:begin] + put + data[end:]
        return data

    return st.integers(0, 9).flatmap(lambda one: st.binary(max_size=300) if one == 0 else changed())


def changed_json(good: bytes) -> st.SearchStrategy[bytes]:
    """A JSON object of which one value, at any depth, is replaced by an odd one, renamed or removed; and sometimes its
    bytes are changed."""
    places = list(_places(json.loads(good)))

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        value = json.loads(good)
        *above, last = draw(st.sampled_from(places))
        inner = value
        for part in above:
            inner = inner[part]
        if draw(st.integers(0, 9)) == 0:
            del inner[last]
        else:
            inner[last] = draw(st.sampled_from(ODD_VALUES))
        return json.dumps(value).encode()

    return st.integers(0, 4).flatmap(lambda one: changed_bytes([good]) if one == 0 else changed())


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*above, key)
        yield from _places(one, (*above, key))


@dataclass(frozen=True)
class Loader:
    """`load` reads what the bytes become in the folder, such as the `good` ones; `named`: a pattern for the place that
    every error names."""

    load: Callable[[Path, bytes], object]
    good: bytes
    examples: int
    named: str
    inputs: st.SearchStrategy[bytes]


def of_bytes(load: Callable[[Path, bytes], object], examples: int, named: str, *good: bytes) -> Loader:
    return Loader(load, good[0], examples, named, changed_bytes(list(good)))


def of_json(load: Callable[[Path, bytes], object], examples: int, named: str, good: bytes) -> Loader:
    return Loader(load, good, examples, named, changed_json(good))


def file(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    def load(folder: Path, data: bytes) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return load


# --- the loaders ------------------------------------------------------------------------------------------------------


def scenario_file(folder: Path, data: bytes) -> object:
    for shipped in SHIPPED.values():
        shutil.copy(shipped, folder)
    (folder / "mine.yaml").write_bytes(data)
    return load_scenario("mine", (), folder)


def override(_: Path, data: bytes) -> object:
    return load_scenario("smoke", [os.fsdecode(data)])


def built(_: Path, data: bytes) -> object:
    """Five requests as the settings ask, with their arrivals."""
    common = [
        "workload.prompts=null",
        "workload.num_requests=5",
        "workload.num_decode_tokens=null",
        (
            "workload.synthetic={prefill_tokens: {kind: fixed, tokens: 9}, "
            "decode_tokens: {kind: uniform, min_tokens: 1, max_tokens: 9}}"
        ),
    ]
    asked = load_scenario("smoke", [*common, os.fsdecode(data)])
    if (asked.workload.num_requests or 0) > 1000:
        return asked
    plan = plan_requests(asked, Tokenizer("none", "", None))
    return build_trace_intervals(asked.workload.arrivals, len(plan.prefill), asked.workload.seed, None)


def trace(folder: Path, data: bytes) -> object:
    """Every way in which a workload reads a trace; the choice is made by the bytes themselves, so that it is
    repeatable."""
    path, chosen = folder / "trace", 0 if data in AS_IT_IS else zlib.crc32(data)
    path.write_bytes(data)
    stated = [*[None] * 6, *traces.FORMATS][chosen % 12]
    found = traces.open_trace(path, stated)
    times = found.has_times and chosen % 4 != 0
    rows = list(found.rows(times=times, repeated_times=True, block_bytes=[1, 64, 1 << 20][chosen % 3]))
    for one in rows:
        assert len(one.line) == len(one) and (one.prefill is None or (one.prefill >= 0).all())
        assert one.time_ns is None or (np.diff(one.time_ns) >= 0).all()
    return rows


def real_run(directory: Path) -> object:
    return load_run(directory, "real")


def table(path: Path) -> object:
    return read_csv(path, {"request_id": INTEGER, "prompt_id": STRING}, optional={"x": FLOAT})


def part(good: dict[str, bytes], changed: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    """A complete directory of which one file was changed, and its digest as well."""

    def load(folder: Path, data: bytes) -> object:
        directory, meta = folder / "directory", next(name for name in good if name.endswith("_meta.json"))
        directory.mkdir(exist_ok=True)
        for name, content in (good | {changed: data}).items():
            (directory / name).write_bytes(content)
        if changed != meta:
            listed = json.loads(good[meta]) | {"sha256": directory_digests(directory, meta)}
            (directory / meta).write_text(json.dumps(listed))
        return read(directory)

    return load


def pointer(slot: Slot[Any]) -> Callable[[Path, bytes], object]:
    def load(folder: Path, data: bytes) -> object:
        path = folder / pointer_folder("smoke", slot.name) / "00000000000000000001-aaaa.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return list(pointers(ArtifactStore(folder), "smoke", slot))

    return load


class Saying:
    """Stands in for the session with a server: each address answers with what is stored for it, else that it is not
    there."""

    def __init__(self, server: Server, said: Mapping[str, str]) -> None:
        self.server, self.said = server, said

    def url(self, path: str) -> str:
        return f"http://server{path}"

    async def get(self, path: str) -> Reply:
        text = self.said.get(path.partition("?")[0])
        return Reply(404, "not found", "") if text is None else Reply(200, text, "")


def server_told(address: str) -> Callable[[Path, bytes], object]:
    """What a server reports about itself, with one of its answers changed."""

    def load(_: Path, data: bytes) -> object:
        said = SERVER | {address: data.decode(errors="replace")}
        asked = OPENAI.engine.server
        assert asked is not None
        try:
            return asyncio.run(read_server(cast(Http, Saying(asked, said)), OPENAI))
        except EngineError as error:
            raise EngineError(f"{error}.") from None  # it becomes a part of a sentence

    return load


def server_stream(_: Path, data: bytes) -> object:
    """The events of a completion, in one piece and in pieces of seven bytes: both say the same."""
    ends = []
    for size in (len(data) or 1, 7):
        reader = EventReader(num_prefill_tokens=2, num_decode_tokens=3, clean=str)
        try:
            ids = [one for begin in range(0, len(data), size) for one in reader.feed(data[begin : begin + size])]
            reader.check_end()
            ends.append(str(ids))
        except EngineError as error:
            ends.append(type(error).__name__)
            if size == 7:
                raise type(error)(f"stream: {error}.") from None
    assert ends[0] == ends[1]
    return ends


def artifact(folder: Path, data: bytes) -> object:
    (folder / "workload_meta.json").write_bytes(data)
    return open_directory(folder, Kind.WORKLOAD)


def tables_cache(folder: Path, data: bytes) -> object:
    cache = TableCache(folder, "k")
    cache.path.write_bytes(data)
    tables = cache.load()
    assert tables is None or all(isinstance(one, dict) for one in tables.values())
    return tables


def partial_round(folder: Path, data: bytes) -> object:
    (folder / "round-0.npz").write_bytes(data)
    return PartialProfile(folder).round(0)


def partial_file(name: str) -> Callable[[Path, bytes], object]:
    def load(folder: Path, data: bytes) -> object:
        (folder / name).write_bytes(data)
        partial = PartialProfile(folder)
        return partial.operator_blocks() if name == "operators.jsonl" else partial.group_ids()

    return load


def recorded(folder: Path, data: bytes) -> object:
    kept = folder / "kept" / "run"
    if not kept.exists():
        pack(write_real(folder / "run", steady(3, 4)), folder / "kept")
    for path in kept.glob("token_metrics.*"):
        path.unlink()
    suffix = "gz" if data.startswith(b"\x1f\x8b") else "xz"
    (kept / f"token_metrics.csv.{suffix}").write_bytes(data)
    try:
        return expand(kept, folder / "out")
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def lying(shape: str) -> bytes:
    """An npy file whose header states another shape than it holds."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("keys:a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))
    return stream.getvalue()


SCENARIOS = Path(traces.__file__).parents[1] / "scenarios"
SHIPPED = {name: SCENARIOS / f"{name}.yaml" for name in ("smoke", "_base", "h100_8b_half")}
RESOLVED = load_scenario("smoke").model_dump_json().encode()
KEYS = [
    ".".join(map(str, place))
    for place in _places(json.loads(RESOLVED))
    if not any(isinstance(part, int) for part in place)
]
PROMPTS = (
    b'{"prompt_id": "a", "text": "one two", "num_decode_tokens": 3}\n{"prompt_id": "b", "text": "\\u00e9", "more":'
    b' {"x": [1]}}\n'
)
TABLE = b'request_id,prompt_id,x\n0,a,0.5\n1,"b,c",\n2,d,1e-3\n'
TABLES = npz(**{"keys:a": np.array([[1, 2], [3, 4]]), "values:a": np.array([0.5, 1.5])})
ROUND = npz(played=np.array("[]"), steps=np.ones((2, 20), dtype=np.int64))
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"},
    }
).encode()
SUBJECT = json.dumps({"plays": [{"scenario": "smoke", "group_id": "g"}], "boot": "x"}).encode()


def written(write: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `write` makes in a directory."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "made")
        return {path.name: path.read_bytes() for path in (Path(folder) / "made").iterdir()}


def write_workload(directory: Path) -> None:
    for folder in (directory, directory.parent / "tokenizer"):
        folder.mkdir()
    (directory.parent / "tokenizer" / "tokenizer.json").write_bytes(TOKENIZER)
    (directory.parent / "prompts.jsonl").write_bytes(PROMPTS)
    asked = [
        "workload.num_requests=3",
        f"workload.prompts={directory.parent}/prompts.jsonl",
        f"model.tokenizer={directory.parent}/tokenizer",
    ]
    build(load_scenario("smoke", asked), directory)


POINTERS = {
    "workload": b'{"workload_id": "wl-1", "source": null, "sealed": {"workloads/wl-1": "a"}, "params": {"a": 1}}',
    "real_runs": b'{"run_ids": ["r-0", "r-1"], "sealed": {"real_runs/r-0": "a"}, "params": {"a": 1}}',
    "vidur_runs": b'{"run_ids": {"kernels": "k"}, "seed_run_ids": {"kernels": ["s"]}, "params": {"a": 1}}',
    "comparison": b'{"comparison_id": "c", "sealed": {}, "params": null}',
    "capacity": b'{"capacity_id": "c", "sealed": {}, "params": null}',
}
OPENAI = load_scenario("openai_server")
SERVER = {
    "/v1/models": '{"data": [{"id": "m", "max_model_len": 2048, "parent": null}]}',
    "/version": '{"version": "0.32.0"}',
    "/server_info": json.dumps(
        {
            "vllm_config": {
                "model_config": {"dtype": "torch.float32", "enforce_eager": True, "quantization": None},
                "scheduler_config": {
                    "max_num_seqs": 32,
                    "max_num_batched_tokens": 512,
                    "enable_chunked_prefill": True,
                    "async_scheduling": False,
                    "stream_interval": 1,
                    "policy": "fcfs",
                },
                "compilation_config": {"cudagraph_capture_sizes": [1, 2]},
                "parallel_config": {"tensor_parallel_size": 1, "data_parallel_size": 1},
                "cache_config": {"cache_dtype": "auto"},
                "speculative_config": None,
                "lora_config": None,
            }
        }
    ),
    "/metrics": (
        'vllm:cache_config_info{block_size="32",enable_prefix_caching="False",engine="0",num_gpu_blocks="77"} 1.0\n'
    ),
}
STREAM = "".join(
    f"data: {json.dumps(event)}\n\n" for event in (
        {"choices": [{"index": 0, "text": "a", "token_ids": [5], "finish_reason": None}], "usage": None},
        {"choices": [{"index": 0, "text": "bc", "token_ids": [6, 7], "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}},
    )
).encode() + b"data: [DONE]\n\n"  # fmt: skip
RUN = written(lambda directory: write_real(directory, steady(3, 4)))
STORED_TOKENS = b"".join(
    b",".join(line.split(b",")[:3]) + b"\n" for line in RUN["token_metrics.csv"].splitlines()
)  # as packing leaves them
WORKLOAD = written(write_workload)
PROFILE_META = json.dumps(
    json.loads(RUN["run_meta.json"])
    | {
        "run_type": "vidur_profile",
        "profiling_root": "p",
        "profile_key": "k",
        "calibration_sha256": {"a": "b"},
    }
).encode()
NUMBERS = st.sampled_from(
    [
        "0",
        "-1",
        "1",
        "2",
        "9",
        "0.5",
        "1e-320",
        "1e-300",
        "1e-15",
        "1e-6",
        "1e6",
        "1e9",
        "1e300",
        "2147483647",
        "2147483648",
        "9223372036854775807",
        "9223372036854775808",
        ".inf",
        ".nan",
        "null",
        "x",
        "true",
    ]
)
WORKLOAD_OVERRIDES = st.builds(
    lambda template, numbers: template.format(*numbers).encode(),
    st.sampled_from(
        [
            "workload.num_requests={}",
            "workload.seed={}",
            "model.max_model_len={}",
            "workload.arrivals={{kind: poisson, rate_per_s: {}}}",
            "workload.arrivals={{kind: fixed_interval, interval_ns: {}}}",
            "workload.arrivals={{kind: gamma, rate_per_s: {}, burstiness: {}}}",
            "workload.arrivals={{kind: ramp, start_rate_per_s: {}, end_rate_per_s: {}, duration_s: {}}}",
            "workload.arrivals={{kind: trace, rate_per_s: {}}}",
            (
                "workload.arrivals={{kind: piecewise, pieces: [{{duration_s: {}, rate_per_s: {}}}, {{duration_s: {},"
                " rate_per_s: {}}}]}}"
            ),
            "workload.synthetic.prefill_tokens={{kind: fixed, tokens: {}}}",
            "workload.synthetic.decode_tokens={{kind: uniform, min_tokens: {}, max_tokens: {}}}",
            (
                "workload.synthetic.prefill_tokens={{kind: lognormal, median: {}, sigma: {}, min_tokens: {},"
                " max_tokens: {}}}"
            ),
            "workload.synthetic.prefill_tokens={{kind: zipf, exponent: {}, min_tokens: {}, max_tokens: {}}}",
            "workload.synthetic.decode_tokens={{kind: empirical, tokens: [{}, {}], weights: [{}, {}]}}",
        ]
    ),
    st.lists(NUMBERS, min_size=4, max_size=4),
)
OVERRIDES = st.builds(
    lambda key, value: f"{key}={value}".encode(errors="surrogateescape").replace(b"\0", b""),
    st.sampled_from(KEYS)
    | st.sampled_from(["workload.arrivals", "nope", "workload.nope", "a.b.c", "", "name", "extends", ".", "engine..x"]),
    st.sampled_from([one.decode("utf-8", "surrogateescape") for one in ODD_BYTES])
    | st.sampled_from(ODD_VALUES).map(repr)
    | st.text(max_size=12).filter(lambda one: not any(0xD800 <= ord(mark) < 0xE000 for mark in one))
    | st.sampled_from(
        [
            "{kind: poisson}",
            "{kind: trace, rate_per_s: 1}",
            "${workload.seed}",
            "[${x}]",
            "1e400",
            "-0.0",
            "1e-300",
            "9223372036854775807",
            "{kind: gamma, rate_per_s: 1e9, burstiness: 1e-6}",
        ]
    ),
)

LOADERS = {
    "scenario": of_bytes(
        scenario_file, 85, "mine.yaml", b"extends: smoke\nworkload:\n  seed: 3\n", SHIPPED["smoke"].read_bytes()
    ),
    "override": Loader(override, b"workload.seed=4", 145, "override", OVERRIDES),
    "workload settings": Loader(built, b"workload.seed=4", 85, "workload|model", WORKLOAD_OVERRIDES),
    "resolved scenario": of_json(file("s.json", read_resolved), 85, "s.json", RESOLVED),
    **{f"trace {name}": of_bytes(trace, 45, "trace", data) for name, (_, data) in PUBLISHED.items()},
    "prompts": of_bytes(file("p.jsonl", read_prompts), 115, "p.jsonl", PROMPTS),
    "CSV": of_bytes(file("t.csv", table), 145, "t.csv", TABLE, TABLE.replace(b'"b,c"', b"b")),
    "request_metrics.csv": of_bytes(
        part(RUN, "request_metrics.csv", real_run), 35, "directory", RUN["request_metrics.csv"]
    ),
    "token_metrics.csv": of_bytes(part(RUN, "token_metrics.csv", real_run), 35, "directory", RUN["token_metrics.csv"]),
    "run_meta.json": of_json(part(RUN, "run_meta.json", real_run), 70, "directory", RUN["run_meta.json"]),
    "trace_lengths.csv": of_bytes(
        part(WORKLOAD, "trace_lengths.csv", spec.load), 35, "directory", WORKLOAD["trace_lengths.csv"]
    ),
    "trace_intervals.csv": of_bytes(
        part(WORKLOAD, "trace_intervals.csv", spec.load), 35, "directory", WORKLOAD["trace_intervals.csv"]
    ),
    "workload_meta.json": of_json(
        part(WORKLOAD, "workload_meta.json", spec.load), 60, "directory|/dev/zero", WORKLOAD["workload_meta.json"]
    ),
    **{
        f"server {address}": of_json(server_told(address), 35, "GET|engine|server", text.encode())
        for address, text in SERVER.items()
        if text[0] == "{"
    },
    "server /metrics": of_bytes(server_told("/metrics"), 35, "GET|engine|server", SERVER["/metrics"].encode()),
    "server's stream": of_bytes(server_stream, 85, "stream", STREAM),
    **{f"pointer {slot.name}": of_json(pointer(slot), 35, "current/smoke", POINTERS[slot.name]) for slot in SLOTS},
    "profile's document": of_json(
        file("m.json", lambda path: read_document(ProfileMeta, path)), 35, "m.json", PROFILE_META
    ),
    "artifact": of_json(artifact, 45, "workload_meta.json", b'{"sha256": {}, "n": 1}'),
    "tokenizer.json": of_json(
        file("tokenizer.json", lambda path: load_tokenizer(str(path.parent)).count(["a b", "x"])),
        70,
        "tokenizer",
        TOKENIZER,
    ),
    "tables": of_bytes(tables_cache, 60, "never an error", TABLES),
    "round": of_bytes(partial_round, 35, "round-0.npz", ROUND),
    "operators.jsonl": of_bytes(
        partial_file("operators.jsonl"), 35, "operators.jsonl", b'{"key": "k", "value": [1.5]}\n'
    ),
    "subject.json": of_json(partial_file("subject.json"), 35, "subject.json", SUBJECT),
    "recorded": of_bytes(recorded, 30, "token_metrics.csv", gzip.compress(RUN["token_metrics.csv"])),
    "recorded, packed now": of_bytes(recorded, 30, "token_metrics.csv", lzma.compress(STORED_TOKENS)),
    "recorded tokens": of_bytes(
        lambda folder, data: recorded(folder, lzma.compress(data)), 30, "token_metrics.csv", STORED_TOKENS
    ),
}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def laughs(line: str, last: str) -> bytes:
    """Thirty settings, each twice the one before."""
    return (
        "".join(line.format(one=f"x{index}", before=f"x{index - 1}") for index in range(1, 30)).encode() + last.encode()
    )


def with_value(good: bytes, key: str, value: Any) -> bytes:
    return json.dumps(json.loads(good) | {key: value}).encode()


AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
FOUND: list[tuple[str, bytes]] = [
    ("scenario", b"extends: [" + b"smoke, " * 2000 + b"]"),
    ("scenario", b"!!binary eA==: 1\n"),
    ("scenario", b"extends: smoke\n? [a, b]\n: 1\n"),
    ("scenario", b"extends: smoke\nworkload: {seed: " + b"9" * 5000 + b"}"),
    ("scenario", b"extends: smoke\nworkload: {seed: !!int ten}"),
    ("scenario", b"extends: smoke\nworkload: " + b"[" * 3000),
    ("scenario", b"extends: smoke\nworkload: " + b"{a: " * 3000),
    ("scenario", b'extends: smoke\ndescription: "\\UFFFFFFFF"'),
    ("scenario", b'extends: smoke\ndescription: "\\ud800"'),
    ("scenario", b"&a [*a]"),
    (
        "scenario",
        laughs("{one}: &{one} [*{before}, *{before}]\n", "").replace(b"x1: &x1 [*x0, *x0]", b"x1: &x1 [1, 1]"),
    ),
    ("scenario", laughs("{one}: '${{{before}}}${{{before}}}'\n", "x0: y\nextends: smoke\n")),
    ("scenario", b"extends: smoke\ndescription: '" + b"${a" * 3000 + b"'"),
    ("scenario", b"extends: smoke\na: ${b}\nb: ${a}\n"),
    ("override", b"workload.seed=" + b"9" * 5000),
    ("override", b"workload.seed=" + b"[" * 3000),
    ("override", b"workload.seed=!!binary eA=="),
    ("override", b".".join([b"a"] * 3000) + b"=1"),
    ("resolved scenario", b"[" * 100_000),
    ("resolved scenario", b'{"a": ' + b"9" * 5000 + b"}"),
    ("resolved scenario", b'{"' + b"9" * 5000 + b'": 1}'),
    ("scenario", b"extends: smoke\n" + b"9" * 5000 + b"a: 1\n"),
    ("artifact", b'{"' + b"9" * 5000 + b'": 1}'),
    ("pointer workload", b'{"' + b"9" * 5000 + b'": 1}'),
    ("run_meta.json", with_value(RUN["run_meta.json"], "9" * 5000, 1)),
    ("trace azure_2023", AZURE + b"48\n"),
    ("trace azure_2023", AZURE + b"2023-11-16 18:15:46\x0b1,2,3\n"),
    ("trace mooncake", b'{"timestamp": ' * 2000),
    ("trace mooncake", b'{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ' + b"[" * 2000),
    ("trace sharegpt", b"[" * 100_000),
    ("trace sharegpt", b'[{"conversations": [{"value": "\xff"}]}]'),
    ("trace sharegpt", b'[{"conversations": [], "id": ' + b"9" * 5000 + b"}]"),
    ("prompts", b"[" * 100_000),
    ("prompts", b'\xef\xbb\xbf{"prompt_id": "a", "text": "x"}\n'),
    ("CSV", b'request_id,prompt_id,x\n0,"' + b"x" * 200_000 + b'",bad\n'),
    ("CSV", b'"request_id,prompt_id\n' + b"x" * 200_000),
    ("run_meta.json", with_value(RUN["run_meta.json"], "started_at", "0001-01-01T00:00:00+14:00")),
    ("run_meta.json", with_value(RUN["run_meta.json"], "num_errors", 10**400)),
    ("run_meta.json", b'{"sha256": ' + b"[" * 100_000),
    ("artifact", b"[" * 100_000),
    ("artifact", b'{"sha256": {}, "n": ' + b"9" * 5000 + b"}"),
    ("server /version", b'{"version": "' + b"9" * 5000 + b'.1.0"}'),
    ("server /server_info", b"[" * 100_000),
    ("server's stream", b"data: " + b"[" * 100_000 + b"\n\n"),
    ("pointer workload", b"[" * 100_000),
    ("pointer workload", b'{"workload_id": ' + b"9" * 5000 + b"}"),
    (
        "workload_meta.json",
        with_value(
            WORKLOAD["workload_meta.json"],
            "paths",
            {"prompts": "/dev/zero", "trace_lengths": "..", "trace_intervals": ""},
        ),
    ),
    ("tokenizer.json", TOKENIZER.replace(b'"[UNK]": 2', b'"c": 2')),
    ("tokenizer.json", b"[" * 100_000),
    ("tables", npy(np.arange(4))),
    ("tables", lying("(1000000000000,)")),
    ("tables", lying("(-1, -1)")),
    ("tables", npz(**{"keys:a": np.arange(2), "values:a": np.arange(2.0)})),
    ("tables", npz(**{"keys:a": np.array([[1, 2]])})),
    ("tables", npz(**{"keys:a": np.array(5), "values:a": np.array("x")})),
    ("round", npy(np.arange(4))),
    ("round", npz(played=np.array("[]"))),
    ("operators.jsonl", b"[1]\n"),
    ("operators.jsonl", b'{"key": [], "value": 1}\n'),
    ("subject.json", b'{"plays": [1]}'),
    ("subject.json", b"[" * 100_000),
    ("recorded", gzip.compress(b"a") + gzip.compress(b"b")),
    ("recorded", lzma.compress(b"a") + lzma.compress(b"b")),
    ("recorded tokens", STORED_TOKENS + b"1,1," + b"9" * 5000),
]
"""Loader and bytes."""
AS_IT_IS = {data for _, data in (*FOUND, *PUBLISHED.values())}
"""Traces that are read without a stated format."""


def outcome(loader: Loader, folder: Path, data: bytes) -> str:
    """What came out, in a word; fails where it is neither an object nor one project error that names its place, or took
    too long."""
    begun = time.process_time()
    try:
        loader.load(folder, data)
        found = "read"
    except GstError as error:
        message = str(error)
        assert re.search(loader.named, message), f"names no place: {message[:300]}"
        assert 20 < len(message) < 3000 and message.endswith((".", ")", "?")), message[-300:]
        found = "refused"
    assert time.process_time() - begun < SECONDS
    return found


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("name", LOADERS)
def test_any_input_is_read_or_refused_by_one_project_error(name: str, tmp_path: Path) -> None:
    loader = LOADERS[name]
    counts = {"read": 0, "refused": 0}

    # Not shrunk: that takes minutes, and these inputs are short as they are.
    @settings(
        max_examples=loader.examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=(Phase.reuse, Phase.generate),
    )
    @given(loader.inputs)
    def holds(data: bytes) -> None:
        counts[outcome(loader, tmp_path, data)] += 1

    before, peak_before_mib = time.process_time(), _peak_mib()
    for found_of, data in FOUND:
        if found_of == name:
            counts[outcome(loader, tmp_path, data)] += 1
    holds()
    peak_mib = _peak_mib()
    print(
        f"\n{name}: {counts['read']} read, {counts['refused']} refused, {time.process_time() - before:.1f} s, peak so"
        f" far {peak_mib} MiB"
    )
    assert sum(counts.values()) >= loader.examples and peak_mib - peak_before_mib < GROWN_MIB
    assert counts["refused"] or name == "tables"


@pytest.mark.parametrize("name", LOADERS)
def test_the_inputs_that_are_changed_are_good_ones(name: str, tmp_path: Path) -> None:
    assert outcome(LOADERS[name], tmp_path, LOADERS[name].good) == "read"


def test_enough_inputs_are_tried() -> None:
    assert sum(loader.examples for loader in LOADERS.values()) + len(FOUND) >= 2000
    assert {name for name, _ in FOUND} <= LOADERS.keys()


READERS: dict[str, Callable[[Path], object]] = {
    "resolved scenario": read_resolved,
    "trace": lambda path: traces.open_trace(path, None),
    "prompts": read_prompts,
    "CSV": table,
    "document": lambda path: read_document(WorkloadMeta, path),
    "npz": read_npz,
    "scenario": lambda path: load_scenario(path.stem, (), path.parent),
    "config.json": lambda path: load_scenario("smoke", ["model.geometry=null", f"model.config={path}"]),
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_and_never_waited_for(name: str, tmp_path: Path) -> None:
    """A named pipe without a writer, a device without an end, a directory, a file that may not be read, and none at
    all."""
    for kind in ("pipe", "device", "directory", "forbidden", "loop", "absent"):
        path = tmp_path / f"{kind}.yaml"
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "directory":
                path.mkdir()
            case "forbidden":
                path.touch(mode=0)
            case "loop":
                path.symlink_to(path)
        with pytest.raises(GstError) as error:
            READERS[name](path)
        # As root nothing is forbidden: the file is empty then.
        assert str(path) in str(error.value) or (name, kind) == ("scenario", "absent"), kind
