"""What ``torch.fx.symbolic_trace`` would do to buffers while it traces, and does not here."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.laws.common import TINY, distance, run
from tests.tiny import images, tiny

pytestmark = TINY
DOORS = ("export", "symbolic_trace")


class Before(nn.Module):
    """A model behind some code that has a few numbers of its own."""

    def __init__(self, code: Callable[[Before, Tensor], Tensor]) -> None:
        super().__init__()
        self.code, self.body = code, tiny(depth=1)
        self.register_buffer("count", torch.tensor(2.0))
        self.register_buffer("scale", torch.tensor([1.5, 0.5, 2.0]))
        self.noted, self.kept = torch.tensor(2.0), [torch.ones(3)]

    def forward(self, image: Tensor) -> Tensor:
        return self.body(self.code(self, image))  # type: ignore[no-any-return]


def branch(model: Before, image: Tensor) -> Tensor:
    return image * 3 if (model.count + 1) * 2 > 5 else image


def number(model: Before, image: Tensor) -> Tensor:
    return image * float(model.count)


def several(model: Before, image: Tensor) -> Tensor:
    for share in model.scale:
        image = image * 2 if share > 1 else image
    return image * sum(model.scale.tolist())


@pytest.mark.few(2)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("code", "name"), [(branch, "count"), (number, "count"), (several, "scale")]
)
def test_what_buffers_decide_is_told(code: Callable[..., Tensor], name: str, door: str) -> None:
    model, x = Before(code), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    assert f"branches on the values of {name}:" in str(fast.report)
    assert distance(run(fast, x), run(model, x)) < 1e-6


def shapes(model: Before, image: Tensor) -> Tensor:
    if model.scale.dim() == 1 and len(model.scale) == 3 and model.scale.dtype == torch.float32:
        image = image * model.scale.reshape(model.scale.shape[0], 1, 1)
    return image


@pytest.mark.parametrize("door", DOORS)
def test_shapes_decide_without_a_word(door: str) -> None:
    model, x = Before(shapes), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    assert "branches" not in str(fast.report)
    assert distance(run(fast, x), run(model, x)) < 1e-6


def computed(model: Before, image: Tensor) -> Tensor:
    with torch.no_grad():
        weight = (model.scale * 2).softmax(0)
    return image * weight[:, None, None].mT


@pytest.mark.parametrize("door", DOORS)
def test_what_is_made_of_buffers_follows_them(door: str) -> None:
    model, x = Before(computed), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    model.scale.copy_(torch.tensor([4.0, -1.0, 0.0]))
    assert distance(run(fast, x), run(model, x)) < 1e-6


def counts(model: Before, image: Tensor) -> Tensor:
    model.count.add_(1)
    return image * model.count


def counts_by_operator(model: Before, image: Tensor) -> Tensor:
    model.count += 1
    return image * model.count


def counts_by_assignment(model: Before, image: Tensor) -> Tensor:
    model.count = model.count * 2 + image.sum() * 0
    return image * model.count


def counts_twice(model: Before, image: Tensor) -> Tensor:
    count = model.count
    count += 1
    count.mul_(2)
    return image * model.count


COUNTING = [counts, counts_by_operator, counts_by_assignment, counts_twice]


@pytest.mark.few(2)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("code", COUNTING)
def test_a_write_is_recorded_and_not_done(code: Callable[..., Tensor], door: str) -> None:
    model, x = Before(code), images()
    same = copy.deepcopy(model)
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    assert isinstance(model.count, Tensor)
    assert float(model.count) == 2.0
    for _ in range(3):
        assert distance(run(fast, x), run(same, x)) < 1e-6
    assert float(model.count) == float(same.count)


def written_by_an_image(model: Before, image: Tensor) -> Tensor:
    model.count.add_(image.mean() * 0 + 5)
    return image * 3 if model.count > 3 else image


def written_after(model: Before, image: Tensor) -> Tensor:
    result = image * 3 if model.count > 3 else image
    model.count.add_(1)
    return result


def assigned_before(model: Before, image: Tensor) -> Tensor:
    model.count = model.count + 1
    return image * 3 if model.count > 3 else image


@pytest.mark.few(2)
@pytest.mark.parametrize("door", ["auto", *DOORS])
@pytest.mark.parametrize("code", [written_by_an_image, written_after, assigned_before])
def test_what_is_written_to_decides_nothing(code: Callable[..., Tensor], door: str) -> None:
    model = Before(code)
    with pytest.raises(tome_fx.CaptureError, match=r"count.* writes to it|model\.count > 3"):
        tome_fx.transform(model, 0, example_inputs=images(), capture=door)
    assert isinstance(model.count, Tensor)
    assert float(model.count) == 2.0


def into_a_constant(model: Before, image: Tensor) -> Tensor:
    weight = torch.ones(3)
    weight[0] = image.mean()
    return image * weight.sum()


def into_a_plain_tensor(model: Before, image: Tensor) -> Tensor:
    model.noted.add_(1)
    return image * model.noted


def into_what_a_list_keeps(model: Before, image: Tensor) -> Tensor:
    model.kept[0][:2].add_(1)
    return image * model.kept[0].sum()


def into_a_weight(model: Before, image: Tensor) -> Tensor:
    model.body.head.bias.data.add_(1)
    return image


@pytest.mark.parametrize(
    "code", [into_a_constant, into_a_plain_tensor, into_what_a_list_keeps, into_a_weight]
)
def test_a_write_that_is_not_recorded_is_refused(code: Callable[..., Tensor]) -> None:
    model = Before(code)
    before = copy.deepcopy(model)
    with pytest.raises(tome_fx.CaptureError, match=r"capture='export'|make_fx cannot trace it"):
        tome_fx.transform(model, 0, example_inputs=images(), capture="symbolic_trace")
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert (float(model.noted), model.kept[0].tolist()) == (2.0, [1.0] * 3)


def noise(model: Before, image: Tensor) -> Tensor:
    return image + torch.randn(3)[:, None, None] * 2


def noise_in_place(model: Before, image: Tensor) -> Tensor:
    level = torch.zeros(3)
    level[0].random_()
    return image * (level + 1).sum()


def drawn_branch(model: Before, image: Tensor) -> Tensor:
    return image * 2 if torch.rand([]) * 2 > 1 else image


def drawn_numbers(model: Before, image: Tensor) -> Tensor:
    return image * sum(torch.rand(3).tolist())


def drawn_beside_a_buffer(model: Before, image: Tensor) -> Tensor:
    return image * 2 if torch.rand_like(model.scale)[0] > 0.5 else image


@pytest.mark.parametrize(
    "code", [noise, noise_in_place, drawn_branch, drawn_numbers, drawn_beside_a_buffer]
)
def test_what_is_drawn_is_no_constant(code: Callable[..., Tensor]) -> None:
    with pytest.raises(tome_fx.CaptureError, match="draws random numbers that no input"):
        tome_fx.transform(Before(code), 0, example_inputs=images(), capture="symbolic_trace")


def drawn_for_nothing(model: Before, image: Tensor) -> Tensor:
    """As where a layer is left out at random, but in training alone."""
    chance = torch.rand([])
    return image * 0 if model.training and chance > 0.5 else image


def made_and_written(model: Before, image: Tensor) -> Tensor:
    weight, shift = torch.tensor([1.0, 2.0, 3.0]), torch.from_numpy(np.ones(3, dtype=np.float32))
    weight[1] = 5
    shift *= 2
    return image * weight[:, None, None] + shift[:, None, None]


def attending(model: Before, image: Tensor) -> Tensor:
    """An op that may draw, and does not."""
    rows = torch.eye(3)[None]
    return image * torch.nn.functional.scaled_dot_product_attention(rows, rows, rows).sum()


@pytest.mark.parametrize("code", [made_and_written, attending])
def test_constants_that_the_code_makes(code: Callable[..., Tensor]) -> None:
    model, x = Before(code).eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture="symbolic_trace")
    assert distance(run(fast, x), run(model, x)) < 1e-6


def drawn_as_a_buffer_is(model: Before, image: Tensor) -> Tensor:
    return image + torch.randn_like(model.scale)[:, None, None]


def test_what_is_drawn_and_not_used_is_left_out() -> None:
    model, x = Before(drawn_for_nothing).eval(), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture="symbolic_trace")
    assert distance(run(fast, x), run(model, x)) < 1e-6


@pytest.mark.parametrize("door", DOORS)
def test_what_is_drawn_like_a_buffer_is_drawn_at_each_call(door: str) -> None:
    model, x = Before(drawn_as_a_buffer_is), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    assert distance(run(fast, x), run(fast, x)) > 1e-6


def added_in_place(model: Before, image: Tensor) -> Tensor:
    image = image * 2
    same = image
    image += 1
    return same * image


@pytest.mark.parametrize("door", DOORS)
def test_a_second_name_sees_what_is_added(door: str) -> None:
    model, x = Before(added_in_place), images()
    fast = tome_fx.transform(model, 0, example_inputs=x, capture=door)
    assert distance(run(fast, x), run(model, x)) < 1e-6
