"""The tables of a profiling bundle."""

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from gst_assets.contracts.tables.base import FilledTable, Int, Table


class MlpProfile(FilledTable):
    """Per-layer operator times in milliseconds by `num_tokens`, in Vidur's column names (Vidur 0.0.26,
    `SklearnExecutionTimePredictor._train_general_models`). A mixture of experts has no MLP: its three columns are empty
    throughout, and the times of its experts are in experts.csv."""

    class Config(Table.Config):
        name = "mlp.csv"

    input_layernorm: Series[float] = pa.Field(
        gt=0, alias="time_stats.input_layernorm.median", description="norm before attention"
    )
    attn_pre_proj: Series[float] = pa.Field(
        gt=0, alias="time_stats.attn_pre_proj.median", description="projection to q, k and v"
    )
    attn_rope: Series[float] = pa.Field(
        gt=0, alias="time_stats.attn_rope.median", description="q/k norm and rotary embedding"
    )
    attn_post_proj: Series[float] = pa.Field(
        gt=0, alias="time_stats.attn_post_proj.median", description="projection of the attention's output"
    )
    post_attention_layernorm: Series[float] = pa.Field(
        gt=0, alias="time_stats.post_attention_layernorm.median", description="norm before the feed-forward part"
    )
    mlp_up_proj: Series[float] = pa.Field(
        gt=0,
        nullable=True,
        alias="time_stats.mlp_up_proj.median",
        description="gate and up projection; empty with experts",
    )
    mlp_act: Series[float] = pa.Field(
        gt=0,
        nullable=True,
        alias="time_stats.mlp_act.median",
        description="activation of the feed-forward part; empty with experts",
    )
    mlp_down_proj: Series[float] = pa.Field(
        gt=0,
        nullable=True,
        alias="time_stats.mlp_down_proj.median",
        description="down projection; empty with experts",
    )
    add: Series[float] = pa.Field(
        ge=0, alias="time_stats.add.median", description="0 where the engine fuses the residual add into a norm"
    )
    n_head: Series[Int] = pa.Field(gt=0, description="query heads")
    n_kv_head: Series[Int] = pa.Field(gt=0, description="key and value heads")
    n_embd: Series[Int] = pa.Field(gt=0, description="hidden size")
    n_expanded_embd: Series[Int] = pa.Field(gt=0, description="hidden size of the feed-forward part")
    vocab_size: Series[Int] = pa.Field(gt=0, description="of the model")
    use_gated_mlp: Series[bool] = pa.Field(description="whether the feed-forward part has a gate")
    num_tokens: Series[Int] = pa.Field(gt=0, unique=True, description="tokens in the batch")
    num_tensor_parallel_workers: Series[Int] = pa.Field(gt=0, description="devices one layer is spread over")

    @pa.dataframe_check(error="the columns mlp_up_proj, mlp_act and mlp_down_proj are filled in every row or in none")
    def mlp_is_there_or_not(cls, df: pd.DataFrame) -> pd.Series:
        known = df[[f"time_stats.{name}.median" for name in ("mlp_up_proj", "mlp_act", "mlp_down_proj")]].notna()
        return known.all(axis=1) if known.to_numpy().any() else ~known.any(axis=1)


class ExpertsProfile(FilledTable):
    """Per-layer times in milliseconds of a mixture of experts, by tokens and by how these are given to the experts. A
    bundle of a dense decoder has no such file."""

    class Config(Table.Config):
        name = "experts.csv"

    num_tokens: Series[Int] = pa.Field(gt=0, description="tokens in the batch")
    routing: Series[str] = pa.Field(
        isin=["router", "even", "same"],
        description=(
            "router: its own choice on hidden states of random tokens; even: tokens spread as evenly as possible; same:"
            " all to the same experts"
        ),
    )
    moe_router: Series[float] = pa.Field(
        gt=0,
        nullable=True,
        alias="time_stats.moe_router.median",
        description="the gate's projection; filled in rows of routing router",
    )
    moe_experts: Series[float] = pa.Field(
        gt=0, alias="time_stats.moe_experts.median", description="the routing choice and the experts that it chose"
    )
    distinct_experts: Series[float] = pa.Field(
        gt=0, description="experts of a layer that got at least one token, as the mean over the layers"
    )
    n_expert: Series[Int] = pa.Field(gt=0, description="experts of a layer")
    n_expert_per_token: Series[Int] = pa.Field(gt=0, description="experts of a token")
    n_embd: Series[Int] = pa.Field(gt=0, description="hidden size")
    n_expanded_embd: Series[Int] = pa.Field(gt=0, description="hidden size of one expert")
    num_tensor_parallel_workers: Series[Int] = pa.Field(gt=0, description="devices one layer is spread over")

    @pa.dataframe_check(error="moe_router is filled where routing is router, and there only")
    def gate_is_timed_once(cls, df: pd.DataFrame) -> pd.Series:
        return df["time_stats.moe_router.median"].notna() == (df["routing"] == "router")

    @pa.dataframe_check(error="num_tokens and routing stand in one row only")
    def stands_once(cls, df: pd.DataFrame) -> pd.Series:
        return ~df.duplicated(["num_tokens", "routing"])

    @pa.dataframe_check(error="distinct_experts must be from n_expert_per_token to n_expert")
    def distinct_is_possible(cls, df: pd.DataFrame) -> pd.Series:
        found = df["distinct_experts"].replace(float("inf"), float("nan"))  # which another check names
        return ~((found < df["n_expert_per_token"]) | (found > df["n_expert"]))


