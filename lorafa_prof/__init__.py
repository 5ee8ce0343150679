"""lorafa-prof: memory and throughput profiling for fine-tuning large language models."""

__version__ = "0.1.0"
