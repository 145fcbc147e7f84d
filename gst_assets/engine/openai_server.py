"""What a completions server reports about itself: its model, its settings, and what it runs with that no comparison
here knows.

Read before anything is measured. What it does not report is named (`EngineSettings.not_read_back`, `not_told`), never
assumed in silence; what it reports in an impossible form is an error. A field that is null counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gst_assets.contracts.documents import UNKNOWN_KERNELS, UNKNOWN_POLICY, VLLM_POLICY, EngineSettings
from gst_assets.engine.openai_http import Http, ServerRefused, StreamBroken, shown
from gst_assets.errors import EngineError
from gst_assets.scenario import Scenario

BACKEND = "openai"
_UNKNOWN = "unknown"
_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_ENGINE = re.compile(r'^vllm:[^\n]*\bengine="([^"\n]*)"', re.MULTILINE)
_LABEL = re.compile(r'\b(\w+)="([^"]*)"')
_SPECULATION = re.compile(r"^vllm:spec_decode_", re.MULTILINE)
_ADAPTERS = re.compile(r"^vllm:lora_requests_info", re.MULTILINE)
_RELEASE = re.compile(r"v?(\d{1,4})\.(\d{1,4})(\D|$)")
_FIRST_WITH_ONE_SCHEDULER = (0, 11)  # vLLM: earlier versions may run another, V0's, and do not report which
_SHORT = 100
_MODELS_SHOWN = 10

_PARALLEL = (
    ("pipeline_parallel", "pipeline_parallel_size"),
    ("data_parallel", "data_parallel_size"),
    ("context_parallel", "prefill_context_parallel_size"),
    ("context_parallel", "decode_context_parallel_size"),
)
_WHOLE_CACHE = ("auto", "bfloat16", "float16", "half", "float32", "float")

UNSUPPORTED = (
    "pipeline_parallel",
    "data_parallel",
    "context_parallel",
    "speculative_decoding",
    "stream_interval",
    "lora",
    "quantization",
    "kv_transfer",
)
"""What makes it another engine, or another delivery, than the one that is simulated and compared."""

ASKED_ABOUT = ("tensor_parallel", *UNSUPPORTED)
"""What `not_told` names where the server does not report it. The degree of tensor parallelism is compared with the
scenario's where it does."""


@dataclass
class _Features:
    """What a server reports of `ASKED_ABOUT`: `on` with its evidence, `told` are those it reports anything definite
    about."""

    on: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def note(self, name: str, *, is_on: bool, told: str) -> None:
        self.told.add(name)
        if is_on:
            self.on.setdefault(name, told)


@dataclass(frozen=True)
class ServerFacts:
    """The name under which the server knows the model, and the settings it runs with."""

    model: str
    settings: EngineSettings


async def read_server(http: Http, scenario: Scenario) -> ServerFacts:
    """What the server reports; settings it does not report are as the scenario states, named in `not_read_back`.

    Raises:
        EngineError: it serves another model, runs with something of `UNSUPPORTED`, or the number of KV blocks is
            neither reported nor stated.
        EngineDied, ServerFault: it answers with an error, not in time, or what cannot be.
    """
    features = _Features()
    model, max_model_len = await _served_model(http, features)
    told: dict[str, Any] = {} if max_model_len is None else {"max_model_len": max_model_len}
    told |= await _version(http) | await _metrics(http, features) | await _server_info(http, features)
    if features.on:
        raise EngineError(
            f"the server at {http.url('')} runs with"
            f" {', '.join(f'{name} ({why})' for name, why in features.on.items())}. A comparison knows one engine"
            " that sends every token by itself, so this would be compared with the wrong simulation. Start the server"
            " without it. Nothing was measured."
        )
    settings = _settings(scenario, told, [name for name in ASKED_ABOUT if name not in features.told])
    return ServerFacts(model, settings)


def _settings(scenario: Scenario, told: Mapping[str, Any], not_told: list[str]) -> EngineSettings:
    engine = scenario.engine
    stated: dict[str, Any] = {
        "engine_version": _UNKNOWN,
        "dtype": scenario.model.dtype,
        "max_model_len": scenario.model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "num_kv_blocks": engine.num_kv_blocks,
        "enable_chunked_prefill": True,  # what every scenario means
        "enable_prefix_caching": engine.enable_prefix_caching,
        "async_scheduling": engine.async_scheduling,
        "enforce_eager": engine.enforce_eager,
        "cudagraph_capture_sizes": [],
        "attention_backend": UNKNOWN_KERNELS,
        "scheduling_policy": UNKNOWN_POLICY,
    }
    if told.get("num_kv_blocks", engine.num_kv_blocks) is None:
        raise EngineError(
            "engine.num_kv_blocks: the server does not report it (vLLM does at /metrics) and the scenario leaves it"
            " open. Set it to the server's number of KV blocks."
        )
    not_read_back = [name for name in stated if name not in told]
    return EngineSettings(
        backend=BACKEND, transport="http", not_read_back=not_read_back, not_told=not_told, **(stated | dict(told))
    )


