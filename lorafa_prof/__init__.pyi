from lorafa_prof.api.answers import Predictions as Predictions, Thresholds as Thresholds
from lorafa_prof.api.calls import oom as oom, predict as predict
from lorafa_prof.api.comparing import (
    Comparisons as Comparisons,
    Differences as Differences,
    comparison as comparison,
    difference as difference,
)
from lorafa_prof.api.preflight import preflight as preflight, preflight_callback as preflight_callback
from lorafa_prof.api.sweeping import Sweep as Sweep, sweep as sweep
from lorafa_prof.measure.script.api import profile as profile
from lorafa_prof.measure.script.trainer import TrainerCallback as TrainerCallback

__version__: str
