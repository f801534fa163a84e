"""A short session on a machine with a GPU: `python kernels/cuda/gpu_test.py`, `make gpu-test`.

What only a GPU can tell, in one command and within a budget of minutes: is what was built right there, how fast is each
rung of the ladder, do the counters of the emulator hold, does compute-sanitizer find anything, are gradients the same
in every run. `--rehearse` goes through all of it in the emulator.
"""
