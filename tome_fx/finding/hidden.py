"""What an attention hides keys by beside its logits: factors of its weights, keys or values.

    weights = relu(q @ k.mT) * mask.float()        k, v = elu(k) * mask, v * mask
    y = weights @ v                                y = q @ (k.mT @ v)

What is multiplied by 0 counts for nothing where no softmax has it in a sum.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Node

from tome_fx.finding.parts import NOTS, Part, number_of
from tome_fx.graph.calls import Call, bind, calls
from tome_fx.graph.extents import is_truth

_LAYOUT = ("aten._to_copy", "aten.to", "aten.unsqueeze", "aten.squeeze", "aten.expand",
           "aten.reshape", "aten.view", "aten.contiguous", "aten.clone", "aten.permute",
           "aten.transpose", "aten.flatten", "aten.unflatten", "aten.detach")  # fmt: skip
# Nothing hidden shows again behind these.
_SCALES = ("aten.mul", "aten.div", "aten.dropout", "aten.masked_fill", "aten.where", *_LAYOUT)
_PRODUCTS = ("aten.matmul", "aten.bmm", "aten.mm", "aten.einsum")


def hidden_beside(node: Node, kind: str, key: Node) -> list[Part]:
    """Truths about keys that are no mask of logits, as they are before casts and layout.

    Args:
        node: the softmax, the weights, or the product that reads a sum over tokens.
        kind: which of these: ``softmax``, ``weights`` or ``contraction``.
        key: the keys, as the product that makes the weights or that sum takes them.
    """
    found: list[Part] = []
    if kind == "contraction":
        found += _zeros_of(key)
        found += (part for other in _partners(key) for part in _zeros_of(other))
    elif kind in ("softmax", "weights"):
        last, found = _behind(node)
        if kind == "weights":
            found += _zeros_of(node)
            found += (part for other in _partners(last) for part in _zeros_of(other))
    return list(dict.fromkeys(found))


def _partners(value: Node) -> Iterator[Node]:
    """What a value is multiplied with in a sum over tokens."""
    for user in value.users:
        if calls(user, _PRODUCTS):
            yield from (other for other in user.all_input_nodes if other is not value)


def _behind(weights: Node) -> tuple[Node, list[Part]]:
    """Through what makes some of the weights 0, and from what is still weights behind it."""
    found: list[Part] = []
    node = weights
    while True:
        following = [user for user in node.users if calls(user, _SCALES)]
        if len(following) != 1:
            return node, found
        found += _applied(bind(following[0]), node)
        node = following[0]


def _zeros_of(value: Node) -> Iterator[Part]:
    """What makes some rows of a value 0, the nearest first."""
    waiting, seen = [value], {value}
    while waiting:
        node = waiting.pop(0)
        if not calls(node, _SCALES):
            continue
        yield from _applied(bind(node), None)
        before = [n for n in node.all_input_nodes if n not in seen and not is_truth(n)]
        seen.update(before)
        waiting += before


def _applied(call: Call, value: Node | None) -> Iterator[Part]:
    """The truths by which a call makes some of ``value``, or of any of its operands, 0."""
    if call.name == "aten.mul":
        for other in call.node.all_input_nodes:
            yield from _truth(other, False) if other is not value else ()
    elif call.name == "aten.masked_fill" and number_of(call["value"]) == 0:
        yield from _truth(call["mask"], True)
    elif call.name == "aten.where":
        for branch, hides in (("self", True), ("other", False)):
            if number_of(call[branch]) == 0:
                yield from _truth(call["condition"], hides)


def _truth(value: Node, hides: bool) -> Iterator[Part]:
    """The truth that a value is, in numbers, laid out in another way or denied, if it is one."""
    while calls(value, (*_LAYOUT, *NOTS)):
        hides = hides != calls(value, NOTS)
        value = bind(value)["self"]
    if is_truth(value):
        yield Part(value, hides, 1)
