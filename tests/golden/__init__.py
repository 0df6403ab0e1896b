"""Whole rewritten programs of three tiny models, as committed text.

A change of the rewrite shows here as a diff of the listings. Where the diff is right, write them
anew with ``python -m tests.golden.regenerate`` and read what has changed.
"""
