"""Products of rows with a quantised weight."""

from __future__ import annotations

PACKED = (
    "aten._int_mm",
    "aten._scaled_mm",
    "aten._weight_int8pack_mm",
    "aten._weight_int4pack_mm",
    "aten._weight_int4pack_mm_for_cpu",
)
