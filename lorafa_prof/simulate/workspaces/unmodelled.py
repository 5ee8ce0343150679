"""x"""

UNMODELLED = {}


def unmodelled_in(ops):
    return []
