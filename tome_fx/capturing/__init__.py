"""From a model to a captured program: example inputs, front doors, the structure copy."""
