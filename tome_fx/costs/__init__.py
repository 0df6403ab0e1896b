"""What a program costs on a device, by estimate: devices, kernels, and the sum of their times."""
