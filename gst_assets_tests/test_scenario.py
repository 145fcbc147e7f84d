"""Scenario files compose and validate; each mistake names its key, its file or override, and what is allowed."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gst_assets.errors import EnvironmentVariableError, ScenarioError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import (
    SCENARIO_DIR,
    FixedInterval,
    Poisson,
    Scenario,
    Static,
    load_file,
    load_scenario,
    read_reference,
    read_resolved,
    resolve_path,
    scenario_names,
)
from gst_assets.scenario_yaml import read_yaml
from gst_assets_tests.gst_command import run_gst

_PARENT = """\
model:
  name: qwen3-tiny
  geometry: {num_layers: 4, hidden_size: 256, num_q_heads: 4, num_kv_heads: 2, head_dim: 64, mlp_hidden_size: 768, vocab_size: 8192, max_position_embeddings: 4096}
  max_model_len: 2048
  tokenizer: data/no_such_tokenizer
hardware: {hardware_id: cpu}
engine:
  max_num_seqs: 32
  max_num_batched_tokens: 512
  block_size: 32
profile:
  num_tokens: [1, 8]
  prefill_chunk_sizes: [1, 8]
  prefill_context_sizes: [0, 8]
  decode_batch_sizes: [1, 8]
  decode_context_sizes: [1, 8]
  calibration_prefill_sizes: [1, 8]
  traffic_rates_per_s: [2.0, 5.0]
"""
_MINE = """\
extends: _parent
description: the scenario of these tests
nightly: true
workload:
  prompts: data/prompts/no_such_file.jsonl
  num_requests: 96
  num_decode_tokens: 32
  arrivals: {kind: poisson, rate_per_s: 6.0}
  seed: 20260101
