"""The zoo: every Vision Transformer of the model libraries, small, one row of a table each."""
