"""Real training steps on a real device, observed: memory by the allocator's own account, time by its own clock.

Nothing here imports what predicts: an observation must not share a prediction's mistakes.
"""
