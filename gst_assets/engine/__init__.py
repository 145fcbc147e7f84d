"""The real engine: the protocol, the open-loop replay that measures it, its backends, and the child process it runs in.

Nothing here knows Dagster or Vidur. Every module can be imported on a bare GPU host (numpy, pandas, pydantic), except
`vllm_tracing`, which vLLM imports inside its own process.
"""
