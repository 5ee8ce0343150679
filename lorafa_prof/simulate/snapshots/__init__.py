"""Memory snapshots in PyTorch's own form: written, and read without trusting them."""
