"""The duplicates law for each family of ops, one file a family."""
