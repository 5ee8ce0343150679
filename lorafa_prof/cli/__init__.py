"""The command line: `lorafa-prof COMMAND ...`, one module a command.

The group itself is in `program`, and nothing but its entry point is defined here: a command's module becomes an
attribute of this package when it is imported, and `list` would replace the builtin for all code of this file.
"""

from lorafa_prof.cli.program import main

__all__ = ["main"]
