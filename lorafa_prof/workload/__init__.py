"""A run made real: the transformers model, PEFT adapters, optimizer and training step that a `RunSpec` describes.

Used unchanged by the engine that simulates (meta tensors) and the one that measures (cuda, cpu). Everything follows the
libraries' own defaults, so that what is predicted or observed is what a user would get.
"""

from __future__ import annotations

from lorafa_prof.workload.step import Workload, training_step
from lorafa_prof.workload.versions import installed_versions

__all__ = ["Workload", "installed_versions", "training_step"]
