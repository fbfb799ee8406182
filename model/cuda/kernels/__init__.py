"""Triton kernels, each with a typed function that launches it. Triton comes with torch for CUDA.

With TRITON_INTERPRET=1 they run on a CPU, slowly: so they can be tested where there is no GPU.
"""
