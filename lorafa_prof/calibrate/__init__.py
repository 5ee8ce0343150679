"""Measurement of a device's profile: products, memory, attention, launches and the host, in under two minutes."""
