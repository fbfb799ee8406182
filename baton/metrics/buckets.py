"""Borders of the histograms, seconds unless said otherwise.

What share of requests keeps a limit is exact only where the limit is a border, so those that the
field promises are among them. MLPerf Inference's, first token / between tokens: Llama 2 70B 2 s /
0.2 s and, interactive, 0.45 s / 0.04 s; Llama 3.1 8B 2 s / 0.1 s and 0.5 s / 0.03 s; Llama 3.1 405B
6 s / 0.175 s and 4.5 s / 0.08 s; DeepSeek-R1 2 s / 0.08 s and 1.5 s / 0.015 s.
"""

from __future__ import annotations

FIRST_TOKEN = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.75, 1.0),
    *(1.5, 2.0, 3.0, 4.5, 6.0, 10.0, 20.0, 30.0, 60.0, 180.0),
)
BETWEEN_TOKENS = (
    *(0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.065, 0.08),
    *(0.1, 0.15, 0.175, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 30.0),
)
REQUEST = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
QUEUE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PREFILL = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.45, 0.75, 1.0, 2.0, 4.5, 10.0, 30.0, 60.0)
TRANSFER = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
STEP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.08, 0.1, 0.2, 0.5, 1.0, 5.0)
#: Sequences.
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
