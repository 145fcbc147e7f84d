"""The command `gst`: what each of its commands does, and that its help and the documentation name nothing else.

Commands that start an engine are tried with what they refuse; what they do with an engine is tested where that is:
`engine`, `profiling`, `capacity`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from gst_assets import __version__, cli
from gst_assets.contracts.store import Kind, open_directory
from gst_assets.engine.machine_lock import machine_lock
from gst_assets.progress import ERASE
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario, scenario_names
from gst_assets_tests.gst_command import run_gst

NAME, OVERRIDE = "h100_8b_single", "simulation.variants=[kernels]"
PROGRAMS = {
    "measure": "gst_assets.engine.run",
    "profile": "gst_assets.profiling.measure_bundle",
    "probe": "gst_assets.capacity.engine_probe",
}


def _commands(group: click.Group, *before: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, *before, name)


COMMANDS = dict(_commands(cli.gst))


def gst(*arguments: str, root: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {"GST_ARTIFACT_ROOT": str(root)} if root else {}
    return subprocess.run(
        [sys.executable, "-m", "gst_assets.cli", *arguments],
        cwd=PROJECT_ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def parses(line: str) -> None:
    """The line `gst ...` names a command that exists, with options and values that it takes. Runs nothing.

    Raises:
        click.ClickException: it does not.
    """
    words = shlex.split(re.split(r"\s+(?:>|#|\|)\s*", line)[0])
    assert words.pop(0) == "gst", line
    command: click.Command = cli.gst
    context: click.Context | None = None
    while True:
        if {"--help", "-h", "--version"} & set(words):
            return
        context = command.make_context(words[0] if words else "gst", words, parent=context)
        if not isinstance(command, click.Group):
            return
        words = [*context._protected_args, *context.args]
        _, found, words = command.resolve_command(context, words)
        assert found is not None, line
        command = found


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_of_every_command_loads_nothing_heavy() -> None:
    program = (
        f"import sys\nfrom gst_assets import cli\nfor words in {[list(words) for words in COMMANDS]!r}:\n    try:\n    "
        "    cli.gst.main([*words, '--help'], prog_name='gst')\n    except SystemExit as end:\n        assert end.code"
        " == 0, words\nothers = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\nown"
        " = {name for name in sys.modules if name.startswith('gst_assets.') and not"
        " name.startswith('gst_assets.cli')}\nprint(sorted(others & {'numpy', 'pandas', 'pydantic', 'yaml',"
        " 'omegaconf', 'dagster', 'torch', 'vidur', 'matplotlib'}), sorted(own), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[] ['gst_assets.errors']\n")
    assert done.stdout.count("Usage: gst ") == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_examples_of_every_command_are_commands(command: tuple[str, ...]) -> None:
    shown = run_gst(*command, "--help").stdout
    examples = [line.strip() for line in shown.partition("Examples:\n")[2].splitlines()]
    assert examples and all(example.startswith("gst ") for example in examples)
    assert any(example.startswith(f"gst {command[0]}") for example in examples)
    for example in examples:
        parses(example)


@pytest.mark.parametrize("command", PROGRAMS)
def test_a_command_has_the_options_of_the_child_process_it_also_is(command: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(PROGRAMS[command])._parser()

    def of_program() -> dict[str, tuple[bool, bool, object]]:
        return {
            action.option_strings[0]: (action.required, isinstance(action, argparse._AppendAction), action.nargs or 1)
            for action in parser._actions
            if action.option_strings and "--help" not in action.option_strings
        }

    assert of_program() == {
        option.opts[-1]: (option.required, option.multiple, option.nargs)
        for option in COMMANDS[command,].params
        if isinstance(option, click.Option)
    }


def test_options_are_handed_over_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the program with most of them, read back by the program's own parser."""
    module = importlib.import_module("gst_assets.profiling.measure_bundle")
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(module, "main", lambda words: seen.append(module._parser().parse_args(words)) or 7)
    given = ["--scenario", "smoke", "--out", "o", "--between", "w1", "s1", "--between", "w2", "s2", "--runs", "r"]
    given += ["--override", "a=1", "--override", "b=[2,3]"]
    assert run_gst("profile", *given).exit_code == 7
    assert seen == [module._parser().parse_args(given)]


