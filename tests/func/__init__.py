"""`torch.func` and `make_fx` through a result."""