async def _served_model(http: Http, features: _Features) -> tuple[str, int | None]:
    """The name to ask for, and the longest sequence it takes where the server reports it (vLLM and SGLang do)."""
    path = "GET /v1/models"
    reply = await http.get("/v1/models")
    if reply.status != 200:
        raise ServerRefused(f"{path} gave {reply.refusal()}")
    try:
        cards = {card["id"]: card for card in json.loads(reply.text)["data"]}
        if not all(isinstance(name, str) for name in cards):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StreamBroken(f"{path} gave no list of models but {shown(repr(reply.text))}") from None
    wanted = http.server.served_model
    if (wanted is None and len(cards) != 1) or (wanted is not None and wanted not in cards):
        served = ", ".join(shown(name) for name in list(cards)[:_MODELS_SHOWN]) or "no model"
        more = f" and {len(cards) - _MODELS_SHOWN} more" if len(cards) > _MODELS_SHOWN else ""
        named = "" if wanted is None else f" {wanted!r}"
        raise EngineError(
            f"engine.server.served_model{named}: the server at {http.url('')} serves {served}{more}. Name one of them."
        )
    name = wanted or next(iter(cards))
    adapters = [shown(other) for other, card in cards.items() if card.get("parent") is not None]
    if adapters:
        features.note("lora", is_on=True, told=f"/v1/models lists {', '.join(adapters[:_MODELS_SHOWN])} as adapters")
    return name, _Told(cards[name], path).whole("max_model_len")


async def _version(http: Http) -> dict[str, Any]:
    """vLLM's version from /version, which also shows whose scheduler it is; empty from any other server."""
    version = _Told(await _object(http, "/version"), "GET /version").text("version")
    if version is None:
        return {}
    told = {"engine_version": f"vLLM {version}"}
    release = _RELEASE.match(version)
    if release and (int(release[1]), int(release[2])) >= _FIRST_WITH_ONE_SCHEDULER:
        told["scheduling_policy"] = VLLM_POLICY
    return told


async def _metrics(http: Http, features: _Features) -> dict[str, Any]:
    """The KV cache of a vLLM server from its metrics; empty from any other. Only what is on shows there, not what is
    off."""
    reply = await http.get("/metrics")
    if reply.status != 200:
        return {}
    text = reply.text
    engines = sorted(set(_ENGINE.findall(text)))
    if len(engines) > 1:
        few = ", ".join(shown(engine) for engine in engines[:_MODELS_SHOWN])
        features.note("data_parallel", is_on=True, told=f"/metrics reports {len(engines)} engines, {few}")
    if _SPECULATION.search(text):
        features.note("speculative_decoding", is_on=True, told="/metrics counts drafts")
    if _ADAPTERS.search(text):
        features.note("lora", is_on=True, told="/metrics counts adapters")
    found = _CACHE_INFO.search(text)
    labels = dict(_LABEL.findall(found[1])) if found else {}
    told: dict[str, Any] = {}
    for label, name in (("block_size", "block_size"), ("num_gpu_blocks", "num_kv_blocks")):
        value = labels.get(label)
        if value not in (None, "None", "null"):
            if not (value.isascii() and value.isdecimal() and 0 < len(value) < 16 and int(value)):
                raise StreamBroken(f"GET /metrics: {label}: expected a whole number, found {shown(repr(value))}")
            told[name] = int(value)
    if labels.get("enable_prefix_caching") in ("True", "False"):
        told["enable_prefix_caching"] = labels["enable_prefix_caching"] == "True"
    return told