class ServedExperts(Table):
    """Which experts the router chose while the engine of a bundle served calibration traffic: steps by kind and tokens.

    With random weights (`load_format: dummy`) this is what the calibrated step times hold; a checkpoint may spread its
    tokens otherwise. On a GPU these steps ran without captured graphs, so without the rows by which a graph pads them.
    """

    class Config(Table.Config):
        name = "served_experts.csv"

    step_kind: Series[str] = pa.Field(
        isin=["decode", "mixed"], description="decode: one token of each request; mixed: at least one prompt"
    )
    num_tokens: Series[Int] = pa.Field(gt=0, description="new tokens of the step")
    num_steps: Series[Int] = pa.Field(gt=0, description="steps seen")
    distinct_experts: Series[float] = pa.Field(
        gt=0, description="experts of a layer that got at least one token, as the mean over layers and steps"
    )
    even_distinct_experts: Series[float] = pa.Field(
        gt=0,
        description=(
            "expected of a router that chooses for each token by itself, any experts alike: n_expert * (1 - (1 -"
            " n_expert_per_token / n_expert) ^ num_tokens)"
        ),
    )

    @pa.dataframe_check(error="step_kind and num_tokens stand in one row only")
    def stands_once(cls, df: pd.DataFrame) -> pd.Series:
        return ~df.duplicated(["step_kind", "num_tokens"])


class AttentionProfile(FilledTable):
    """Per-layer attention times in milliseconds. `kv_cache_size` is the number of tokens cached before the step.

    Prefill rows (`is_prefill`): one sequence, `prefill_chunk_size` new tokens; `attn_decode` empty.
    Decode rows: `batch_size` sequences of `kv_cache_size` tokens each; `attn_prefill` empty.
    """

    class Config(Table.Config):
        name = "attention.csv"

    n_embd: Series[Int] = pa.Field(gt=0, description="hidden size")
    n_q_head: Series[Int] = pa.Field(gt=0, description="query heads")
    n_kv_head: Series[Int] = pa.Field(gt=0, description="key and value heads")
    head_dim: Series[Int] = pa.Field(gt=0, description="of one head")
    block_size: Series[Int] = pa.Field(gt=0, description="tokens in a block of KV cache")
    num_tensor_parallel_workers: Series[Int] = pa.Field(gt=0, description="devices one layer is spread over")
    max_model_len: Series[Int] = pa.Field(gt=0, description="longest context of the engine, in tokens")
    attention_backend: Series[str] = pa.Field(description="the engine's kernels")
    is_prefill: Series[bool] = pa.Field(description="True: new tokens of one prompt; False: one token of each sequence")
    batch_size: Series[Int] = pa.Field(gt=0, description="sequences in the batch")
    prefill_chunk_size: Series[Int] = pa.Field(ge=0, description="new tokens; 0 when decoding")
    kv_cache_size: Series[Int] = pa.Field(ge=0, description="tokens cached before the step, of each sequence")
    attn_prefill: Series[float] = pa.Field(
        gt=0,
        nullable=True,
        alias="time_stats.attn_prefill.median",
        description="attention of a prompt; empty when decoding",
    )
    attn_decode: Series[float] = pa.Field(
        gt=0,
        nullable=True,
        alias="time_stats.attn_decode.median",
        description="attention of a decode batch; empty in prefill",
    )
    attn_kv_cache_save: Series[float] = pa.Field(
        gt=0, alias="time_stats.attn_kv_cache_save.median", description="writing keys and values to the cache"
    )

    @pa.dataframe_check(
        error=(
            "a row with is_prefill True needs prefill_chunk_size above 0, attn_prefill and no attn_decode; one with"
            " False the reverse"
        )
    )
    def kind_matches_columns(cls, df: pd.DataFrame) -> pd.Series:
        prefill = df["is_prefill"]
        has_prefill = df["time_stats.attn_prefill.median"].notna()
        has_decode = df["time_stats.attn_decode.median"].notna()
        return (has_prefill == prefill) & (has_decode != prefill) & ((df["prefill_chunk_size"] > 0) == prefill)

    @pa.dataframe_check(
        error="two rows describe the same point (is_prefill, batch_size, prefill_chunk_size, kv_cache_size)"
    )
    def points_are_unique(cls, df: pd.DataFrame) -> pd.Series:
        return ~df.duplicated(["is_prefill", "batch_size", "prefill_chunk_size", "kv_cache_size"])


