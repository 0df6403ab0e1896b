"""Suites of benchmarks: what is measured, how it is kept, and how it is drawn."""
