"""The KV cache: paged tensors, and, without torch, the block allocator and the prefix cache."""