replay:
  repeats: 3
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A folder with one parent and one scenario, `mine`."""
    (tmp_path / "_parent.yaml").write_text(_PARENT)
    (tmp_path / "mine.yaml").write_text(_MINE)
    return tmp_path


def _error(directory: Path, *overrides: str, name: str = "mine") -> str:
    with pytest.raises(ScenarioError) as error:
        load_scenario(name, overrides, directory)
    return str(error.value)


def _load(directory: Path, *overrides: str, name: str = "mine") -> Scenario:
    return load_scenario(name, overrides, directory)


# --- what works -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_is_valid_and_survives_json(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert (PROJECT_ROOT / scenario.file).is_file()
    path = tmp_path / "resolved.json"
    path.write_text(scenario.model_dump_json())
    assert read_resolved(path) == scenario
    sections = list(Scenario.model_fields)
    assert read_resolved(path).digest(*sections) == scenario.digest(*sections)


def test_names_are_the_files_without_parents(directory: Path) -> None:
    (directory / "notes.txt").write_text("")
    assert scenario_names(directory) == ["mine"]
    assert scenario_names(directory / "none") == []


def test_a_scenario_is_frozen(directory: Path) -> None:
    with pytest.raises(ValidationError):
        _load(directory).workload.seed = 1  # type: ignore[misc]


def test_later_parents_then_the_file_then_overrides_win(directory: Path) -> None:
    for name, seed, requests in (("_one", 1, 10), ("_two", 2, 20)):
        (directory / f"{name}.yaml").write_text(f"workload: {{seed: {seed}, num_requests: {requests}}}\n")
    text = _MINE.replace("extends: _parent", "extends: [_parent, _one, _two]").replace("  num_requests: 96\n", "")
    (directory / "mine.yaml").write_text(text)
    assert _load(directory).workload.num_requests == 20
    assert _load(directory).workload.seed == 20260101
    assert _load(directory, "workload.seed=3", "workload.seed=4").workload.seed == 4


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("workload.num_requests=null", None),
        ("workload.num_requests=", None),
        ("workload.num_requests=7", 7),
        ("workload.seed=${engine.block_size}", 32),
        ("workload.seed=9223372036854775807", 2**63 - 1),
        ("profile.num_tokens=[1, 2,4]", (1, 2, 4)),
        ("engine.sampling.stop_token_ids=[]", ()),
        ("description=a, b = c", "a, b = c"),
        ("description='1, 2'", "1, 2"),
        ("description=http://x/y?z=1", "http://x/y?z=1"),
        ("description='a: b'", "a: b"),
        ("model.checkpoint=data/none", "data/none"),
        ("engine.start_timeout_s=1e3", 1000.0),
        ("engine.start_timeout_s=5", 5.0),
        ("profile.traffic_rates_per_s=[1, 2.5]", (1.0, 2.5)),
        ("nightly=false", False),
        ("workload.arrivals.rate_per_s=0.5", 0.5),
        ("simulation.variants=[kernels]", ("kernels",)),
        ("workload.prompts=data/prompts/no_such_file.jsonl", "data/prompts/no_such_file.jsonl"),
    ],
)
def test_overrides(directory: Path, override: str, value: object) -> None:
    found: Any = _load(directory, override)
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key)
    assert found == value and type(found) is type(value)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20))
def test_any_text_can_be_given_as_a_quoted_value(text: str) -> None:
    quoted = text.replace("'", "''").replace("\\", "\\\\").replace("${", "$ {")
    expected = text.replace("\\", "\\\\").replace("${", "$ {")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "_parent.yaml").write_text(_PARENT)
        (Path(folder) / "mine.yaml").write_text(_MINE)
        assert _load(Path(folder), f"description='{quoted}'").description == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["workload.arrivals.kind=fixed_interval", "workload.arrivals.interval_ns=5"],
        ["workload.arrivals.interval_ns=5", "workload.arrivals.kind=fixed_interval"],
        ["workload.arrivals={kind: fixed_interval, interval_ns: 5}"],
    ],
)
def test_another_kind_drops_the_settings_of_the_former(directory: Path, overrides: list[str]) -> None:
    assert _load(directory, *overrides).workload.arrivals == FixedInterval(kind="fixed_interval", interval_ns=5)
    assert _load(directory, "workload.arrivals.kind=static").workload.arrivals == Static(kind="static")
    assert _load(directory, "workload.arrivals.kind=poisson").workload.arrivals == Poisson(
        kind="poisson", rate_per_s=6.0
    )


def test_another_kind_in_a_file_drops_the_settings_of_its_parent(directory: Path) -> None:
    (directory / "child.yaml").write_text("extends: mine\ndescription: a child\nworkload: {arrivals: {kind: static}}\n")
    assert _load(directory, name="child").workload.arrivals == Static(kind="static")
    assert _load(directory, name="child").workload.num_requests == 96


def test_digest_depends_on_the_named_sections_alone(directory: Path) -> None:
    one, other = _load(directory), _load(directory, "replay.repeats=2")
    assert one.digest("engine", "model") == other.digest("engine", "model")
    assert one.digest("replay") != other.digest("replay")
    assert len(one.digest("engine")) == 16


def test_resolve_path() -> None:
    assert resolve_path("data/x") == PROJECT_ROOT / "data/x"
    assert resolve_path("/a/b") == Path("/a/b")
    assert resolve_path("~/x") == Path.home() / "x"


def test_early_stop_is_known(directory: Path) -> None:
    assert not _load(directory).engine.sampling.may_stop_early
    assert _load(directory, "engine.sampling.stop_token_id_below=1").engine.sampling.may_stop_early
    assert _load(directory, "engine.sampling.ignore_eos=false").engine.sampling.may_stop_early


# --- overrides that are wrong -----------------------------------------------------------------------------------------

_EXPECTED_FORM = "expected dotted.key=value, e.g. workload.num_decode_tokens=32"
_ARRIVALS = "workload.arrivals"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("workload.num_decode_tokens", _EXPECTED_FORM),
        ("=3", _EXPECTED_FORM),
        ("workload..seed=3", _EXPECTED_FORM),
        ("profile.num_tokens[0]=3", f"{_EXPECTED_FORM} or profile.num_tokens=[1, 2, 4] (a list is given whole)"),
        ("profile.num_tokens.0=3", _EXPECTED_FORM),
        ("name=other", "name cannot be overridden"),
        ("extends=_parent", "extends cannot be overridden"),
        ("overrides=[]", "overrides cannot be overridden; give the overrides one by one"),
        ("foo=1", "foo: unknown key. Allowed here: capacity, comparison, description, engine, hardware, model, nightly, profile, regression, replay, simulation, sweep, workload."),
        ("model.foo=1", "model.foo: unknown key. Allowed here: checkpoint, dtype, fold_token_ids, geometry, max_model_len, name, tokenizer."),
        ("workload.foo=1", "workload.foo: unknown key. Allowed here: arrivals, num_decode_tokens, num_requests, prompts, seed, synthetic, trace."),
        (f"{_ARRIVALS}.rate=1", f"{_ARRIVALS}.rate: unknown key. Allowed here: kind, rate_per_s."),
        (f"{_ARRIVALS}.rate_per_s=-1", f"{_ARRIVALS}.rate_per_s: Input should be greater than 0 (found -1)."),
        (f"{_ARRIVALS}.rate_per_s=0", f"{_ARRIVALS}.rate_per_s: Input should be greater than 0 (found 0)."),
        (f"{_ARRIVALS}.rate_per_s=.inf", f"{_ARRIVALS}.rate_per_s: Input should be a finite number"),
        (f"{_ARRIVALS}.rate_per_s='6'", f"{_ARRIVALS}.rate_per_s: Input should be a valid number (found '6')."),
        (f"{_ARRIVALS}.kind=weibull", f"{_ARRIVALS}.kind: expected one of fixed_interval, poisson, gamma, static, ramp, piecewise, trace, found 'weibull'."),
        (f"{_ARRIVALS}.kind=null", f"{_ARRIVALS}.kind: expected one of fixed_interval, poisson, gamma, static, ramp, piecewise, trace, found 'None'."),
        (f"{_ARRIVALS}=5", f"{_ARRIVALS}: expected a mapping of settings, found 5."),
        (f"{_ARRIVALS}=", f"{_ARRIVALS}: expected a mapping of settings, found None."),
        ("engine=1", "engine: expected a mapping of settings, found 1."),
        ("engine.max_num_seqs=true", "engine.max_num_seqs: Input should be a valid integer (found True)."),
        ("engine.max_num_seqs=2.0", "engine.max_num_seqs: Input should be a valid integer (found 2.0)."),
        ("engine.backend=sglang", "engine.backend: Input should be 'vllm'"),
        ("nightly=1", "nightly: Input should be a valid boolean (found 1)."),
        ("workload.seed=-1", "workload.seed: Input should be greater than or equal to 0 (found -1)."),
        ("workload.seed=???", "workload.seed: Missing mandatory value"),
        ("workload.seed=${nope}", "workload.seed: Interpolation key 'nope' not found."),
        ("workload.seed=${workload.seed}", "workload.seed: "),
        ("workload.seed=${nope", "workload.seed: not a valid interpolation"),
        ("profile.num_tokens=[1,2", "profile.num_tokens: the value is not valid YAML"),
        ("profile.num_tokens=1,2", "profile.num_tokens: Input should be a valid array (found '1,2')."),
        ("profile.num_tokens=[1,x]", "profile.num_tokens.1: Input should be a valid integer (found 'x')."),
        ("profile.traffic_rates_per_s=[0, 5]", "profile.traffic_rates_per_s.0: Input should be greater than 0 (found 0)."),
        ("profile.traffic_segment_s=0", "profile.traffic_segment_s: Input should be greater than 0 (found 0)."),
        ("profile.calibration_steps=5", "profile.calibration_steps: unknown key. Allowed here: calibration_prefill_sizes, "),
        ("profile.calibration_decode_batch_sizes=[1]", "profile.calibration_decode_batch_sizes: unknown key."),
        ("simulation.predictor=forest", "simulation.predictor: unknown key."),
        ("simulation.kv_cache_granularity=8", "simulation.kv_cache_granularity: unknown key."),
        ("engine.sampling.stop_token_ids=[-1]", "engine.sampling.stop_token_ids.0: Input should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_with_its_key(directory: Path, override: str, says: str) -> None:
    message = _error(directory, "workload.num_decode_tokens=8", override)
    assert message.startswith(f"override {override!r}") and says in message
    assert "num_decode_tokens=8" not in message
    assert "poisson." not in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("engine.max_num_seqs=600", "engine: max_num_batched_tokens 512 is below max_num_seqs 600"),
        ("engine.block_size.x=1", "engine.block_size: Input should be a valid integer (found {'x': 1})."),
        ("model.geometry.num_kv_heads=3", "model.geometry: num_q_heads 4 is not a multiple of num_kv_heads 3."),
        ("model.max_model_len=5000", "model: max_model_len 5000 exceeds geometry.max_position_embeddings 4096."),
        ("hardware.hardware_id=a100", "hardware: device_name is required for an accelerator, e.g. device_name: A100."),
        ("profile.num_tokens=[2, 1]", "profile: num_tokens must be ascending without repeats, found [2, 1]."),
        ("profile.decode_batch_sizes=[]", "profile: decode_batch_sizes must not be empty."),
        ("profile.decode_batch_sizes=[0, 1]", "profile: decode_batch_sizes must hold values of at least 1, found 0."),
        ("profile.calibration_prefill_sizes=[]", "profile: calibration_prefill_sizes must not be empty."),
        ("profile.traffic_rates_per_s=[]", "profile: traffic_rates_per_s must not be empty."),
        (
            "profile.traffic_rates_per_s=[5, 0.5]",
            "profile: traffic_rates_per_s must be ascending without repeats, found [5.0, 0.5].",
        ),
        ("comparison.warn_band=0.01", "comparison: warn_band 0.01 is below pass_band 0.05."),
        ("workload.arrivals.kind=fixed_interval", "workload.arrivals.interval_ns: required key is missing."),
    ],
)
def test_settings_that_contradict_each_other_name_the_file_and_the_override(
    directory: Path, override: str, says: str
) -> None:
    message = _error(directory, "replay.repeats=2", override)
    assert (
        message.startswith(f"{directory / 'mine.yaml'} with override {override!r} of scenario mine: ")
        and says in message
    )
    assert "replay.repeats" not in message


def test_several_mistakes_are_counted(directory: Path) -> None:
    assert "(2 settings are wrong in all)" in _error(directory, "engine.foo=1", "engine.bar=1")


# --- files that are wrong ---------------------------------------------------------------------------------------------


def test_unknown_scenarios_are_answered_with_the_known_ones(directory: Path) -> None:
    assert (
        _error(SCENARIO_DIR, name="smokey")
        == f"unknown scenario 'smokey'; {SCENARIO_DIR} has {', '.join(scenario_names())}."
    )
    assert "unknown scenario '../smoke'" in _error(directory, name="../smoke")
    assert "unknown scenario '_parent'" in _error(directory, name="_parent")
    (directory / "My-Own.yaml").write_text(_MINE)
    assert "names are lower-case letters, digits and underscores" in _error(directory, name="My-Own")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("num_requests: 96", "num_requests: -3", 6, "workload.num_requests: Input should be greater than 0 (found -3)."),
        ("num_requests: 96", "num_requestz: 96", 6, "workload.num_requestz: unknown key. Allowed here: arrivals"),
        ("rate_per_s: 6.0", "rate: 6.0", 8, "workload.arrivals.rate: unknown key. Allowed here: kind, rate_per_s."),
        ("rate_per_s: 6.0", "rate_per_s: fast", 8, "workload.arrivals.rate_per_s: Input should be a valid number (found 'fast')"),
        ("kind: poisson", "kind: weibull", 8, "workload.arrivals.kind: expected one of fixed_interval, poisson, gamma, static"),
        ("seed: 20260101", "seed: ${nope}", 9, "workload.seed: Interpolation key 'nope' not found."),
        ("seed: 20260101", "seed: ${nope", 9, "workload.seed: not a valid interpolation"),
        ("seed: 20260101", "seed: [1", 10, "not valid YAML ("),
        ("extends: _parent", "extends: _parrot", 1, "extends names '_parrot', but"),
        ("extends: _parent", "extends: 3", 1, "extends: expected a scenario name or a list of them, found 3."),
        ("extends: _parent", "extends: [_parent, {a: 1}]", 1, "extends: expected a scenario name or a list of them"),
        ("nightly: true", "overrides: [nightly=true]", 3, "overrides: overrides are given with a run. Write the settings"),
        ("nightly: true", "name: other", 3, "name: the file's name is the scenario's name. Remove the key."),
        ("repeats: 3", "repeats: 0", 11, "replay.repeats: Input should be greater than 0 (found 0)."),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line_and_key(directory: Path, old: str, new: str, line: int, says: str) -> None:
    assert _MINE.count(old) == 1
    path = directory / "mine.yaml"
    path.write_text(_MINE.replace(old, new))
    message = _error(directory)
    assert message.startswith(f"{path}: line {line}: ") and says in message, message
    assert ".poisson" not in message


def test_a_mistake_in_a_parent_names_the_parent(directory: Path) -> None:
    path = directory / "_parent.yaml"
    text = path.read_text().replace("block_size: 32", "block_size: 0")
    path.write_text(text)
    line = text[: text.index("block_size: 0")].count("\n") + 1
    message = _error(directory)
    assert message == f"{path}: line {line}: engine.block_size: Input should be greater than 0 (found 0)."
    assert f"line {line}" not in _error(directory, "engine.block_size=-1")


def test_a_mistake_over_a_parents_setting_names_the_file_that_made_it(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(_MINE + "engine:\n  block_size: 0\n")
    assert _error(directory).startswith(f"{path}: line 13: engine.block_size: Input should be greater than 0")


def test_a_profile_without_traffic_is_refused(directory: Path) -> None:
    path = directory / "_parent.yaml"
    path.write_text(path.read_text().replace("  traffic_rates_per_s: [2.0, 5.0]\n", ""))
    assert "profile.traffic_rates_per_s: required key is missing." in _error(directory)


def test_a_missing_key_names_the_scenario_file(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(_MINE.replace("  seed: 20260101\n", ""))
    assert _error(directory) == f"{path}: workload.seed: required key is missing."
    path.write_text(_MINE.replace("kind: poisson, ", ""))
    assert (
        "workload.arrivals.kind: expected one of fixed_interval, poisson, gamma, static, ramp, piecewise, trace, found none."
        in _error(directory)
    )


def test_parents_in_a_circle(directory: Path) -> None:
    (directory / "_one.yaml").write_text("extends: _two\n")
    (directory / "_two.yaml").write_text("extends: [_parent, _one]\n")
    (directory / "mine.yaml").write_text("extends: _one\n")
    message = _error(directory)
    assert message.startswith(f"{directory / '_one.yaml'}: extends goes in a circle: mine -> _one -> _two -> _one.")
    (directory / "mine.yaml").write_text("extends: mine\n")
    assert "extends goes in a circle: mine -> mine." in _error(directory)


def test_a_parent_is_a_file_of_the_same_folder(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "mine.yaml").write_text("extends: ../_parent\n")
    message = _error(directory / "sub")
    assert "extends names '../_parent', but" in message and "it has mine" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- 1\n- 2\n", "expected a mapping of settings at the top level, found '- 1"),
        (b"just text\n", "expected a mapping of settings at the top level, found 'just text'"),
        (b"description: \xff\n", "not UTF-8"),
        (b"", "description: required key is missing. ("),
        (b"a: 1\n---\nb: 2\n", "line 2: not valid YAML (but found another document)"),
        (b"a: !!python/name:os.system x\n", "line 1: not valid YAML (could not determine a constructor"),
        (b"a: \x00\n", "not valid YAML ("),
    ],
)
def test_a_file_that_is_no_scenario(directory: Path, content: bytes, says: str) -> None:
    path = directory / "mine.yaml"
    path.write_bytes(content)
    message = _error(directory)
    assert message.startswith(f"{path}: ") and says in message


# --- what YAML would silently make into something else ----------------------------------------------------------------

_OR_QUOTE = "in quotes for the text."


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("010", f"`010` is written, and YAML would make 8 of it, an octal number. Write 10 for the decimal number, 8 for the octal one, or '010' {_OR_QUOTE}"),
        ("-010", f"`-010` is written, and YAML would make -8 of it, an octal number. Write -10 for the decimal number, -8 for the octal one, or '-010' {_OR_QUOTE}"),
        ("0b11", f"`0b11` is written, and YAML would make 3 of it, a binary number. Write 3, or '0b11' {_OR_QUOTE}"),
        ("1:30", f"`1:30` is written, and YAML would make 90 of it, a number in base 60. Write 90, or '1:30' {_OR_QUOTE}"),
        ("1:30.5", f"`1:30.5` is written, and YAML would make 90.5 of it, a number in base 60. Write 90.5, or '1:30.5' {_OR_QUOTE}"),
        ("1_000", f"`1_000` is written, and YAML would make 1000 of it, a number, its underscores dropped. Write 1000, or '1_000' {_OR_QUOTE}"),
        ("1_0.5", f"`1_0.5` is written, and YAML would make 10.5 of it, a number, its underscores dropped. Write 10.5, or '1_0.5' {_OR_QUOTE}"),
        *(
            (word, f"`{word}` is written, and YAML would make {made} of it, a boolean. Write {made}, or '{word}' {_OR_QUOTE}")
            for made, words in (("true", ("on", "yes", "On", "YES")), ("false", ("off", "no", "Off", "NO")))
            for word in words
        ),
        ("[1, 010]", "`010` is written, and YAML would make 8 of it, an octal number."),
        ("{a: {b: yes}}", "`yes` is written, and YAML would make true of it, a boolean."),
        ("{on: 1}", "`on` is written, and YAML would make true of it, a boolean."),
        ("!!int 010", "`010` is written, and YAML would make 8 of it, an octal number."),
        ("!!int ten", "`ten` is written and is no int. Leave the tag out."),
        ("{a: 1, b: 2, a: 3}", "the key `a` is written twice in one mapping, in one line, and YAML would take the last, `3`. Remove one of them."),
        ("\t5", "a tab is written, which YAML takes neither as indentation nor between values, so it would read no further. Write spaces, or put a text that has a tab in quotes."),
        ("5\t", "a tab is written, "),
        ("a\tb", "a tab is written, "),
        ("[1,\t2]", "a tab is written, "),
    ],
)  # fmt: skip
def test_a_value_that_yaml_rewrites_is_refused_in_overrides_and_files_alike(
    directory: Path, value: str, says: str
) -> None:
    override = f"workload.seed={value}"
    message = _error(directory, "replay.repeats=2", override)
    assert message.startswith(f"override {override!r}: workload.seed: ") and says in message
    path = directory / "mine.yaml"
    path.write_text(_MINE.replace("seed: 20260101", f"seed: {value}"))
    message = _error(directory)
    assert message.startswith(f"{path}: line 9: ") and says in message


@pytest.mark.parametrize(
    ("value", "kept"), [("run #5", "run"), ("[1, 2] # note", "[1, 2]"), ("${engine.block_size} # bytes", "${engine.block_size}"), ("#5", "null"), ("'a' #b", "'a'")]
)  # fmt: skip
def test_an_override_that_yaml_would_cut_at_a_comment_is_refused(directory: Path, value: str, kept: str) -> None:
    override = f"description={value}"
    assert _error(directory, override) == (
        f"override {override!r}: description: `{value}` is written, and YAML would make `{kept}` of it: what follows ` #` is a comment. "
        "Put a value with ` #` in quotes, or leave the comment out."
    )


def test_comments_of_a_file_and_a_hash_within_a_word_are_no_mistake(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text("# a scenario\n" + _MINE.replace("seed: 20260101", "seed: 7  # drawn once\n  # and kept"))
    assert _load(directory).workload.seed == 7
    assert _load(directory, "description=a#5").description == "a#5"


def test_a_key_written_twice_in_a_file_names_both_lines(directory: Path) -> None:
    path = directory / "mine.yaml"
    path.write_text(_MINE.replace("seed: 20260101", "seed: 1\n  seed: 2"))
    assert _error(directory) == (
        f"{path}: line 10: the key `seed` is written twice in one mapping, on lines 9 and 10, and YAML would take the last, `2`. Remove one of them."
    )
    path.write_text(_MINE + "workload: {}\n")
    assert "line 12: the key `workload` is written twice in one mapping, on lines 4 and 12" in _error(directory)
    path.write_text(_MINE.replace("  seed: 20260101", "\tseed: 1"))
    assert _error(directory).startswith(f"{path}: line 9: a tab is written, ")


@pytest.mark.parametrize("text", ["010", "1:30", "on", "off", "yes", "no", "1_000", "run #5", "a\tb"])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_in_quotes_it_is_text(directory: Path, text: str, quote: str) -> None:
    assert _load(directory, f"description={quote}{text}{quote}").description == text
    path = directory / "mine.yaml"
    path.write_text(_MINE.replace("the scenario of these tests", f"{quote}{text}{quote}"))
    assert _load(directory).description == text


@pytest.mark.parametrize(
    ("value", "read"),
    [("7", 7), ("+7", 7), ("-7", -7), ("0", 0), ("0x1F", 31), ("1e3", 1000.0), ("1.5e-3", 0.0015), ("-0.5", -0.5), (".5", 0.5), ("+1.5e3", 1500.0), ("2.", 2.0), ("007.5", 7.5),
     (".inf", math.inf), ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("2026-01-02", "2026-01-02"), ("08", "08"),
     ("0o10", "0o10"), ("y", "y"), ("1.2.3", "1.2.3"), ("a_b", "a_b"), ("http://h:80/x", "http://h:80/x")],
)  # fmt: skip
def test_what_means_the_same_to_both_versions_of_yaml_is_read(value: str, read: object) -> None:
    found, _ = read_yaml(value, comments=False)
    assert found == read and type(found) is type(read)


# --- resolved scenarios and the command line --------------------------------------------------------------------------


def test_a_resolved_scenario_that_is_wrong(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "resolved.json"

    def error() -> str:
        with pytest.raises(ScenarioError) as raised:
            read_resolved(path)
        return str(raised.value)

    assert error() == f"{path}: no such file. Write it with `gst show NAME --json > FILE.json`."
    path.write_text('{\n"name": 1,\n')
    assert error().startswith(f"{path}: line 3: not valid JSON")
    path.write_bytes(b'"\xff"')
    assert error().startswith(f"{path}: not UTF-8")
    path.write_text('{"workload": {"seed": 1, "seed": 2}}')
    assert error() == (
        f"{path}: the key 'seed' is written twice in one object, and JSON would take the last. Remove one of them."
    )
    path.write_text("[]")
    assert error().startswith(f"{path}: scenario: ")
    values = _load(directory).model_dump(mode="json")
    values["workload"]["arrivals"]["rate_per_s"] = "6"
    path.write_text(json.dumps(values))
    assert error() == f"{path}: workload.arrivals.rate_per_s: Input should be a valid number (found '6')."


def test_the_command_prints_the_resolved_scenario(tmp_path: Path) -> None:
    done = run_gst("show", "smoke", "-o", "workload.num_requests=5", "--json")
    assert done.exit_code == 0
    path = tmp_path / "resolved.json"
    path.write_text(done.stdout)
    assert read_resolved(path) == load_scenario("smoke", ["workload.num_requests=5"])
    wrong = run_gst("show", "smoke", "-o", "foo=1")
    assert wrong.exit_code == 1 and wrong.stderr.startswith("error: override 'foo=1' of scenario smoke: foo: unknown")
    assert run_gst("show").exit_code == 2


# --- files of one's own -----------------------------------------------------------------------------------------------


def test_own_files_extend_shipped_ones_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_mine.yaml").write_text("extends: smoke\ndescription: Mine.\nworkload: {seed: 77}\n")
    (tmp_path / "mine.yaml").write_text("extends: _mine\nworkload: {num_requests: 5}\n")
    with pytest.raises(ScenarioError, match="unknown scenario 'mine'"):
        load_scenario("mine")
    own = load_file(tmp_path / "mine.yaml", ["workload.num_decode_tokens=3"])
    assert own == read_reference(str(tmp_path / "mine.yaml"), ["workload.num_decode_tokens=3"])
    assert (own.name, own.workload.seed, own.workload.num_requests, own.workload.num_decode_tokens) == (
        "mine",
        77,
        5,
        3,
    )
    assert own.model == load_scenario("smoke").model and own.file == "mine.yaml"
    before = scenario_names()
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path))
    assert scenario_names() == sorted([*before, "mine"])
    assert load_scenario("mine", ["workload.num_decode_tokens=3"]) == own and own.file == str(tmp_path / "mine.yaml")
    assert load_scenario("smoke").file == "gst_assets/scenarios/smoke.yaml"


def test_what_is_wrong_with_own_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smoke.yaml").write_text("extends: cpu_half\n")
    told = rf"{tmp_path}/smoke\.yaml: .*/scenarios has a file of the same name\. Rename yours"
    with pytest.raises(ScenarioError, match=told):
        load_file(tmp_path / "smoke.yaml")
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path))
    with pytest.raises(ScenarioError, match=told):
        scenario_names()
    with pytest.raises(ScenarioError, match=r"none\.yaml: no such file"):
        load_file(tmp_path / "none.yaml")
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path / "absent"))
    with pytest.raises(EnvironmentVariableError, match=r"GST_SCENARIO_DIR=.*absent: expected a directory"):
        scenario_names()


# --- what a command line names ----------------------------------------------------------------------------------------


def test_a_resolved_scenario_carries_its_overrides_and_takes_no_others(tmp_path: Path) -> None:
    overrides = ["workload.num_requests=3", "workload.num_requests=5", "workload.seed=${engine.block_size}"]
    scenario = load_scenario("smoke", overrides)
    assert scenario.overrides == tuple(overrides)
    assert (scenario.workload.num_requests, scenario.workload.seed) == (5, scenario.engine.block_size)
    path = tmp_path / "scenario.json"
    path.write_text(scenario.model_dump_json())
    assert read_reference(str(path), []) == scenario == read_reference("smoke", overrides)
    with pytest.raises(ScenarioError) as raised:
        read_reference(str(path), ["workload.num_requests=5"])
    assert str(raised.value) == (
        f"override 'workload.num_requests=5': {path} is resolved, its overrides inside. Resolve it again with this one, "
        f"`gst show NAME -o workload.num_requests=5 --json > {path}`, or give the scenario's name instead of the file."
    )


def test_a_scenario_of_an_earlier_version_has_no_overrides(tmp_path: Path) -> None:
    values = load_scenario("smoke").model_dump(mode="json")
    del values["overrides"]
    (tmp_path / "scenario.json").write_text(json.dumps(values))
    assert read_resolved(tmp_path / "scenario.json") == load_scenario("smoke")


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:GST_TEST_SECRET}",
        "a ${oc.env:GST_TEST_SECRET,none} b",
        "${oc.decode:${oc.env:GST_TEST_SECRET}}",
        "${oc.${description}:GST_TEST_SECRET}",
    ],
)
def test_the_environment_is_not_written_into_a_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Whatever a scenario says is in the metadata of every run."""
    monkeypatch.setenv("GST_TEST_SECRET", "sesame")
    with pytest.raises(
        ScenarioError, match=r"model\.checkpoint: .*\$\{oc\.env:\.\.\.\} is not resolved: .*name the variable"
    ) as raised:
        load_scenario("smoke", [f"model.checkpoint={value}", "description=env"])
    assert "sesame" not in str(raised.value)
    for file in SCENARIO_DIR.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    own = f"extends: smoke\ndescription: env\nmodel:\n  checkpoint: '{value}'\n"
    (tmp_path / "mine.yaml").write_text(own)
    with pytest.raises(ScenarioError, match=r"mine\.yaml: line 4: model\.checkpoint: .*is not resolved") as raised:
        load_scenario("mine", [], tmp_path)
    assert "sesame" not in str(raised.value)


