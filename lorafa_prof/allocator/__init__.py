"""A model of PyTorch's CUDA caching allocator: pure data in, pure data out."""
