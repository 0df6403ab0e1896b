"""tome_fx as a backend of ``torch.compile``: Dynamo's graph through the same passes."""
