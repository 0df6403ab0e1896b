"""The parts of a result are found as those of its model are, by whoever asks what a part is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import update_bn
from transformers.trainer_pt_utils import get_parameter_names

import tome_fx
from tests.laws.common import TINY
from tests.tiny import images, tiny

pytestmark = TINY


class Normed(nn.Module):
    """A tiny model behind a batch norm of its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.body = nn.BatchNorm2d(3), tiny()
        self.extra = nn.Sequential(nn.Linear(10, 4), nn.GELU(), nn.Linear(4, 4))
        self.blocks = nn.ModuleDict({"only": nn.GroupNorm(2, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks["only"](self.extra(self.body(self.bn(x))))  # type: ignore[no-any-return]


@pytest.fixture
def pair() -> tuple[Any, Any]:
    model = Normed().eval()
    return model, tome_fx.transform(model, 2)


KINDS = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.ModuleDict)


def of_kind(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, kind)]


def test_the_same_parts_are_found(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    for kind in KINDS:
        assert of_kind(fast, kind) == of_kind(model, kind) != []


def test_they_say_what_they_were_made_with(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    assert fast.body.norm.eps == model.body.norm.eps
    assert fast.bn.num_features == 3
    assert str(fast.body.patch_embed.proj).endswith(str(model.body.patch_embed.proj))
    with pytest.raises(tome_fx.ConfigError, match=r"eps=0\.1 would change nothing.*Change the mod"):
        fast.body.norm.eps = 0.1
    fast.body.norm.eps = model.body.norm.eps
    fast.body.norm.note = "a word of ours"


class Bare(nn.Module):
    """Norms without weights, and weights that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.body = nn.BatchNorm2d(3, affine=False), tiny()
        self.body.patch_embed.proj = parametrizations.weight_norm(self.body.patch_embed.proj)
        self.stem = nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.bn(self.stem(x)))  # type: ignore[no-any-return]


def test_what_is_none_is_none_and_what_is_computed_is_not_found() -> None:
    fast = tome_fx.transform(Bare().eval(), 2)
    assert (fast.bn.weight, fast.bn.bias, fast.stem.bias) == (None, None, None)
    assert of_kind(fast, nn.Conv2d) == ["stem"]


def test_blocks_are_taken_by_number(pair: tuple[Any, Any]) -> None:
    blocks = pair[1].body.blocks
    assert len(blocks) == 2
    assert blocks[-1] is blocks.get_submodule("1")
    for block in blocks[:1]:
        block.requires_grad_(False)
    assert not any(p.requires_grad for p in pair[0].body.blocks[0].parameters())
    assert all(p.requires_grad for p in pair[0].body.blocks[1].parameters())


def test_numbers_of_what_has_parts_without_weights_would_be_others(pair: tuple[Any, Any]) -> None:
    assert not isinstance(pair[1].extra, nn.Sequential)
    assert isinstance(pair[1].extra.get_submodule("2"), nn.Linear)


def test_what_has_no_weight_decay_has_none_in_a_result(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    norms = [nn.LayerNorm, nn.BatchNorm2d]
    assert get_parameter_names(fast, norms) == get_parameter_names(model, norms)


def test_weights_are_initialised_by_kind(pair: tuple[Any, Any]) -> None:
    model, fast = pair

    def init(part: nn.Module) -> None:
        if isinstance(part, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            nn.init.constant_(part.weight, 0.5)

    fast.apply(init)
    for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d):
        assert all((model.get_submodule(p).weight == 0.5).all() for p in of_kind(model, kind))


def test_statistics_with_another_momentum_are_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(tome_fx.ConfigError, match=r"momentum=None would change nothing.*Change th"):
        update_bn([images(3)], pair[1])
    pair[1].bn.running_mean.fill_(3.0)
    pair[1].apply(lambda part: getattr(part, "reset_parameters", int)())
    assert (pair[0].bn.running_mean == 0.0).all()


def test_freezing_and_sharing_out_batch_norms_is_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(tome_fx.ConfigError, match="FrozenBatchNorm2d cannot take the place of bn"):
        timm.utils.freeze(pair[1])
    with pytest.raises(tome_fx.ConfigError, match="SyncBatchNorm cannot take the place of bn"):
        nn.SyncBatchNorm.convert_sync_batchnorm(pair[1])
    assert isinstance(pair[1].bn, nn.BatchNorm2d)


def test_what_the_program_needs_is_not_taken_away(pair: tuple[Any, Any]) -> None:
    _, fast = pair
    body = fast.body
    lost = (
        (fast, "body"),
        (fast, "bn"),
        (body, "head"),
        (body.norm, "weight"),
        (fast.bn, "running_mean"),
    )
    for part, name in lost:
        with pytest.raises(tome_fx.ConfigError, match=rf"{name} cannot be None.*Change the model"):
            setattr(part, name, None)
    for part, name in lost[:3]:
        with pytest.raises(tome_fx.ConfigError, match=r"none is taken out\. Change the model"):
            delattr(part, name)
    fast.note = None
    del fast.note
    assert fast(images(2)).shape[0] == 2


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_dynamic_quantisation_is_refused(pair: tuple[Any, Any]) -> None:
    old = pytest.importorskip("torch.ao.quantization")  # it is to be removed from torch
    with pytest.raises(
        tome_fx.ConfigError, match="Quantise the model first, by torchao, then transform it"
    ):
        old.quantize_dynamic(pair[1], {nn.Linear})


def test_parts_of_torchs_own_alone_are_called_by_themselves(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    z = torch.randn(2, 32)
    assert torch.equal(fast.body.head(z), model.body.head(z))
    for part in (fast.body.blocks, fast.body.norm, fast.body):
        with pytest.raises(tome_fx.ConfigError, match="of a transformed module cannot be called"):
            part(z)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "append": lambda blocks: blocks.append(nn.Linear(3, 3)),
    "extend": lambda blocks: blocks.extend(nn.Sequential(nn.Linear(3, 3))),
    "insert": lambda blocks: blocks.insert(0, nn.Linear(3, 3)),
    "delete": lambda blocks: blocks.__delitem__(0),
    "pop": lambda blocks: blocks.pop(0),
    "replace": lambda blocks: blocks.__setitem__(0, nn.Linear(3, 3)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_none_is_added_and_none_is_taken_out(pair: tuple[Any, Any], change: Any) -> None:
    blocks = pair[1].body.blocks
    before = list(blocks)
    with pytest.raises(tome_fx.ConfigError, match="Change the model, then transform that"):
        change(blocks)
    assert list(blocks) == before


class Odd(nn.Module):
    """Parts without weights that hold others, one that is scripted, one that is lazy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.LazyConv2d(3, 1), tiny()
        self.none = nn.Sequential(nn.Sequential(nn.Identity()), nn.Dropout(0.5))
        self.tail = torch.jit.script(nn.Linear(10, 4))
        self._base, self._told = nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self._base(self.tail(self.body(self.none(self.stem(x)))))
        return y + self._told(y)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")  # of lazy modules, of scripts, and of export about them
def test_what_has_no_place_or_no_class_here() -> None:
    model, x = Odd().eval(), images(3)
    fast = tome_fx.transform(model, 0, example_inputs=x)
    assert torch.equal(fast(x), model(x))
    assert fast.get_submodule("_told").running_mean is None
    assert tome_fx.transform(model, 2, example_inputs=x).schedule == (2, 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_part_is_copied(pair: tuple[Any, Any], copied: Any) -> None:
    other = copied(pair[1].body)
    assert type(other.norm) is type(pair[1].body.norm)
    assert torch.equal(other.norm.weight, pair[1].body.norm.weight)
    with pytest.raises(tome_fx.ConfigError, match="would change nothing"):
        other.norm.eps = 0.1


def test_copies_of_the_whole_have_them_too(pair: tuple[Any, Any]) -> None:
    other = copy.deepcopy(pair[1])
    for kind in KINDS:
        assert of_kind(other, kind) == of_kind(pair[0], kind)
    other.bn.running_mean.fill_(3.0)
    assert not (pair[0].bn.running_mean == 3.0).any()
