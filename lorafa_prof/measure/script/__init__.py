"""A user's own training script, profiled while it runs unchanged.

    launch         runs the script as Python would
    after_import   waits until it imports torch
    watching       what torch tells of a training loop: optimizer steps, backwards, calls of a model
    observer       which of its steps warm up, are timed, are traced
    tracing        the one traced step
    api, trainer   the same from within a program

Nothing here is imported before the script has imported torch, but for `launch` and `after_import`.
"""