# --- the documentation ------------------------------------------------------------------------------------------------


def _documented() -> list[tuple[str, str, bool]]:
    """Page, line, and whether it stands alone: every line `gst ...` of an indented or fenced block, and every `gst ...`
    in backquotes."""
    found = []
    for page in (PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))):
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        found += [(page.name, line, True) for line in re.findall(r"^(?:    )?(?:\$ )?(gst .+)$", text, re.M)]
        found += [(page.name, line, False) for line in re.findall(r"`(gst [a-z-]+[^`]*)`", text)]
    return found


def test_every_documented_command_exists_with_its_options() -> None:
    documented = _documented()
    assert sum(alone for _, _, alone in documented) >= 15
    for page, line, alone in documented:
        try:
            parses(re.sub(r"\bN\b", "1", line))  # stands for a number
        except click.MissingParameter:
            assert not alone, f"{page}: {line}"  # in a sentence a command may be named without its arguments
        except click.ClickException as error:
            raise AssertionError(f"{page}: {line}: {error.format_message()}") from None


@pytest.mark.parametrize(
    "line", ["gst nosuch", "gst list --nosuch", "gst runs --last none", "gst run", "gst recorded nosuch"]
)
def test_a_line_that_is_no_command_is_found(line: str) -> None:
    with pytest.raises(click.ClickException):
        parses(line)


def test_every_documented_command_is_run_by_a_test() -> None:
    """By name: a line of these tests, or of those of the programs that are child processes too, gives it."""
    sources = [file.read_text(encoding="utf-8") for file in (PROJECT_ROOT / "gst_assets_tests").rglob("*.py")]
    called = r"(?:run_gst\(|\bgst\(|_in_terminal\(|command\(|\"gst_assets\.cli\",)\s*\"([a-z-]+)\"(?:, \"([a-z]+)\")?"
    given = {words for text in sources for words in re.findall(called, text)}
    run = {first for first, _ in given} | {f"{first} {second}" for first, second in given}
    for name, module in PROGRAMS.items():
        calls = (f'run_module("{module}"', f"run({module.rpartition('.')[2]}.measure(")  # asyncio.run
        run |= {name} if any(call in text for text in sources for call in calls) else set()
    named = {re.match(r"gst (recorded [a-z]+|[a-z][a-z-]*)", line) for _, line, _ in _documented()}
    documented = {found[1] for found in named if found}
    assert len(documented) > 10 and documented <= run, documented - run


# --- scenarios --------------------------------------------------------------------------------------------------------


