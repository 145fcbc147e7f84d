"""A tokenizer is data: code next to it is never run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gst_assets.errors import WorkloadError
from gst_assets.provenance import PROJECT_ROOT
from gst_assets.workload.tokenizer import load_tokenizer

_LOAD = """
import sys
from gst_assets.workload.tokenizer import load_tokenizer
from gst_assets.errors import WorkloadError
try:
    print(load_tokenizer(sys.argv[1]).count(["two words"], workers=1))
except WorkloadError as error:
    print(error)
"""


def test_code_of_a_tokenizers_directory_is_not_run_whoever_says_yes(tmp_path: Path) -> None:
    """Without that setting the library asks on standard input whether to trust it."""
    mine = tmp_path / "tokenizer"
    shutil.copytree(PROJECT_ROOT / "data" / "tokenizer" / "qwen3", mine)
    config = mine / "tokenizer_config.json"
    said = json.loads(config.read_text()) if config.exists() else {}
    said |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    config.write_text(json.dumps(said))
    ran = tmp_path / "ran"
    (mine / "mine.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\nclass"
        " Mine(PreTrainedTokenizerFast): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LOAD, str(mine)],
        cwd=PROJECT_ROOT, input="y\n" * 5, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert not ran.exists()
    assert "requires code of its own to run, which is never done. Name a tokenizer" in done.stdout, done.stderr


def test_ids_are_those_of_transformers_without_importing_it() -> None:
    """Texts of every kind that the byte-level splitting treats apart, special tokens spelt out among them."""
    texts = [
        "two words",
        "  spaces\n\n\ttabs  ",
        "naïve Ωmega 東京 🦉",
        "1234567 3.14",
        "<|im_start|>user<|im_end|>",
        "a'll I'm",
        "",
    ]
    script = (
        "import sys, json\nfrom gst_assets.workload.tokenizer import"
        " load_tokenizer\nprint(json.dumps([load_tokenizer('data/tokenizer/qwen3').encode(json.loads(sys.argv[1])),"
        " 'transformers' in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(texts)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    ids, has_transformers = json.loads(done.stdout)
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(PROJECT_ROOT / "data" / "tokenizer" / "qwen3")
    assert ids == [slow(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert not has_transformers


def test_tokens_that_only_the_configuration_adds_are_counted_as_one(tmp_path: Path) -> None:
    mine = tmp_path / "tokenizer"
    shutil.copytree(PROJECT_ROOT / "data" / "tokenizer" / "qwen3", mine)
    config = json.loads((mine / "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = [*config["additional_special_tokens"], "<|mine|>"]
    (mine / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(mine)).count(["<|mine|>"]) == [1]


@pytest.mark.parametrize(
    ("name", "text"), [("tokenizer.json", "{}"), ("tokenizer.json", "no JSON"), ("tokenizer_config.json", "[1]")]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    mine = tmp_path / "tokenizer"
    shutil.copytree(PROJECT_ROOT / "data" / "tokenizer" / "qwen3", mine)
    (mine / name).write_text(text)
    with pytest.raises(WorkloadError, match=f"{name}: .*Fetch the file again"):
        load_tokenizer(str(mine))
