"""What a step costs an engine, read off a profiling bundle: operators, host, device, and the paths to the client and
back.

Numpy, pandas and pydantic only, so that a GPU host can use it (reading a bundle validates with pandera, which is
imported only then). `profiling` measures and fits what is here, `vidur_adapter` simulates with it; neither
measuring nor simulating belongs here.
"""
