"""Training through a result: gradients, random layers, mixed precision, checkpointing."""
