"""Triton kernels for matching, merging and attention, and the place that says when they serve.

They compute what ``tome_fx.ops`` computes in plain PyTorch, which stays the reference. They know
nothing of graphs. Each is behind a ``torch.library.triton_op``, so that ``torch.compile`` and
autograd see through it; Triton itself is imported when the first of them is wanted.
"""

from tome_fx.kernels.choice import can_attend as can_attend
from tome_fx.kernels.choice import can_match as can_match
from tome_fx.kernels.choice import can_merge as can_merge
from tome_fx.kernels.choice import chosen as chosen
from tome_fx.kernels.choice import distrust as distrust
from tome_fx.kernels.choice import has_attention as has_attention
from tome_fx.kernels.choice import mode as mode
from tome_fx.kernels.choice import using as using
