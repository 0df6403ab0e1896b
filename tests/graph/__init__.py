"""Tests of the type toolkit: axes, regrouping, unifying, arguments by schema, extents."""
