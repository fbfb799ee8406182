"""The prefill worker: computes prompts and offers their KV, layer by layer."""
