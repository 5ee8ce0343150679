"""lorafa-prof: memory and throughput profiling for fine-tuning large language models.

From Python, `profile` looks at a training loop, `TrainerCallback` at that of transformers' Trainer; `lorafa-prof run`
looks at a script that knows of neither.
"""

import importlib as _importlib
from typing import Any as _Any

__version__ = "0.1.0"

#: What belongs to the real step, which needs PyTorch: imported when it is asked for. By name, since the package itself
#: stands beneath every layer.
_LAZY = {
    "profile": "lorafa_prof.measure.script.api",
    "TrainerCallback": "lorafa_prof.measure.script.trainer",
}


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