async def _server_info(http: Http, features: _Features) -> dict[str, Any]:
    """The configuration of a vLLM server that runs with VLLM_SERVER_DEV_MODE=1, which alone reports it; of SGLang only
    its degree of tensor parallelism and what is on of `UNSUPPORTED`."""
    info = _Told(await _object(http, "/server_info?config_format=json"), "GET /server_info")
    of_sglang = _sglang(info, features)
    config = info.inner("vllm_config")
    if config is None:
        return of_sglang
    model, scheduler = config.part("model_config"), config.part("scheduler_config")
    compilation, parallel = config.part("compilation_config"), config.part("parallel_config")
    for name, key in _PARALLEL:
        size = parallel.whole(key)
        if size is not None:
            features.note(name, is_on=size > 1, told=f"{key} {size}")
    interval = scheduler.whole("stream_interval")
    if interval is not None:
        features.note("stream_interval", is_on=interval > 1, told=f"{interval} tokens a message")
    for name, part, key in (
        ("speculative_decoding", config, "speculative_config"),
        ("lora", config, "lora_config"),
        ("kv_transfer", config, "kv_transfer_config"),
        ("quantization", model, "quantization"),
    ):
        if part.has(key):
            features.note(name, is_on=part.holds(key), told=f"{key} is set")
    cached = config.part("cache_config").text("cache_dtype")
    if cached is not None and cached not in _WHOLE_CACHE:
        features.note("quantization", is_on=True, told=f"cache_dtype {cached}")
    policy = scheduler.text("policy")
    told: dict[str, Any] = {
        "tensor_parallel_size": _degree(parallel, "tensor_parallel_size", features),
        "dtype": (model.text("dtype") or "").removeprefix("torch.") or None,
        "max_num_seqs": scheduler.whole("max_num_seqs"),
        "max_num_batched_tokens": scheduler.whole("max_num_batched_tokens"),
        "enable_chunked_prefill": scheduler.switch("enable_chunked_prefill"),
        "async_scheduling": scheduler.switch("async_scheduling"),
        "enforce_eager": model.switch("enforce_eager"),
        "cudagraph_capture_sizes": compilation.sizes("cudagraph_capture_sizes"),
        "scheduling_policy": None if policy in (None, "fcfs") else f"vllm_v1_{policy}",
    }
    return {name: value for name, value in told.items() if value is not None}


def _degree(part: _Told, key: str, features: _Features) -> int | None:
    """Devices that share each layer."""
    size = part.whole(key)
    if size is not None:
        features.told.add("tensor_parallel")
    return size


def _sglang(info: _Told, features: _Features) -> dict[str, Any]:
    """SGLang's server arguments stand at the top of its answer."""
    for key, name in (("pp_size", "pipeline_parallel"), ("dp_size", "data_parallel")):
        size = info.whole(key)
        if size is not None:
            features.note(name, is_on=size > 1, told=f"{key} {size}")
    interval = info.whole("stream_interval")
    if interval is not None:
        features.note("stream_interval", is_on=interval > 1, told=f"{interval} tokens a message")
    for name, key in (
        ("speculative_decoding", "speculative_algorithm"),
        ("lora", "enable_lora"),
        ("lora", "lora_paths"),
        ("quantization", "quantization"),
    ):
        if info.has(key):
            features.note(name, is_on=info.holds(key), told=f"{key} is set")
    degree = _degree(info, "tp_size", features)
    return {} if degree is None else {"tensor_parallel_size": degree}


async def _object(http: Http, path: str) -> dict[str, Any]:
    """The object at an address that not every server has; empty where there is none."""
    reply = await http.get(path)
    try:
        found = json.loads(reply.text) if reply.status == 200 else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class _Told:
    """An object that a server reported, with its place; a field of another type than asked for is an error."""

    fields: dict[str, Any]
    place: str

    def has(self, name: str) -> bool:
        """Whether the key is there; null is an answer where it means that something is off."""
        return name in self.fields

    def holds(self, name: str) -> bool:
        """Whether the value is neither null, false nor empty."""
        return bool(self.fields.get(name))

    def whole(self, name: str) -> int | None:
        """A whole number above 0."""
        value = self.fields.get(name)
        if value is not None and (type(value) is not int or not 0 < value < 2**53):
            raise self._odd(name, "a whole number above 0")
        return value

    def text(self, name: str) -> str | None:
        """A short text that can be shown and written."""
        value = self.fields.get(name)
        if value is not None and (
            not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _SHORT
        ):
            raise self._odd(name, f"a text of 1 to {_SHORT} characters")
        return value

    def switch(self, name: str) -> bool | None:
        value = self.fields.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._odd(name, "true or false")
        return value

    def sizes(self, name: str) -> list[int] | None:
        """Whole numbers, ascending; empty where the key is there and null."""
        value = self.fields.get(name)
        if value is None:
            return [] if name in self.fields else None
        if not isinstance(value, list) or any(type(one) is not int or not 0 < one < 2**53 for one in value):
            raise self._odd(name, "a list of whole numbers above 0")
        return sorted(value)

    def inner(self, name: str) -> _Told | None:
        """The object of that name; None where there is none. vLLM's configuration as one text, its other form, counts
        as none."""
        value = self.fields.get(name)
        return _Told(value, f"{self.place}: {name}") if isinstance(value, dict) else None

    def part(self, name: str) -> _Told:
        """As `inner`, empty where absent."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._odd(name, "an object")
        return _Told(value or {}, f"{self.place}.{name}")

    def _odd(self, name: str, expected: str) -> StreamBroken:
        return StreamBroken(f"{self.place}.{name}: expected {expected}, found {shown(json.dumps(self.fields[name]))}")
