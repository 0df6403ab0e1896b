"""Tests of the tensor functions, against plain loops in float64."""
