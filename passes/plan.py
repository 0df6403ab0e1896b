"""Plan: turn ``r`` into a number of tokens to remove at each site.

    r=16, sites at 196 tokens  ->  196 -16-> 180 -16-> 164 ...

The schedule counts the sites in program order: the attention blocks where a merge can go. What a
site cannot give is clamped to half of its unprotected tokens (section 3.2).
"""

from __future__ import annotations

from tome_fx.errors import ConfigError
from tome_fx.graph.axes import streams
from tome_fx.program import Findings, MergeSchedule, Site, Step
from tome_fx.schedule import Rounding, asked, clamp, share


def plan(
    findings: Findings,
    r: object,
    rounding: Rounding = "truncate",
    strict: bool = False,
) -> MergeSchedule:
    """A step for each site of ``findings``.

    Raises:
        ConfigError: ``r`` is outside its range, or it had to be clamped under ``strict``.
    """
    wanted = asked(r, len(findings.sites), rounding)
    part = share(r)
    left: dict[int, int] = {}
    steps = []
    for index, site in enumerate(findings.sites):
        now = left.setdefault(site.stream, stream_tokens(findings, site))
        want = int(part * now) if part is not None else wanted[index]
        removed = clamp(want, now)
        if removed < want and strict:
            raise ConfigError(
                f"r asks for {want} tokens at layer {index}, where {now} unprotected tokens can "
                f"give {now // 2}. Lower r, or pass strict=False to clamp it."
            )
        steps.append(Step(site, now, removed, want))
        left[site.stream] = now - removed
    return MergeSchedule(tuple(steps))


def stream_tokens(findings: Findings, site: Site) -> int:
    """Unprotected tokens of the site's stream before any merge."""
    for stream in streams(findings.types[site.node][0]):
        if stream.id == site.stream:
            return stream.extent
    raise AssertionError("a site holds its stream")