def test_settings_may_still_name_each_other() -> None:
    assert load_scenario("smoke", ["workload.seed=${engine.block_size}"]).workload.seed == 32


@pytest.mark.parametrize(
    "url", ["http://me:sesame@gpu-host:8000", "https://sesame@gpu-host/v1", "ftp://me:sesame@h", "http://me:x/sesame@h"]
)
def test_a_password_in_the_servers_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ScenarioError, match=r"engine\.server\.base_url: ") as raised:
        load_scenario("smoke", ["engine.backend=openai", f"engine.server.base_url='{url}'"])
    assert "sesame" not in str(raised.value) and "***@" in str(raised.value)


_GAMMA = "workload.arrivals={kind: gamma, rate_per_s: 5, burstiness: 1}"
_LENGTHS = "workload.synthetic={prefill_tokens: {kind: fixed, tokens: 5}, decode_tokens: {kind: fixed, tokens: 5}}"
_SYNTHETIC = ["workload.prompts=null", "workload.num_decode_tokens=null", _LENGTHS]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["workload.num_requests=1000000000000"], "workload.num_requests"),
        ([f"workload.num_decode_tokens={2**63 - 1}"], "workload.num_decode_tokens"),
        ([_GAMMA, "workload.arrivals.burstiness=1e-300"], "workload.arrivals.burstiness"),
        ([_GAMMA, "workload.arrivals.burstiness=1e300"], "workload.arrivals.burstiness"),
        ([_GAMMA, "workload.arrivals.rate_per_s=1e-320"], "workload.arrivals.rate_per_s"),
        ([_GAMMA, "workload.arrivals.rate_per_s=1e300"], "workload.arrivals.rate_per_s"),
        (["workload.arrivals={kind: ramp, start_rate_per_s: 0, end_rate_per_s: 1, duration_s: 1e-320}"], "workload.arrivals.duration_s"),
        (["workload.arrivals={kind: ramp, start_rate_per_s: 1e300, end_rate_per_s: 1, duration_s: 1}"], "workload.arrivals.start_rate_per_s"),
        (["workload.arrivals={kind: piecewise, pieces: [{duration_s: 1e300, rate_per_s: 1}]}"], "workload.arrivals.pieces.0.duration_s"),
        ([f"workload.arrivals={{kind: fixed_interval, interval_ns: {2**63}}}"], "workload.arrivals.interval_ns"),
        ([*_SYNTHETIC, f"workload.synthetic.prefill_tokens.tokens={2**63 - 1}"], "workload.synthetic.prefill_tokens.tokens"),
        ([*_SYNTHETIC, f"workload.synthetic.prefill_tokens={{kind: empirical, tokens: [{2**62}]}}"], "workload.synthetic.prefill_tokens.tokens.0"),
        ([*_SYNTHETIC, f"workload.synthetic.prefill_tokens={{kind: zipf, min_tokens: 1, max_tokens: {2**31 - 1}, exponent: 1}}"], "workload.synthetic.prefill_tokens"),
    ],
)  # fmt: skip
def test_numbers_that_would_overflow_or_fill_the_memory_are_refused(overrides: list[str], key: str) -> None:
    """Two lengths whose sum wraps below max_model_len, a schedule of numbers that are none, tables of a thousand gigabytes."""
    with pytest.raises(ScenarioError, match=rf"scenario smoke: {re.escape(key)}: "):
        load_scenario("smoke", overrides)
