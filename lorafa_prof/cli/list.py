"""`lorafa-prof list`: the models, GPUs and methods that are known by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lorafa_prof.catalog import device_names, load_device, load_model, model_entry, model_names
from lorafa_prof.cli.emit import emit, output_options
from lorafa_prof.specs import METHODS, DeviceSpec, ModelSpec
from lorafa_prof.units import format_count, format_gib, mib

if TYPE_CHECKING:
    from lorafa_prof.reports.table import Table
