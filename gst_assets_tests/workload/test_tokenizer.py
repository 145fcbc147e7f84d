"""A tokenizer is data: what stands beside it is never run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from gst_assets.provenance import PROJECT_ROOT

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
    """Without being told so, the library asks on standard input whether to trust it."""
    mine = tmp_path / "tokenizer"
    shutil.copytree(PROJECT_ROOT / "data" / "tokenizer" / "qwen3", mine)
    config = mine / "tokenizer_config.json"
    said = json.loads(config.read_text()) if config.exists() else {}
    said |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    config.write_text(json.dumps(said))
    ran = tmp_path / "ran"
    (mine / "mine.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LOAD, str(mine)],
        cwd=PROJECT_ROOT, input="y\n" * 5, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert not ran.exists()
    assert "wants code of its own run, which is never done. Name a tokenizer" in done.stdout, done.stderr
