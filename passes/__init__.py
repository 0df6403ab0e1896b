"""The passes of tome_fx, one file each, imported as `tome_fx.passes`.

The pipeline is capture -> normalize -> locate -> plan -> lift -> lower -> verify,
and fuse where a device has kernels for it. Passes exchange
frozen dataclasses and never import each other; `tome_fx.locating` puts the first three in order,
`tome_fx.pipeline` the others.
"""

if __name__ != "tome_fx.passes":  # a second copy of every class here would match nothing
    raise ImportError("import tome_fx.passes, not passes: this folder is that package")
