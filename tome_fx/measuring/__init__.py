"""How speed and distance are measured, and kept on disk: for the library and the command line."""
