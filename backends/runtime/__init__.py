"""What generated modules stand on: the stream they run in, the state they hand on, the optimizers
they are trained by.
"""

from .model import Model
from .optimizer import Optimizer
from .state import State, StateError, load_state
from .stream import Stream
from .tree import Part

__all__ = ["Model", "Optimizer", "Part", "State", "StateError", "Stream", "load_state"]