class AllReduceProfile(FilledTable):
    """The sum of one tensor of hidden states over the devices that share each layer, in milliseconds, by `num_tokens`,
    in Vidur's column names (Vidur 0.0.26, `SklearnExecutionTimePredictor._load_all_reduce_df`). A layer has two."""

    class Config(Table.Config):
        name = "all_reduce.csv"

    all_reduce: Series[float] = pa.Field(gt=0, alias="time_stats.all_reduce.median", description="of one sum")
    num_tokens: Series[Int] = pa.Field(gt=0, unique=True, description="tokens in the batch")
    message_bytes: Series[Int] = pa.Field(gt=0, description="tokens times hidden size, in the engine's dtype")
    size: Series[Int] = pa.Field(gt=0, description="the same at two bytes a value, as Vidur counts whatever the dtype")
    num_workers: Series[Int] = pa.Field(gt=1, description="devices that take part")
    devices_per_node: Series[Int] = pa.Field(gt=1, description="of these on one host: all")
    collective: Series[str] = pa.Field(isin=["all_reduce"])


class UnmodelledOperators(FilledTable):
    """Times of what runs once a step and has no column in Vidur's tables: embedding and final_norm by tokens, lm_head
    and sampling by sequences."""

    class Config(Table.Config):
        name = "unmodelled.csv"

    operator: Series[str] = pa.Field(isin=["embedding", "final_norm", "lm_head", "sampling"])
    num_rows: Series[Int] = pa.Field(gt=0, description="tokens or sequences")
    median_ms: Series[float] = pa.Field(gt=0)


class Overheads(FilledTable):
    """What the parts of an engine step and the paths of a request cost, fitted to calibration (`profiling.term_fit`).

    A term of a kind of step is a curve through its `base` rows (linear between positions, held beyond) plus `ns` of
    each other feature (a curve like it where it has several rows) times that feature of the step. The terms: `prepare`
    (forming a step to launching its forward pass), `launch` (from there until all is launched), `form` (forming a step
    and passing it to workers that are processes of their own, which prepare and launch it when they have launched the
    one before; not there where the engine's process launches), `prepare_after_idle`
    and `launch_after_idle` (what a step takes more that is formed when none is out), `lead_in` (device time between two
    steps), `device` (busy time of a device that never waits), `drain` (end of the launch to the end on a device that
    was not behind), `copy_out` (to the tokens at a host that waits), `process` (to the forming of a next step),
    `handover` (sending a request to an idle engine's first step), `delivery` (a step's tokens at the host to the
    client).
    """

    class Config(Table.Config):
        name = "overheads.csv"

    term: Series[str] = pa.Field(
        isin=[
            "form",
            "prepare",
            "launch",
            "prepare_after_idle",
            "launch_after_idle",
            "lead_in",
            "device",
            "drain",
            "copy_out",
            "process",
            "handover",
            "delivery",
        ],
        description="what is timed; the class says what each term covers",
    )
    step_kind: Series[str] = pa.Field(
        isin=["decode", "mixed", "mixed_eager", "any"],
        description=(
            "decode: no prompt token in the step; mixed: at least one; mixed_eager: beyond the captured graph sizes"
        ),
    )
    feature: Series[str] = pa.Field(
        isin=[
            "base",
            "prefill_request",
            "prefill_token",
            "decode_request",
            "decode_context_token",
            "attention_pair",
            "warm_token",
            "warmth",
            "reread_context_token",
        ],
        description="what ns is multiplied with; base: a point of the curve",
    )
    position: Series[float] = pa.Field(
        ge=0,
        description=(
            "tokens the device processes (device), decodes (prepare and launch of decode steps, delivery), requests"
            " (process, copy_out, form), prompt tokens (handover), else 0; meaningless for a slope in one row only"
        ),
    )
    ns: Series[float] = pa.Field(description="nanoseconds; only drain and the terms after idle may be negative")
    num_samples: Series[Int] = pa.Field(ge=0, description="steps or requests that the whole term was fitted to")
    residual_p05_ns: Series[Int] = pa.Field(description="5th percentile of sample less fit, over the whole term")
    residual_p95_ns: Series[Int] = pa.Field(description="95th percentile of the same")

    @pa.dataframe_check(error="ns must not be negative except for drain and the terms after idle")
    def takes_time(cls, df: pd.DataFrame) -> pd.Series:
        return (df["ns"] >= 0) | df["term"].isin(["drain", "prepare_after_idle", "launch_after_idle"])

    @pa.dataframe_check(error="a term, step_kind, feature and position stand in one row only")
    def stands_once(cls, df: pd.DataFrame) -> pd.Series:
        return ~df.duplicated(["term", "step_kind", "feature", "position"])


