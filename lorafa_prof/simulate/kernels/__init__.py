"""What kernels do on a device that they do not do on meta: their choice, their casts, and what they allocate inside."""
