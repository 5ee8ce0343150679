"""lorafa-prof: memory and throughput profiling for fine-tuning large language models.

From Python, `predict` and `oom` answer as the commands of these names do, `sweep` for every combination of options;
`comparison` and `difference` are the commands compare and diff. `preflight` stops a Trainer that would run out of
memory. `profile` looks at a training loop, `TrainerCallback` at that of transformers' Trainer; `lorafa-prof run` looks
at a script that knows of neither.
"""

import importlib as _importlib
from typing import Any as _Any

__version__ = "0.1.0"

#: Imported when it is asked for: the first two need PyTorch, and the others what the package itself, which stands
#: beneath every layer, does without. Their types are in `__init__.pyi`.
_LAZY = {
    "profile": "lorafa_prof.measure.script.api",
    "TrainerCallback": "lorafa_prof.measure.script.trainer",
    "predict": "lorafa_prof.api.calls",
    "oom": "lorafa_prof.api.calls",
    "sweep": "lorafa_prof.api.sweeping",
    "comparison": "lorafa_prof.api.comparing",
    "difference": "lorafa_prof.api.comparing",
    "Sweep": "lorafa_prof.api.sweeping",
    "Comparisons": "lorafa_prof.api.comparing",
    "Differences": "lorafa_prof.api.comparing",
    "preflight": "lorafa_prof.api.preflight",
    "preflight_callback": "lorafa_prof.api.preflight",
    "Predictions": "lorafa_prof.api.answers",
    "Thresholds": "lorafa_prof.api.answers",
}


def __getattr__(name: str) -> _Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
