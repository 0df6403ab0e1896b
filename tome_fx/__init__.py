"""tome_fx: Token Merging as a graph compiler pass for Vision Transformers."""

from tome_fx.api import explain as explain
from tome_fx.api import transform as transform
from tome_fx.compiling.backend import Backend as Backend
from tome_fx.compiling.backend import backend as backend
from tome_fx.costs.hardware import DeviceModel as DeviceModel
from tome_fx.errors import AlreadyTransformedError as AlreadyTransformedError
from tome_fx.errors import CaptureError as CaptureError
from tome_fx.errors import ConfigError as ConfigError
from tome_fx.errors import InputError as InputError
from tome_fx.errors import ModeError as ModeError
from tome_fx.errors import NoAttentionFoundError as NoAttentionFoundError
from tome_fx.errors import ShapeError as ShapeError
from tome_fx.errors import ToMeError as ToMeError
from tome_fx.errors import ToMeWarning as ToMeWarning
from tome_fx.errors import VerificationError as VerificationError
from tome_fx.module import ToMeModule as ToMeModule
from tome_fx.recipe import apply_recipe as apply_recipe
from tome_fx.recipe import save_recipe as save_recipe
from tome_fx.report import Report as Report
from tome_fx.tuning.tune import tune as tune
from tome_fx.tuning.tuned import Point as Point
from tome_fx.tuning.tuned import Tuned as Tuned

__version__ = "0.1.0"
