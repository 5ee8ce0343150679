"""Independent evidence: the real transformers model and PEFT adapters of a run, built and observed.

Nothing here may import `lorafa_prof.analytic`: what is observed must be able to contradict what is derived.
"""
