"""A scenario `mine` and its parent as files, read and refused. No test stands here."""

from __future__ import annotations

from pathlib import Path

import pytest

from gst_assets.errors import ScenarioError
from gst_assets.scenario import (
    Scenario,
    load_scenario,
)

PARENT = """\
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
MINE = """\
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


def error_of(directory: Path, *overrides: str, name: str = "mine") -> str:
    with pytest.raises(ScenarioError) as error:
        load_scenario(name, overrides, directory)
    return str(error.value)


def load(directory: Path, *overrides: str, name: str = "mine") -> Scenario:
    return load_scenario(name, overrides, directory)
