"""The profile by steps."""
