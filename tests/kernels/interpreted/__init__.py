"""Kernels that run: on a CUDA device if there is one, else in Triton's interpreter.

The interpreter is a matter of the whole process (``TRITON_INTERPRET=1`` before the first import of
Triton), so ``tests/kernels/test_interpreted.py`` starts one for these tests.
"""