class HostSpeed(FilledTable):
    """How fast the engine's host was during calibration traffic, in order of time: one row per step and one per step
    whose tokens were delivered.

    A simulation replays the sequence, so that its slow moments last as long as the real ones.
    """

    class Config(Table.Config):
        name = "host_speed.csv"

    time_ns: Series[Int] = pa.Field(ge=0, description="since the first step; longer idle times are shortened")
    part: Series[str] = pa.Field(
        isin=["decode", "prefill", "delivery"],
        description=(
            "decode, prefill: forming and launching a step without or with prompts (on a CPU: and computing it);"
            " delivery: a step's tokens on their way to the clients"
        ),
    )
    ratio: Series[float] = pa.Field(gt=0, description="time taken over the time that the terms predict")

    @pa.dataframe_check(error="time_ns must not decrease")
    def in_order(cls, df: pd.DataFrame) -> pd.Series:
        return df["time_ns"].diff().fillna(0) >= 0


class CalibrationTraffic(FilledTable):
    """The requests of the calibration traffic as their clients saw them, so that a bundle can be checked against what
    it was made from."""

    class Config(Table.Config):
        name = "calibration_traffic.csv"

    stretch: Series[str] = pa.Field(description="round and rate, or burst")
    request_id: Series[Int] = pa.Field(ge=0, description="0.. within the stretch, in order of arrival")
    arrival_time_ns: Series[Int] = pa.Field(ge=0, description="intended, since the first of the stretch")
    num_prefill_tokens: Series[Int] = pa.Field(gt=0)
    num_decode_tokens: Series[Int] = pa.Field(gt=0)
    ttft_ns: Series[Int] = pa.Field(gt=0)
    e2e_ns: Series[Int] = pa.Field(gt=0)
    itl_p50_ns: Series[Int] = pa.Field(
        ge=0, nullable=True, description="median gap between the request's tokens; empty with one token"
    )
    itl_p90_ns: Series[Int] = pa.Field(ge=0, nullable=True, description="90th percentile of the same")


class SelfFit(Table):
    """Calibration traffic simulated with the bundle itself, and what was measured: one row per kind of traffic,
    metric and statistic.

    `measured_ns` and `simulated_ns` are medians over the rounds of the statistic in each, `relative_error` the median
    of the rounds' errors (their traffic differs) and `spread` the largest of these less the smallest. `itl` is over the
    requests' median gaps at p50 and their 90th percentiles at p90.
    """

    class Config(Table.Config):
        name = "self_fit.csv"

    traffic: Series[str] = pa.Field(description="traffic and its rate per second, or burst")
    metric: Series[str] = pa.Field(isin=["ttft", "itl", "e2e"])
    statistic: Series[str] = pa.Field(isin=["p50", "p90"])
    num_requests: Series[Int] = pa.Field(gt=0, description="over all rounds")
    measured_ns: Series[Int] = pa.Field(gt=0)
    spread: Series[float] = pa.Field(ge=0)
    simulated_ns: Series[Int] = pa.Field(gt=0)
    relative_error: Series[float] = pa.Field(description="median over the rounds of (simulated - measured) / measured")
    fits: Series[bool] = pa.Field(description="whether the error is within 3 % or the spread, whichever is larger")


class OperatorCoverage(Table):
    """What the operators, timed one by one, add up to, compared with the whole steps they are part of. A CPU's whole
    steps include its host's work."""

    class Config(Table.Config):
        name = "operator_coverage.csv"

    step_kind: Series[str] = pa.Field(isin=["decode", "mixed", "mixed_eager"])
    num_tokens: Series[Int] = pa.Field(gt=0, description="new tokens of the step, padded as the device processes them")
    num_decode_requests: Series[Int] = pa.Field(ge=0, description="median over the samples")
    num_context_tokens: Series[Int] = pa.Field(ge=0, description="KV tokens present, median over the samples")
    num_samples: Series[Int] = pa.Field(gt=0)
    whole_step_ns: Series[Int] = pa.Field(gt=0, description="median device time of the steps")
    operators_ns: Series[Int] = pa.Field(
        gt=0, description="median sum of operators of the same steps, Vidur's and what it leaves out"
    )
    coverage: Series[float] = pa.Field(gt=0, description="operators_ns / whole_step_ns")
