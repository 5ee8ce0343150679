"""Profiling a transformers Trainer by a callback."""

from __future__ import annotations

from typing import Any, ClassVar

import transformers

from lorafa_prof.measure.script.api import profile
from lorafa_prof.results import Measurement


class TrainerCallback(transformers.TrainerCallback):
    """Profiles the training of the Trainer that it is given to.

    Example:
        callback = lorafa_prof.TrainerCallback()
        Trainer(..., callbacks=[callback]).train()
        callback.measurement

    Args:
        options: those of `lorafa_prof.profile`.
    """

    _looking: ClassVar[TrainerCallback | None] = None

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._profile: profile | None = None
        profile(**options)  # complains of wrong options at once

    @property
    def measurement(self) -> Measurement | None:
        """What was observed; None before the training has begun."""
        return None if self._profile is None else self._profile.measurement

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to look; a second training is looked at anew.

        A Trainer tells nobody that its training has failed: what looked at one is still there when the next begins.
        """
        if (before := TrainerCallback._looking) is not None:
            before._stop(RuntimeError("the training failed: another began before it ended"))
        self._profile = profile(**self._options)
        self._profile.__enter__()
        TrainerCallback._looking = self

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop looking."""
        if TrainerCallback._looking is self:
            self._stop()

    def _stop(self, error: Exception | None = None) -> None:
        TrainerCallback._looking = None
        if self._profile is not None:
            self._profile.__exit__(None if error is None else type(error), error, None)
