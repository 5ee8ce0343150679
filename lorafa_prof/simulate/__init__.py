"""The real training step without a device: memory events through a model of PyTorch's caching allocator."""
