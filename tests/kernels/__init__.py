"""Tests of the Triton kernels; those that run them are in ``interpreted``."""
