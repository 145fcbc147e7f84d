"""Running Vidur 0.0.26, unpatched, on the workload and with the settings of a real engine.

`simulate` is the entry: checks, runs and returns the contract's tables. `registration` gives Vidur the model, the
device, the requests and the engine's scheduler; `predictor` says how long a step takes, from `tables` (operator times)
and `overheads` (what a step costs beyond them); `simulation` runs Vidur's own event loop with a recorder in place of
its metrics; `published` is Vidur as it ships, without any of that. `steps` defines a step's kind. Measuring a bundle
belongs to `profiling`, comparing results to `analysis`. Importing this package or `simulate` imports neither Vidur nor
scikit-learn.
"""