def test_scenarios_are_listed_with_what_each_is() -> None:
    lines = run_gst("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["scenario", *scenario_names()]
    listed = json.loads(run_gst("list", "--json").stdout)
    assert [one["name"] for one in listed] == scenario_names()
    by_name = {one["name"]: one for one in listed}
    assert by_name["smoke"] == {
        "name": "smoke",
        "command": "run",
        "model": "qwen3-tiny",
        "hardware": "cpu",
        "engine": "vllm",
        "needs_gpu": False,
        "traffic_s": 150,
        "description": load_scenario("smoke").description,
    }
    needing = {name for name, one in by_name.items() if one["needs_gpu"]}
    assert {"a100_light", "h100_8b_azure", "h200_32b_half"} <= needing
    assert not {"h100_8b_half", "h100_8b_sweep", "h100_8b_capacity", "openai_server", "cpu_half"} & needing
    assert (by_name["h100_8b_sweep"]["command"], by_name["cpu_capacity"]["command"]) == ("sweep", "capacity")


def test_the_list_is_filtered() -> None:
    def names(*options: str) -> set[str]:
        return {one["name"] for one in json.loads(run_gst("list", "--json", *options).stdout)}

    on_h200 = names("--hardware", "h200")
    assert {"h200_32b_half", "h200_30b_a3b_half"} <= on_h200 and not {"h200x2_32b_half", "h100_8b_half"} & on_h200
    assert names("--hardware", "h200", "--model", "qwen3-32b") == {"h200_32b_half", "h200_32b_single"}
    assert names("--model", "qwen3-4b") == {"h100_4b_bursts"} and names("--model", "qwen3-4b", "--no-gpu") == set()
    assert "h100_8b_half" in names("--no-gpu") and "a100_light" not in names("--no-gpu")


def test_listing_loads_neither_dagster_nor_pandas() -> None:
    program = (
        "import sys\nfrom gst_assets import cli\ncli.gst.main(['list'],"
        " standalone_mode=False)\nprint(sorted({'dagster', 'pandas', 'numpy', 'torch', 'vidur', 'matplotlib',"
        " 'pandera'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_file_that_is_no_scenario_is_told_apart_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: smoke\ndescription: Mine.\n")
    (tmp_path / "wrong.yaml").write_text("extends: smoke\nno_such_key: 1\n")
    monkeypatch.setenv("GST_SCENARIO_DIR", str(tmp_path))
    done = run_gst("list", "--hardware", "cpu")
    assert done.exit_code == 1 and re.search(r"^mine .* Mine\.$", done.stdout, re.M)
    assert done.stderr.startswith(f"error: {tmp_path / 'wrong.yaml'}: line 2: no_such_key: unknown key.")
    assert "wrong" not in done.stdout


def test_a_scenario_is_shown_with_what_it_needs() -> None:
    shown = run_gst("show", NAME).stdout
    assert shown.startswith(f"{NAME}: {load_scenario(NAME).description}\n")
    assert re.search(r"^recorded runs  yes   5 in .*/data/recorded/h100_8b_single$", shown, re.M)
    assert re.search(r"^a profile +yes +.*/data/profiles/h100/qwen3-8b$", shown, re.M)
    assert f"\ngst run {NAME} can run on this machine: yes\n" in shown and "\n  backend: recorded\n" in shown
    changed = run_gst("show", NAME, "-o", "engine.recorded=data/nothing", "-o", "profile.root=data/nothing").stdout
    assert re.search(r"^recorded runs  no    .*/data/nothing: no recorded runs there", changed, re.M)
    assert re.search(r"^a profile +no +.*no complete profiling bundle", changed, re.M)
    assert f"\ngst run {NAME} can run on this machine: no\n" in changed
    simulated = run_gst("show", "h100_8b_sweep").stdout
    assert "\ngst sweep h100_8b_sweep can run on this machine: yes\n" in simulated and "the device" not in simulated
    assert "can run on this machine: no" in run_gst("show", "h100_8b_capacity", "-o", "capacity.sides=[engine]").stdout


def test_what_only_the_run_can_tell_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    fits_the_profile = [
        "profile.root=data/profiles",
        "hardware.hardware_id=h100",
        "hardware.device_name=H100",
        "model.name=qwen3-8b",
        "model.geometry=null",
        "model.config=data/models/Qwen3-8B",
    ]
    options = [part for override in fits_the_profile for part in ("-o", override)]
    shown = run_gst("show", "openai_server", *options).stdout
    assert re.search(r"^a running server +\? +http://", shown, re.M)
    assert " can run on this machine: as far as is known before it starts, yes\n" in shown
    without = run_gst("show", "openai_server", "-o", "engine.server.api_key_variable=NO_SUCH_KEY").stdout
    assert re.search(r"^its key +no +environment variable NO_SUCH_KEY is not set$", without, re.M)
    assert " can run on this machine: no\n" in without


def test_an_own_file_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: smoke\ndescription: Mine.\nworkload: {num_requests: 5}\n")
    shown = json.loads(run_gst("show", tmp_path / "mine.yaml", "--json").stdout)
    assert (shown["name"], shown["workload"]["num_requests"]) == ("mine", 5)
    assert run_gst("--version").stdout == f"gst_assets {__version__}\n"


# --- answers ----------------------------------------------------------------------------------------------------------


def _in_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status of `gst`, and what it wrote to a terminal of its own."""
    ours, theirs = os.openpty()
    started = subprocess.Popen(
        [sys.executable, "-m", "gst_assets.cli", *arguments],
        cwd=PROJECT_ROOT, env=os.environ | environment, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    with suppress(OSError):  # EIO: nobody has the other end any more
        while data := os.read(ours, 65536):
            written += data
    os.close(ours)
    return started.wait(), written.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact root in which `gst run` made a recorded scenario, from a file of one's own, in a terminal."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "mine.yaml").write_text(f"extends: {NAME}\ndescription: Mine.\n")
    (folder / "dagster.yaml").write_text((PROJECT_ROOT / "dagster.yaml.example").read_text())
    places = {"DAGSTER_HOME": str(folder), "GST_ARTIFACT_ROOT": str(folder / "root")}
    status, written = _in_terminal("run", str(folder / "mine.yaml"), "-o", OVERRIDE, COLUMNS="100", **places)
    assert status == 0, written
    assert written.startswith("\nmine: Mine.\n") and f"simulated {OVERRIDE}" in " ".join(written.split())
    # What a step says stands behind its name and goes, also where Dagster keeps the output of steps.
    name = f"  {'measurements':<28}"
    said = rf"^{name}(?:{re.escape(ERASE)}{name}\S[^\r\n]*)+{re.escape(ERASE)}{name} +\d+\.\d s$"
    assert re.search(said, written, re.M), written
    return folder / "root"


@pytest.fixture
def made(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(root))
    return root


def test_the_newest_answer_is_printed_opened_and_described(made: Path, tmp_path: Path) -> None:
    (directory,) = (made / "comparisons").iterdir()
    shown = run_gst("latest").stdout
    assert shown == run_gst("latest", "mine").stdout
    assert shown.startswith("Vidur against vllm: qwen3-8b on h100, scenario ")
    assert shown.endswith(f"\nreport: {directory / 'report.html'}\nas text: {directory / 'summary.md'}\n")
    described = json.loads(run_gst("latest", "--json").stdout)
    assert described["report"] == str(directory / "report.html") and described["overrides"] == [OVERRIDE]
    assert described["verdict"] == json.loads((directory / "run_meta.json").read_text())["verdict"]
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path / "opened"}\n')
    browser.chmod(0o755)
    opened = gst("open", "mine", root=made, BROWSER=f"{browser} %s")
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, f"{directory / 'report.html'}\n", "")
    assert (tmp_path / "opened").read_text() == (directory / "report.html").as_uri() + "\n"


def test_without_a_browser_the_path_is_printed(made: Path) -> None:
    (directory,) = (made / "comparisons").iterdir()
    opened = gst("open", root=made, PATH="/nonexistent", BROWSER="", DISPLAY="", WAYLAND_DISPLAY="")
    assert (opened.returncode, opened.stdout) == (0, f"{directory / 'report.html'}\n")


def test_runs_are_listed_newest_first(made: Path) -> None:
    lines = run_gst("runs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["kind", "comparison", "simulated", *["real"] * 5]
    assert lines[2].endswith(f"complete (kernels); with {OVERRIDE}")
    found = json.loads(run_gst("runs", "mine", "--json").stdout)
    assert [one["kind"] for one in found] == ["comparison", "simulated"]
    assert all(
        one["overrides"] == [OVERRIDE] and Path(one["path"]).is_dir() and one["hardware"] == "h100" for one in found
    )
    assert [one["started_at"] for one in found] == sorted((one["started_at"] for one in found), reverse=True)
    few = run_gst("runs", "--kind", "real", "--last", "2").stdout.splitlines()
    assert len(few) == 4 and few[-1] == "and 3 older: gst runs --last 5"
    assert run_gst("runs", "nosuch").stdout == f"{made}: no such run.\n"


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("broken", "{"), ("foreign", '{"run_type": "real"}')):
        (tmp_path / "real_runs" / name).mkdir(parents=True)
        (tmp_path / "real_runs" / name / "run_meta.json").write_text(text)
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(tmp_path))
    lines = run_gst("runs").stdout.splitlines()[1:]
    assert re.match(r"real +foreign +not stated +not stated +not stated +not stated +complete$", lines[0])
    assert re.match(r"real +broken +.*unreadable: .*line 1: not valid JSON", lines[1])


def test_run_directories_are_compared_by_what_they_say_they_are(made: Path, tmp_path: Path) -> None:
    """Patterns in quotes, in any order."""
    out = tmp_path / "cmp"
    done = run_gst(
        "compare", made / "vidur_runs" / "*", f"{made}/real_runs/*-r[0-2]", f"{made}/real_runs/*-r0", "--out", out
    )
    assert done.exit_code == 0 and done.stdout.endswith(f"\n{out / 'report.html'}\n{out / 'summary.md'}\n")
    open_directory(out, Kind.COMPARISON)
    meta = json.loads((out / "run_meta.json").read_text())
    assert [Path(one).name[-2:] for one in meta["real_run_dirs"]] == ["r0", "r1", "r2"]
    again = run_gst("compare", made / "vidur_runs" / "*", made / "real_runs" / "*", "--out", out)
    assert (
        again.exit_code == 1
        and again.stderr
        == f"error: {out}: already exists. Comparisons are never overwritten; remove it or name another --out.\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("ROOT/real_runs/*",),
            "error: none of the 5 directories is a simulated run (run_type vidur in run_meta.json).",
        ),
        (("ROOT/vidur_runs/*",), "error: none of the 1 directories is a real run"),
        (("ROOT/real_runs/*", "ROOT/none/*"), "error: ROOT/none/*: the pattern matches no directory."),
        (
            ("ROOT/real_runs/*", "ROOT/comparisons/*"),
            "run_meta.json: run_type is 'compare' (a comparison), expected a real run",
        ),
        (("ROOT/real_runs",), "error: ROOT/real_runs: run_meta.json missing"),
    ],
)
def test_directories_that_make_no_comparison_are_named(
    made: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = run_gst("compare", *(word.replace("ROOT", str(made)) for word in words), "--out", tmp_path / "cmp")
    assert done.exit_code == 1 and told.replace("ROOT", str(made)) in done.stderr and not (tmp_path / "cmp").exists()


def test_one_file_to_send(made: Path, tmp_path: Path) -> None:
    (directory,) = (made / "comparisons").iterdir()
    assert run_gst("export", "mine", "--out", tmp_path / "answer.html").exit_code == 0
    assert (tmp_path / "answer.html").read_bytes() == (directory / "report.html").read_bytes()
    done = run_gst("export", directory.name, "--out", tmp_path / "all.zip")
    assert done.exit_code == 0 and done.stdout.startswith(f"{tmp_path / 'all.zip'}: ")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path)
    open_directory(tmp_path / directory.name, Kind.COMPARISON)
    for name, told in (
        ("answer.html", "already exists"),
        ("x.pdf", "expected a file name that ends in"),
        ("answer.html/x.zip", "cannot be written"),
    ):
        wrong = run_gst("export", "mine", "--out", tmp_path / name)
        assert wrong.exit_code == 1 and wrong.stderr.startswith(f"error: {tmp_path / name}: {told}")
    assert {path.name for path in tmp_path.iterdir()} == {"answer.html", "all.zip", directory.name}


def test_a_sweep_and_a_capacity_search_are_told(tmp_path: Path) -> None:
    """Neither touches an engine."""
    done = gst(
        "sweep",
        "h100_8b_sweep",
        "-o",
        "sweep.rates_per_s=[8]",
        "-o",
        "sweep.max_num_seqs=[128]",
        "-o",
        "workload.num_requests=20",
        root=tmp_path,
        DAGSTER_HOME="",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (directory,) = (tmp_path / "sweeps").iterdir()
    assert "\nSweep of h100_8b_sweep\n" in done.stdout and done.stdout.endswith(
        f"\nas text: {directory / 'summary.md'}\n"
    )
    done = gst(
        "capacity", "h100_8b_capacity", "-o", "capacity.num_requests=20", "-o", OVERRIDE, root=tmp_path, DAGSTER_HOME=""
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (directory,) = (tmp_path / "capacity").iterdir()
    assert f"\nCapacity {directory.name}\n" in done.stdout
    assert not (tmp_path / "real_runs").exists() and not (tmp_path / "comparisons").exists()


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of this test's own: the machine's may be held by a real engine."""
    monkeypatch.setenv("GST_ENGINE_LOCK", str(tmp_path / "engine.lock"))
    return tmp_path / "engine.lock"


def test_the_doctor_says_what_this_machine_is(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(tmp_path / "not_yet" / "root"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "nowhere"))
    shown = run_gst("doctor", "--seconds", "0.2").stdout
    for row in (
        rf"gst assets +{__version__}", r"python +3\.1[12]\.", r"versions .*vidur 0\.0\.26", r"processor .*, \d+ cores to use of \d+", r"gpu +\S",
        rf"artifact root +{tmp_path}/not_yet/root, made at the first run, [\d.]+ GiB free", rf"dagster home +{tmp_path}/nowhere: no such directory",
        rf"engine lock +{lock}: free", r"noise: A measurement here (is worth|shows) ",
    ):  # fmt: skip
        assert re.search(f"^{row}", shown, re.M), row
    told = json.loads(run_gst("doctor", "--seconds", "0.2", "--json").stdout)
    assert (
        told["noise"]["seconds"] >= 0.2 and told["noise"]["num_pieces"] >= 5 and told["engine_lock"] == f"{lock}: free"
    )
    assert json.loads(run_gst("doctor", "--seconds", "0", "--json").stdout)["noise"] == {
        "answer": "not measured (--seconds 0)."
    }


def test_the_doctor_leaves_an_engine_in_peace(lock: Path) -> None:
    with machine_lock(1, print, "smoke"):
        shown = run_gst("doctor").stdout
    holder = rf"process {os.getpid()} of user \S+ \(scenario smoke\) has held it since \S+"
    assert re.search(rf"^engine lock +{lock}: {holder}$", shown, re.M)
    assert re.search(
        rf"^noise: not measured, since it would disturb an engine that may be measuring: {holder}\.$", shown, re.M
    )


def test_what_the_doctor_cannot_use_is_told_in_its_place(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.mkdir()
    monkeypatch.setenv("GST_ARTIFACT_ROOT", "s3://")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    done = run_gst("doctor", "--seconds", "1")
    assert done.exit_code == 0
    for row in (
        r"artifact root +unusable: GST_ARTIFACT_ROOT=s3://: names no bucket",
        r"dagster home +DAGSTER_HOME is not set",
        rf"engine lock +unusable: {lock}: ",
        rf"noise: not measured: {lock}: ",
    ):
        assert re.search(f"^{row}", done.stdout, re.M), row


def test_slots_of_ended_runs_are_freed_and_those_of_running_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg
    from dagster._core.test_utils import create_run_for_test  # a run without a job to execute

    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert run_gst("doctor", "--free-pool").stderr.startswith("error: DAGSTER_HOME is not set")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert run_gst("doctor", "--free-pool").stdout == "no slot of a pool is taken\n"
    with dg.DagsterInstance.get() as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("engine", 3)
        ended, running = (
            create_run_for_test(instance, status=status).run_id
            for status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED)
        )
        gone = str(uuid.uuid4())
        for run_id in (ended, running, gone):
            assert storage.claim_concurrency_slot("engine", run_id, "measurements").is_claimed
    freed = run_gst("doctor", "--free-pool").stdout
    assert set(freed.splitlines()[:2]) == {f"freed: pool engine, run {one}" for one in (ended, gone)}
    assert f"kept: pool engine, run {running}, which counts as running." in freed
    assert json.loads(run_gst("doctor", "--free-pool", "--json").stdout) == {"freed": [], "kept": [["engine", running]]}


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("show", "nosuch"), 1, "error: unknown scenario 'nosuch'"),
        (("show", "./nosuch.yaml"), 1, "error: nosuch.yaml: no such file."),
        (("run", "nosuch"), 1, "error: unknown scenario 'nosuch'"),
        (("run", "./nosuch.yaml"), 1, "error: nosuch.yaml: no such file."),
        (("run", "smoke", "-o", "foo=1"), 1, "error: override 'foo=1' of scenario smoke: foo: unknown key."),
        (("sweep", "smoke"), 1, "error: scenario smoke: has no section sweep"),
        (("capacity", "smoke"), 1, "error: scenario smoke: has no section capacity"),
        (("latest",), 1, "error: ROOT: no comparison. Make one: gst run h100_8b_half."),
        (("latest", "smoke"), 1, "error: ROOT: no comparison for scenario smoke."),
        (("open", "smoke"), 1, "error: ROOT: no comparison for scenario smoke."),
        (("export", "smoke", "--out", "x.html"), 1, "error: ROOT: no comparison for scenario smoke."),
        (("compare", "/none", "--out", "ROOT"), 1, "error: /none: no such directory."),
        (("measure", "--workload", "/none", "--scenario", "smoke", "--out", "ROOT"), 1, "error: /none"),
        (("profile", "--scenario", "nosuch", "--out", "ROOT"), 1, "error: unknown scenario 'nosuch'"),
        (("probe", "--scenario", "smoke", "--out", "ROOT"), 1, "error: scenario smoke: has no capacity section"),
        (("recorded", "expand", "/none", "--out", "ROOT"), 1, "error: /none"),
        (("self-fit", "/none"), 1, "error: /none"),
        (("search-forests", "/none"), 1, "error: /none"),
        (("nosuch",), 2, "Usage: gst "),
        (("run",), 2, "Usage: gst run "),
        (("compare",), 2, "Usage: gst compare "),
        (("compare", "a", "b", "--out", "c", "--pass-band", "x"), 2, "Usage: gst compare "),
        (("runs", "--last", "0"), 2, "Usage: gst runs "),
        (("latest", "-o", "replay.repeats=2"), 2, "Usage: gst latest "),
        (("doctor", "--seconds", "21"), 2, "Usage: gst doctor "),
        (("compare", "/none", "/none"), 1, "error: /none: no such directory."),
        (("import", "blis", "/none", "--out", "ROOT/x"), 1, "error: /none: no such file."),
        (
            ("import", "nosuch", "/none", "--out", "ROOT/x"),
            1,
            "error: unknown format 'nosuch'; known: vllm-bench, guidellm,",
        ),
        (("import", "blis"), 2, "Usage: gst import "),
        (("recorded", "pack", "a"), 2, "Usage: gst recorded pack "),
    ],
)
def test_an_error_is_one_line_and_status_1_and_wrong_usage_is_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    told: str,
) -> None:
    monkeypatch.setenv("GST_ARTIFACT_ROOT", str(tmp_path))
    done = run_gst(*(word.replace("ROOT", str(tmp_path)) for word in arguments))
    shown = done.stderr or capfd.readouterr().err
    assert done.exit_code == status, shown
    assert shown.startswith(told.replace("ROOT", str(tmp_path)))
    if status == 1:
        assert len(shown.splitlines()) == 1


def test_a_package_that_is_not_installed_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A base installation has no pandera."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pandera'] = None\n")
    done = gst("compare", "a", "b", "--out", "c", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: this command needs the package pandera, which is not installed.")
