"""Where the time of a rewritten program goes, step by step and layer by layer."""
