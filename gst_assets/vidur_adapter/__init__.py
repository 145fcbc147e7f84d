"""Running Vidur 0.0.26, unpatched, on the workload and with the settings of a real engine.

`simulate` is the entry: it checks, runs and returns the contract's tables. `core` is the simulation of `kernels` and
`calibrated`, which `simulation_loop` runs; `published` is Vidur as it ships. `registration` gives Vidur the model, the
device, the requests and the engine's scheduler, `predictor` step times, and `event_loop` runs Vidur's own event loop,
the reference for `core`. What a step costs and its kinds are in `step_costs`. Measuring a bundle
belongs to `profiling`, comparing results to `analysis`. Importing this package or `simulate` imports neither Vidur nor
scikit-learn.
"""
