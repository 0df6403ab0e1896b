"""The result of a transform: a graph module that can be planned anew."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from tome_fx.called import is_called_alike
from tome_fx.captured import Captured, captured_by
from tome_fx.capturing.calling import hidden, ways_of
from tome_fx.capturing.checkpoints import SWITCHES
from tome_fx.capturing.examples import Example
from tome_fx.capturing.sharing import unshared
from tome_fx.capturing.source import Source
from tome_fx.errors import ToMeWarning, warn
from tome_fx.graph.extras import Extras, born, extras_of, put
from tome_fx.graph.functions import rewritten
from tome_fx.graph.numbers import warn_of_change
from tome_fx.graph.places import refuse_change, refuse_deletion, switch
from tome_fx.index_maps import side_by_side
from tome_fx.locating import LOCK, Located, locate_program
from tome_fx.options import Settings
from tome_fx.pipeline import Rewritten, maps_graph, rewrite
from tome_fx.report import Report
from tome_fx.switches import Switches


class ToMeModule(Switches, GraphModule):
    """A model rewritten to merge tokens.

    Parameters and buffers are the original's own objects under their own names. ``train()`` and
    ``eval()`` switch between programs captured in each mode, on first use; so does an assignment
    to ``training``.

    Attributes:
        r: what was asked for; assign to plan anew, without a new capture.
        schedule: tokens removed at each layer, after clamping.
        report: what was found and done.
    """

    def __init__(
        self,
        source: Source,
        settings: Settings,
        example: Example | None,
        captured: Captured | None = None,
    ) -> None:
        super().__init__(nn.Module(), Graph(), "ToMeModule")
        self._source = source
        self._settings = settings
        self._example = example
        self._maps: tuple[Any, GraphModule] | None = None
        source.install(self)
        self._programs: dict[bool, Located] = {} if captured is None else captured.put_on(self)
        for located in self._programs.values():
            self._ask_of_ways(located)
        self._show(source.training)
        self._rewritten: Rewritten
        self._mode = source.training
        self._rewrite()
        self._show_switches()
        self._born = born(self)

    # -- what the user asks ------------------------------------------------------------------

    @property
    def r(self) -> Any:
        """What was asked for: int, ``(r, inflect)``, list or share."""
        return self._settings.r

    @r.setter
    def r(self, value: Any) -> None:
        before = self._settings
        self._settings = before.with_r(value)
        try:
            self._rewrite()
        except Exception:
            self._settings = before
            raise
        if self.report.skipped:
            warn(self.report.skipped)

    @property
    def schedule(self) -> tuple[int, ...]:
        """Tokens removed at each layer, after clamping."""
        return self.report.schedule

    @property
    def report(self) -> Report:
        """What was found and done, for the program of the current mode."""
        return self._rewritten.report

    @property
    def settings(self) -> Settings:
        """The checked options that made this module."""
        return self._settings

    @property
    def located(self) -> Located:
        """The captured program of the current mode, and what was found in it."""
        return self._located()

    @torch.no_grad()
    def token_map(self, *args: Any, **kwargs: Any) -> Tensor:
        """Which output token holds each patch, after each layer.

        Args:
            args, kwargs: the model's inputs, a batch of ``B`` images.

        Returns:
            ``[L, B, N]`` int64: for each of ``L`` layers, image and patch the slot, from 0, in the
            merged stream. A patch is a token of the stream, in the order that attention has them,
            should the model scan them in another than rows; protected ones are not counted. Where
            streams of several lengths merge, -1 stands behind the patches of the shorter. Where
            each of the ``F`` frames (views, crops) of an image merges by itself, ``[L, B, F, N]``.
        """
        key = (self.training, self._rewritten)
        if self._maps is None or self._maps[0] != key:
            graph = maps_graph(self._located(), self._settings, self._rewritten.schedule)
            self._maps = key, GraphModule(self, graph)
        return side_by_side(self._maps[1](*args, **kwargs))

    # -- modes -------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> ToMeModule:
        """Switch to the program of training (True) or evaluation, captured on first use.

        All of the model is in that mode then, also what was frozen when it was transformed.
        """
        if not isinstance(mode, bool):
            raise ValueError(f"training={mode!r} is not True or False.")
        # A wrapper may have set ``training`` here before it calls this, as torch.compile's does.
        before, kept, modes = self._mode, dict(self._programs), self._source.modes
        self._source.allow(mode)
        if self._source.settle():
            self._programs.pop(before, None)
        elif mode == before:
            self._show(mode)  # of each part too: somebody may have written to them
            return self
        self._show(mode)
        try:
            self._rewrite()
        except Exception:
            self._programs = kept
            self._source.restore(modes)
            self._show(before)
            raise
        return self

    def _show(self, mode: bool) -> None:
        """Say the mode, of each part too."""
        object.__setattr__(self, "training", mode)
        switch(self, mode)
        self._source.tell_modes(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse modules in the place of those that hold weights; follow a mode that is written.

        Who restores the modes of all modules one by one, as Lightning does behind each
        validation, calls no ``train()``. So do those who switch checkpointing on by writing it.
        """
        refuse_change(self, name, value)
        if name == "training" and vars(self).get("_mode", value) != value:
            self.train(value)
            return
        if name in SWITCHES and name in vars(self):
            self._follow_switch(name, value)
            return
        model = self._source.skeleton if "_born" in vars(self) else None
        if isinstance(model, nn.Module) and not hasattr(type(self), name):
            warn_of_change(model, name, value)
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As ``__setattr__``."""
        refuse_change(self, name, module)
        super().add_module(name, module)

    def __delattr__(self, name: str) -> None:
        """As ``__setattr__``."""
        refuse_deletion(self, name)
        super().__delattr__(name)

    def recompile(self) -> Any:
        """Put the graph's code on the class of its own that each graph module has.

        FSDP derives a class from that one, and a call that finds code on both calls itself. The
        function of that class stays one: whoever has wrapped it, as accelerate does for autocast,
        runs the program of now.
        """
        outer = type(self)
        own = next(cls for cls in outer.__mro__ if ToMeModule in cls.__bases__)
        forward = vars(own).get("forward")
        self.__class__ = own
        try:
            return super().recompile()
        finally:
            if forward is not None:
                setattr(own, "forward", rewritten(forward, vars(own)["forward"]))  # noqa: B010
            if "forward" in vars(own):
                hidden(vars(own)["forward"])
            self.__class__ = outer

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ToMeModule:
        """Casts and moves, of the result alone: the original keeps its own.

        Parameters that change become the result's own; the others stay shared. What the capture
        knows of dtypes and devices is captured again.
        """
        before = self._source.signature(self)
        with unshared(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._source.signature(self) != before and self._source.can_capture:
            self._programs.clear()
            self._rewrite()
        return self

    def _located(self) -> Located:
        if self.training not in self._programs:
            with LOCK:
                model = self._source.to_trace(self)
                example = self._source.example_like(self._example, self)
                located = locate_program(model, example, self._settings)
                self._programs[self.training] = self._source.adopt(self, located)
                self._ask_of_ways(located)
        return self._programs[self.training]

    def _ask_of_ways(self, located: Located) -> None:
        """Let calls with other plain arguments ask whether they come to the same program."""
        ways, whose = ways_of(located.program.graph), weakref.ref(self)
        if ways is None or not self._source.can_capture:
            return
        graded = ways.graded

        def ask(values: dict[str, Any]) -> bool | None:
            module = whose()
            return None if module is None else module._comes_to_same(values, graded)

        ways.ask = ask

    def _comes_to_same(self, values: dict[str, Any], graded: bool) -> bool | None:
        """Is the model, given these arguments, the program of the current mode?"""
        if self._source.is_borrowed(self):
            return None
        with LOCK, torch.set_grad_enabled(graded), warnings.catch_warnings():
            warnings.simplefilter("ignore", ToMeWarning)
            try:
                model = self._source.to_trace(self)
                example = self._source.example_like(self._example, self)
                program = self._located().program
                return is_called_alike(model, example, self._settings, values, program, self)
            finally:
                self._source.release(self)

    def _rewrite(self) -> None:
        located = self._located()
        done = rewrite(self, located, self._settings, self._source.name)
        self._rewritten = done
        self._mode = self.training  # that of the program that runs
        self._maps = None
        with LOCK:
            self._source.release(self)

    # -- copies ------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> ToMeModule:
        """A copy with weights of its own, the same settings, and what was put on it since."""
        source, example = self._source.copied(self, memo), copy.deepcopy(self._example, memo)
        captured = captured_by(self, self._programs).copied(memo)
        result = ToMeModule(source, self._settings, example, captured)
        memo[id(self)] = result
        result.__setstate__(copy.deepcopy(extras_of(self, self._born), memo))
        return result

    def __copy__(self) -> ToMeModule:
        """Another module on the same weights, with settings of its own."""
        source, captured = self._source.synced(self), captured_by(self, self._programs)
        result = ToMeModule(source, self._settings, self._example, captured)
        result.__setstate__(extras_of(self, self._born))
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the source model and the settings; loading transforms again."""
        made = self._source.synced(self), self._settings, self._example
        return _rebuild, made, extras_of(self, self._born)

    def __setstate__(self, extras: Extras) -> None:
        """Put on it what was put on the module that it is a copy of."""
        put(self, extras)


def _rebuild(source: Source, settings: Settings, example: Example | None) -> ToMeModule:
    return ToMeModule(source, settings, example)
