"""Making run directories of this project from what other programs wrote: benchmark clients and other simulators.

One module per format, each saying which file it reads, who writes it, and what becomes of every field; `registry`
lists them, `results` is what they all return, `reading` how they read, `writing` makes the run directory,
`importing` does what `gst import` asks for. Nothing is compared here, and nothing is interpolated or guessed: what a
file does not state is reported as not stated.
"""
