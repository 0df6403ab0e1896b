"""From findings to a rewritten graph: one op at a time, and the coercions between levels."""
