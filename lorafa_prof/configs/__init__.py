"""Other tools' configuration files as run options: axolotl, LLaMA-Factory, torchtune, TRL, PEFT, accelerate, DeepSpeed.

Nothing is run and nothing but the named file is opened. `read_configs` is the way in.
"""

from lorafa_prof.configs.merging import read_configs
from lorafa_prof.configs.reading import Reading, Setting

__all__ = ["Reading", "Setting", "read_configs"]
