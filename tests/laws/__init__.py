"""Property tests of the laws that a rewritten program obeys, one file a law."""
