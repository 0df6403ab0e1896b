"""Results on two processes."""
