"""The real training step on meta tensors, through a model of PyTorch's CUDA caching allocator."""
