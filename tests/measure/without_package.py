"""The real measuring process on a machine where a package, named by an environment variable, is not installed."""

from __future__ import annotations

import os
import sys
from typing import Any

from lorafa_prof.measure.child import main


class Missing:
    """Finds nothing where the package would be."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        missing = os.environ["MISSING_PACKAGE"]
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)


if __name__ == "__main__":
    sys.meta_path.insert(0, Missing())  # type: ignore[arg-type]
    main()
