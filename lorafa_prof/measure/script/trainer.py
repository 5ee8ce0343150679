"""Profiling a transformers Trainer by a callback."""

from __future__ import annotations

from typing import Any

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

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._profile: profile | None = None
        profile(**options)  # complains of wrong options at once

    @property
    def measurement(self) -> Measurement | None:
        """What was observed; None before the training has begun."""
        return None if self._profile is None else self._profile.measurement

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to look; a second training is looked at anew."""
        self._profile = profile(**self._options)
        self._profile.__enter__()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop looking."""
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
