"""Steps on a CUDA device: everything that a CPU has no use for.

packing.py   a plan's slices as one array of integers; pure
buckets.py   which batch sizes are captured; pure
buffers.py   that array on the host (pinned) and on the device
net.py       the transformer with one kernel between any two matrix products
graphs.py    decode steps, captured once per batch size and replayed
steps.py     one step from slices to tokens, the host waiting once
paged.py     what attention is asked for; three products stand behind it
choice.py    which of them, and why
modules.py   what is installed beside torch
int8.py      weights in 8 bits
kernels/     our own, in Triton
"""
