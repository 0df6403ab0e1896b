"""The FX toolkit: capture helpers, arguments by schema, token axes as types, the editor.

It knows graphs and axes and nothing of Token Merging, of the passes or of the public API.
"""
