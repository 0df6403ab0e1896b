"""How kernels cut their work: extents of blocks, warps, and stages of what is on its way.

Arithmetic alone, so that an estimate can ask too. The bounds are those of the smaller devices that
are served: 99 KiB of shared memory, 255 registers.
"""

from __future__ import annotations

from tome_fx.kernels.language import power_of_two

# Elements that a program holds at a time, in a block that grows with the model.
_HELD = 4096


def unit_blocks(width: int) -> dict[str, int]:
    """Rows of a program that makes unit vectors of ``width`` channels, and their extent."""
    channels = power_of_two(width, 16)
    return {"ROWS": max(1, min(16, _HELD // channels)), "WIDTH": channels}


def match_blocks(left: int, width: int) -> dict[str, int]:
    """How ``pairs_kernel`` cuts the scores of ``left`` rows of A of ``width`` channels.

    One block of rows where one program can rank them; else many programs, so that few images fill a
    device too. Steps of 32 channels where the rows are long, for the shared memory of smaller
    devices; none of 16, see :func:`two_blocks`.
    """
    rows = 128 if 64 < left <= 128 else 64
    step = 32 if width <= 32 or width > 64 else 64
    blocks = {"ROWS": rows, "COLUMNS": 64, "STEP": step, "WHOLE": width <= step}
    return blocks | {"RANKS": left <= rows, "num_warps": rows // 16, "num_stages": 2}


def match_launches(left: int, width: int) -> int:
    """How many kernels match a stream with ``left`` A rows: those that rank need no other."""
    return 2 if match_blocks(left, width)["RANKS"] else 3


def plan_blocks(left: int) -> dict[str, int]:
    """A program has all ``left`` rows of an image, and compares them with a few at a time."""
    lines = power_of_two(left, 16)
    return {"ROWS": lines, "STEP": min(lines, max(2, _HELD // lines))}


def attend_blocks(keys: int, width: int, value_width: int) -> dict[str, int]:
    """How attention cuts ``keys`` keys of ``width`` channels, and values of ``value_width``.

    Measured on an H200: small blocks leave room for more of them, long rows pay for that. Wide
    heads get few of them, or the shared memory of smaller devices would not hold them.

    Either all blocks have 32 channels or none: bits beside an address tell Hopper's products how
    rows of 32 lie in shared memory, and how longer ones do. The assembler of CUDA 12.8 (ptxas, with
    Triton 3.6) mixes them up where both kinds begin at one place.
    """
    least = 32 if max(width, value_width) <= 32 else 64
    first, rest = two_blocks(width, least)
    value_first, value_rest = two_blocks(value_width, least)
    wide = max(first + rest, value_first + value_rest) > 128
    extents = {"FIRST": first, "REST": rest, "VALUE_FIRST": value_first, "VALUE_REST": value_rest}
    filled = {
        "EVEN": first <= width and value_first <= value_width,
        "REST_EVEN": not (rest and first + rest > width)
        and not (value_rest and value_first + value_rest > value_width),
    }
    columns = 32 if wide or keys <= 512 else 64
    tiles = {"ROWS": 64, "COLUMNS": columns, "num_warps": 4, "num_stages": 2 if wide else 3}
    return tiles | extents | filled


def two_blocks(width: int, least: int = 32) -> tuple[int, int]:
    """Extents of one block of channels or two that hold ``width``, with little over.

    ``least`` is the fewest that a block has. None of 16: Triton 3.6 reads beyond the shared memory
    of so narrow a block on Hopper.
    """
    whole = power_of_two(width, least)
    rest = power_of_two(width - whole // 2, least)
    return (whole, 0) if whole == least or 2 * rest >= whole else (whole // 2, rest)


def merge_blocks(width: int, r: int) -> dict[str, int]:
    """How a row of ``width`` channels is cut, to which some of ``r`` tokens are merged.

    Few warps, so that many rows are on their way at a time.
    """
    first, rest = two_blocks(width)
    blocks = {"FIRST": first, "REST": rest, "EVEN": first + rest == width}
    warps = 4 if width > 1024 or r > 256 else 1
    return blocks | {"MERGES": power_of_two(r), "num_warps": warps}
