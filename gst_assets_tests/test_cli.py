"""The command `gst`, as a process."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gst_assets import __version__, cli
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.scenario import load_scenario, scenario_names

COMMANDS = {
    (*before, name): command
    for before, group in (((), cli.gst), (("recorded",), cli.recorded))
    for name, command in group.commands.items()
}
PROGRAMS = {
    ("compare",): "gst_assets.analysis.compare",
    ("import",): "gst_assets.importers.command",
    ("measure",): "gst_assets.engine.run",
    ("profile",): "gst_assets.profiling.measure_bundle",
    ("capacity",): "gst_assets.capacity.engine_probe",
}


def gst(*arguments: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"GST_ARTIFACT_ROOT": str(root)} if root else {})
    return subprocess.run(
        [sys.executable, "-m", "gst_assets.cli", *arguments],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_of_every_command_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom gst_assets import cli\n"
        f"for words in {[list(words) for words in COMMANDS]!r}:\n"
        "    try:\n        cli.gst.main([*words, '--help'], prog_name='gst')\n"
        "    except SystemExit as end:\n        assert end.code == 0, words\n"
        "light = {'click', 'gst_assets', 'gst_assets.cli', 'gst_assets.errors'}\n"
        "others = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(others & {'numpy', 'pandas', 'pydantic', 'yaml', 'omegaconf', 'dagster', 'torch', 'vidur', 'matplotlib'}), "
        "sorted(name for name in sys.modules if name.startswith('gst_assets') and name not in light), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[] []\n")
    assert done.stdout.count("Usage: gst ") == len(COMMANDS) == 15


@pytest.mark.parametrize("command", PROGRAMS)
def test_a_command_has_the_options_of_the_program_it_runs(command: tuple[str, ...]) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(PROGRAMS[command])._parser()

    def of_program() -> dict[str, tuple[bool, bool, object]]:
        return {
            action.option_strings[0]: (action.required, isinstance(action, argparse._AppendAction), action.nargs or 1)
            for action in parser._actions
            if action.option_strings and "--help" not in action.option_strings
        }

    assert of_program() == {
        option.opts[0]: (option.required, option.multiple, option.nargs)
        for option in COMMANDS[command].params
        if isinstance(option, click.Option)
    }


def test_options_are_handed_over_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the program with most of them, read back by the program's own parser."""
    module = importlib.import_module("gst_assets.profiling.measure_bundle")
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(module, "main", lambda words: seen.append(module._parser().parse_args(words)) or 7)
    given = ["--scenario", "smoke", "--out", "o", "--between", "w1", "s1", "--between", "w2", "s2", "--runs", "r"]
    given += ["--override", "a=1", "--override", "b=[2,3]"]
    with pytest.raises(SystemExit) as end:
        cli.gst.main(["profile", *given], prog_name="gst")
    assert end.value.code == 7
    assert seen == [module._parser().parse_args(given)]


def test_scenarios_are_listed_and_shown() -> None:
    listed = gst("list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == scenario_names()
    shown = gst("show", "smoke", "workload.num_decode_tokens=5")
    assert json.loads(shown.stdout) == load_scenario("smoke", ["workload.num_decode_tokens=5"]).model_dump(mode="json")
    assert gst("--version").stdout == f"gst_assets {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("show", "nosuch"), 1, "error: unknown scenario 'nosuch'"),
        (("run", "nosuch"), 1, "error: unknown scenario 'nosuch'"),
        (("latest", "smoke"), 1, "error: ROOT: no comparison for scenario smoke."),
        (("compare", "--real", "/none", "--sim", "/none", "--out", "ROOT"), 1, "error: ROOT: already exists."),
        (("recorded", "expand", "/none", "--out", "ROOT"), 1, "error: /none"),
        (("self-fit", "/none"), 1, "error: /none"),
        (("nosuch",), 2, "Usage: gst "),
        (("run",), 2, "Usage: gst run "),
        (("compare",), 2, "Usage: gst compare "),
        (("compare", "--real", "a", "--sim", "b", "--out", "c", "--pass-band", "x"), 2, "Usage: gst compare "),
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
    tmp_path: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    done = gst(*(word.replace("ROOT", str(tmp_path)) for word in arguments), root=tmp_path)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(told.replace("ROOT", str(tmp_path))) and done.stdout == ""
    if status == 1:
        assert len(done.stderr.splitlines()) == 1


def test_a_package_that_is_not_installed_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A base installation has no pandera."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pandera'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "gst_assets.cli", "compare", "--real", "a", "--sim", "b", "--out", "c"],
        cwd=PROJECT_ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: this command needs the package pandera, which is not installed.")
