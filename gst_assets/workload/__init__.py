"""The deterministic workload: prompts, their token lengths, and when each request arrives.

The same workload directory drives the real engine and the simulator. Running it belongs to `engine` and `vidur_adapter`.
"""
