"""Token merging as pure tensor functions; a rewritten graph calls these by name.

Letters: ``B`` images, ``N`` tokens of an axis, ``n`` stream tokens on it (the others are protected
and stand ``front`` before and ``back`` behind the stream), ``r`` merges, ``C`` channels.
Source of the method: Token Merging (Bolya et al., ICLR 2023), section 3.

No function keeps state, sorts, or reduces with ``scatter_reduce``: all of them trace through
``torch.compile``, ``torch.export``, autograd and ``torch.func``, and give the same bits each time.
"""

from tome_fx.ops.alike import join_alike as join_alike
from tome_fx.ops.alike import own_plan as own_plan
from tome_fx.ops.alike import stretches as stretches
from tome_fx.ops.attention import FORMS as FORMS
from tome_fx.ops.attention import attention as attention
from tome_fx.ops.attention import channel_attention as channel_attention
from tome_fx.ops.attention import flex_attention as flex_attention
from tome_fx.ops.attention import kernel_attention as kernel_attention
from tome_fx.ops.attention import level_attention as level_attention
from tome_fx.ops.attention import mask_attention as mask_attention
from tome_fx.ops.attention import plain_attention as plain_attention
from tome_fx.ops.attention import value_attention as value_attention
from tome_fx.ops.check import check_constant as check_constant
from tome_fx.ops.check import check_fixed as check_fixed
from tome_fx.ops.check import check_input as check_input
from tome_fx.ops.check import check_rows as check_rows
from tome_fx.ops.check import check_whole as check_whole
from tome_fx.ops.fused import match_keys as match_keys
from tome_fx.ops.fused import merge_norm as merge_norm
from tome_fx.ops.matching import SCORES as SCORES
from tome_fx.ops.matching import head_mean as head_mean
from tome_fx.ops.matching import match as match
from tome_fx.ops.matching import match_metric as match_metric
from tome_fx.ops.matching import similarity as similarity
from tome_fx.ops.merging import for_images as for_images
from tome_fx.ops.merging import merge as merge
from tome_fx.ops.merging import merge_sum as merge_sum
from tome_fx.ops.merging import place_batch as place_batch
from tome_fx.ops.merging import take as take
from tome_fx.ops.merging import take_constant as take_constant
from tome_fx.ops.merging import total as total
from tome_fx.ops.merging import unmerge as unmerge
from tome_fx.ops.modes import GRADED as GRADED
from tome_fx.ops.modes import INFERENCE as INFERENCE
from tome_fx.ops.modes import UNGRADED as UNGRADED
from tome_fx.ops.modes import check_mode as check_mode
from tome_fx.ops.padding import both as both
from tome_fx.ops.padding import in_view as in_view
from tome_fx.ops.padding import keep_apart as keep_apart
from tome_fx.ops.padding import kinds as kinds
from tome_fx.ops.padding import padding_last as padding_last
from tome_fx.ops.padding import patterns as patterns
from tome_fx.ops.padding import prefer_alike as prefer_alike
from tome_fx.ops.padding import seen as seen
from tome_fx.ops.padding import shown as shown
from tome_fx.ops.pairs import by_head as by_head
from tome_fx.ops.pairs import features as features
from tome_fx.ops.pairs import joined as joined
from tome_fx.ops.pairs import plan_of_pairs as plan_of_pairs
from tome_fx.ops.pairs import single as single
from tome_fx.ops.patches import embed_patches as embed_patches
from tome_fx.ops.placing import apart as apart
from tome_fx.ops.plan import MergePlan as MergePlan
from tome_fx.ops.plan import assignment as assignment
from tome_fx.ops.plan import compose as compose
from tome_fx.ops.plan import compose_plans as compose_plans
from tome_fx.ops.plan import identity as identity
from tome_fx.ops.plan import join_maps as join_maps
from tome_fx.ops.plan import join_plans as join_plans
from tome_fx.ops.plan import kept as kept
from tome_fx.ops.rows import size_of as size_of
from tome_fx.ops.sizes import add_log_size as add_log_size
from tome_fx.ops.sizes import along as along
from tome_fx.ops.sizes import divide_by_size as divide_by_size
from tome_fx.ops.sizes import hide_members as hide_members
from tome_fx.ops.sizes import key_bias as key_bias
from tome_fx.ops.sizes import merged_size as merged_size
from tome_fx.ops.sizes import scale_by_size as scale_by_size
from tome_fx.ops.sizes import seen_bias as seen_bias
from tome_fx.ops.sizes import weighted_sum as weighted_sum
from tome_fx.ops.sizes import weighted_variance as weighted_variance
