"""The tool from Python: `lorafa_prof.predict` and `lorafa_prof.oom`, which answer as these commands do."""
