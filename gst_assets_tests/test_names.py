"""No two modules of the package and no two of its classes share a name, so that a name in a sentence, an error or a
search means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from gst_assets.provenance import PROJECT_ROOT

_OF_THE_LANGUAGE = {"__init__", "__main__", "Config"}  # `Config` is how pandera is told a table's name


def named_twice(package: Path) -> dict[str, list[str]]:
    """Names that two or more modules, or two or more classes, of `package` have, each with the files."""
    modules, classes = defaultdict(list), defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package).as_posix()
        modules[path.stem].append(where)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes[f"class {node.name}"].append(where)
    named = {**modules, **classes}
    own = {name: where for name, where in named.items() if name.removeprefix("class ") not in _OF_THE_LANGUAGE}
    return {name: where for name, where in own.items() if len(where) > 1}


def test_every_module_and_every_class_has_a_name_of_its_own() -> None:
    assert named_twice(PROJECT_ROOT / "gst_assets") == {}


def test_a_name_given_twice_is_found(tmp_path: Path) -> None:
    for folder, text in (("one", "class A:\n    class B: ...\n"), ("two", "class B: ...\nclass C: ...\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(text)
        (tmp_path / folder / "__init__.py").write_text("")
    both = ["one/same.py", "two/same.py"]
    assert named_twice(tmp_path) == {"same": both, "class B": both}
