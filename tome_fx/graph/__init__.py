"""The FX toolkit: arguments by schema, extents, token axes as types, provenance.

It knows graphs and axes and nothing of Token Merging, of the passes or of the public API.
"""
