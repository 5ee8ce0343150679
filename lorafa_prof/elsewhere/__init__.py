"""The simulation in another Python environment, whose releases of PyTorch, transformers and PEFT it then is for."""
