"""Tests of `tome_fx.tune`, on machines whose speed is a formula."""
