"""What pyproject.toml cannot say: the top-level data/ of the checkout is gst_assets/data/ in a wheel. All else is in
pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("models", "profiles", "prompts", "recorded", "tokenizer")
"""Folders of data/ that a wheel holds. Not traces/: what is there was downloaded, under licences of its own."""


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout's own data/ is used
            return
        target = Path(self.build_lib) / "gst_assets" / "data"
        shutil.rmtree(target, ignore_errors=True)  # build/ is kept between builds
        for name in SHIPPED:
            shutil.copytree(Path("data") / name, target / name)


setup(cmdclass={"build_py": BuildWithData})
