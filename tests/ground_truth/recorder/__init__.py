"""Records real fine-tuning steps; `__main__` says how. It imports nothing of the package that the records are for."""

import os

# Before torch is imported: asking whether there is a card must not open CUDA in the process that forks.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
