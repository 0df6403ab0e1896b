"""What is no plain model: wrapped, compiled, scripted, sharded, transformed, or no model at all."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tome_fx
from tests.laws.common import TINY, distance
from tests.laws.world import world
from tests.test_errors import failure
from tests.tiny import images, tiny

pytestmark = TINY


def check_unwrapped(wrapped: nn.Module, model: nn.Module) -> None:
    """A transform of the wrapper is a transform of the model inside."""
    before = world(model)
    fast = tome_fx.transform(wrapped, 2)
    assert world(model) == before
    assert list(fast.state_dict()) == list(model.state_dict())
    assert fast.report == tome_fx.explain(model, 2)
    assert torch.equal(fast(images()), tome_fx.transform(model, 2)(images()))


def test_a_compiled_model() -> None:
    model = tiny()
    check_unwrapped(torch.compile(model, backend="eager"), model)


def test_a_model_compiled_in_place() -> None:
    model = tiny()
    model.compile(backend="eager")
    assert tome_fx.transform(model, 2).schedule == (2, 2)
    assert model._compiled_call_impl is not None


def test_a_data_parallel_model() -> None:
    model = tiny()
    check_unwrapped(nn.DataParallel(model), model)
    check_unwrapped(torch.compile(nn.DataParallel(model), backend="eager"), model)


@pytest.fixture
def _alone() -> Iterator[None]:
    """A process group of this process."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_a_distributed_model() -> None:
    model = tiny()
    check_unwrapped(nn.parallel.DistributedDataParallel(model), model)


@pytest.mark.usefixtures("_alone")
def test_a_sharded_model() -> None:
    from torch.distributed.fsdp import fully_shard

    model = tiny()
    fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    with pytest.raises(tome_fx.ConfigError, match="FSDP") as caught:
        tome_fx.transform(model, 2)
    assert "shard the result" in str(caught.value)


@pytest.mark.usefixtures("_alone")
def test_a_result_sharded_by_the_first_fsdp_is_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against it
        wrapped = FullyShardedDataParallel(tiny(), device_id=torch.device("cpu"))
    with pytest.raises(tome_fx.ConfigError, match="Transform the model first, then shard"):
        tome_fx.transform(wrapped, 2)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("own", [True, False])
def test_a_result_in_the_first_fsdp(own: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    fast, x = tome_fx.transform(tiny(), 2), images()
    expected = fast(x).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against it
        device = torch.device("cpu")
        wrapped = FullyShardedDataParallel(fast, use_orig_params=own, device_id=device)
        assert torch.equal(wrapped(x).detach(), expected)


@pytest.mark.usefixtures("_alone")
def test_no_whole_weights_stay_behind_a_sharded_result() -> None:
    """Sharding is for want of memory: the structure that captures are made of holds none."""
    from torch.distributed.fsdp import fully_shard

    fast = tome_fx.transform(tiny().train(), 2)
    fast.eval().train()
    whole = [weakref.ref(parameter) for parameter in fast.parameters()]
    x = images()
    y = fast(x).detach()
    fully_shard(fast, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    gc.collect()
    assert sum(reference() is not None for reference in whole) == 0
    torch.testing.assert_close(fast(x).detach(), y)


def test_a_script_module() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; models made with it are around
        script = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(tome_fx.ConfigError, match="ScriptModule") as caught:
        tome_fx.transform(script, 2)
    assert "nn.Module" in str(caught.value)


def test_a_scripted_part() -> None:
    """torch.export takes none; it is captured by symbolic tracing, with weights of its own."""
    model, x = tiny(), images()
    mlp = model.blocks[1].mlp
    expected = tome_fx.transform(model, 2)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, and of export about scripts
        model.blocks[1].mlp = torch.jit.script(nn.Sequential(mlp.fc1, nn.GELU(), mlp.fc2))
        fast = tome_fx.transform(model, 2, example_inputs=x)
        assert torch.equal(fast.train().eval()(x), fast(x))
    assert fast.schedule == (2, 2)
    assert distance(fast(x).detach(), expected.detach()) < 1e-5
    with pytest.raises(tome_fx.ConfigError, match=r"scripted part.*Cast, move or load the model"):
        fast.double()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_transformed_model(compiled: bool) -> None:
    fast = tome_fx.transform(tiny(), [2, 1], prop_attn=False)
    again = torch.compile(fast, backend="eager") if compiled else fast
    text = failure(again, tome_fx.AlreadyTransformedError)
    assert "r=[2, 1]" in text
    assert "model.r" in text
    assert tome_fx.explain(fast) == fast.report


def test_a_model_with_a_transformed_part() -> None:
    fast = tome_fx.transform(tiny(), [2, 1])
    whole = nn.Sequential(fast, nn.Linear(10, 2))
    text = failure(whole, tome_fx.AlreadyTransformedError, example_inputs=images())
    assert "r=[2, 1]" in text


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (None, "NoneType"),
        (lambda x: x, "function"),
        ("vit_base_patch16_224", "str"),
        (nn.Linear, "type"),
        ({"weight": torch.ones(1)}, "dict"),
    ],
    ids=["None", "function", "name", "class", "state_dict"],
)
def test_no_model_at_all(thing: Any, name: str) -> None:
    for function in (tome_fx.transform, tome_fx.explain):
        with pytest.raises(TypeError, match=r"nn\.Module") as caught:
            function(thing, 2)
        assert name in str(caught.value)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "close"),
    [
        ("prop_atn", "prop_attn"),
        ("example_input", "example_inputs"),
        ("kwargs", "example_kwargs"),
        ("captur", "capture"),
        ("round", "rounding"),
        ("protected", "protect"),
        ("rule", "rules"),
    ],
)
def test_a_misspelt_option(option: str, close: str) -> None:
    assert close in failure(tiny(), tome_fx.ConfigError, **{option: 1}).partition("Did you mean")[2]
    with pytest.raises(tome_fx.ConfigError, match=f"'{option}'.*{close}"):
        tome_fx.explain(tiny(), **{option: 1})


def test_an_unknown_option() -> None:
    text = failure(tiny(), tome_fx.ConfigError, zzz=1)
    for name in ("r", "prop_attn", "capture", "rounding", "strict", "protect", "rules"):
        assert name in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prop_attn": 1}, "prop_attn=1 True False"),
        ({"strict": "yes"}, "strict='yes' True False"),
        ({"capture": "fx"}, "capture='fx' 'auto' 'export' 'symbolic_trace'"),
        ({"rounding": "up"}, "rounding='up' 'truncate' 'exact'"),
        ({"protect": -1}, "protect=-1 (front, back)"),
        ({"protect": True}, "protect=True (front, back)"),
        ({"protect": (1, 2, 3)}, "protect=(1, 2, 3) (front, back)"),
        ({"rules": [(3, print)]}, "rules 3 torch.ops"),
        ({"rules": 3}, "rules 3 torch.ops"),
        ({"rules": [("aten.roll", None)]}, "rules aten.roll None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_option_out_of_range(options: dict[str, Any], words: str) -> None:
    text = failure(tiny(), tome_fx.ConfigError, **options)
    assert all(word in text for word in words.split()), text


@pytest.mark.parametrize("name", ["r", "report", "graph"])
def test_weights_under_a_name_of_the_result(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, tiny())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return getattr(self, name)(x)  # type: ignore[no-any-return]

    model = Named().eval()
    text = failure(model, tome_fx.ConfigError, example_inputs=images())
    assert repr(name) in text
    assert "nn.Sequential(model)" in text
    fast = tome_fx.transform(nn.Sequential(model), 0, example_inputs=images())
    assert torch.equal(fast(images()), model(images()))
