"""How long the sequences of a data set are, and the padded batches that an epoch makes of them."""

from lorafa_prof.lengths.batching import RULES, Batching
from lorafa_prof.lengths.epoch import Epoch, Lengths
from lorafa_prof.lengths.reading import read_lengths

__all__ = ["RULES", "Batching", "Epoch", "Lengths", "read_lengths"]
