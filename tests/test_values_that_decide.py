"""Code that asks what the values of an image are: the error quotes it, and says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tome_fx
from tests.tiny import Around, images, tiny


def refused(model: nn.Module, **options: Any) -> str:
    with pytest.raises(tome_fx.CaptureError) as caught:
        tome_fx.transform(model, 2, example_inputs=images(), **options)
    return str(caught.value)


def looks_at_values(body: nn.Module, x: Tensor) -> Tensor:
    if x.sum() > 0:  # the line to be quoted
        x = x + 1
    return body(x)


def cuts_by_values(body: nn.Module, x: Tensor) -> Tensor:
    count = int((x > 0).sum().item())
    return body(x)[:, :count]


def compares_values(body: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = body(x)
    return y + 1 if torch.equal(y, -y) else y


@pytest.mark.parametrize("capture", ["auto", "export", "symbolic_trace"])
@pytest.mark.parametrize(
    ("function", "line", "step"),
    [
        (looks_at_values, "if x.sum() > 0:", "torch.where"),
        (cuts_by_values, "count = int((x > 0).sum().item())", "in a wrapper"),
        (compares_values, "if torch.equal(y, -y)", "torch.where"),
    ],
)
def test_control_flow_on_values(capture: str, function: Any, line: str, step: str) -> None:
    model = Around(function)
    text = refused(model, capture=capture)
    assert line in text
    assert "test_values_that_decide.py" in text
    assert capture == "symbolic_trace" or step in text


def test_a_number_that_an_image_decides() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y / y.amax().item()

    text = refused(Scaled())
    assert "return y / y.amax().item()" in text
    assert "without item()" in text


def test_a_size_as_a_key() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tables = tiny(), dict[Any, Tensor]()

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] not in self.tables:
                self.tables[x.shape[0]] = torch.ones(x.shape[0], 1)
            y: Tensor = self.body(x)
            return y * self.tables[x.shape[0]]

    text = refused(Kept())
    assert "if x.shape[0] not in self.tables" in text
    assert "int(size)" in text
