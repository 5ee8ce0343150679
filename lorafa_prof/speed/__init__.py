"""How long a step takes: the work of each operation, the rates of a device, and the timeline that joins them."""
