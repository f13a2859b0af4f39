"""Keras models as torch modules see them, and the other way round.

arrays           one Keras variable, made of tensors of one module: the two-way transform of its layout
transforms       the layouts
registry         which torch module is which Keras layer; open to users
modules          what Keras has and torch.nn has not
layers           the rules of torch.nn
composition      layers around layers, and several in one
edges            how each generation spells its variables
table            the documentation's table of layers, made of the rules
bound            a variable that was bound to the tensors of a live module
bound_model      a module whose tensors were bound: what goes with what, what is left over, and whether it is still so
saved            a saved graph as a sequence of Keras layers
units            a module as a sequence of what may be Keras layers
naming           what both sides are called, so that names can be compared
given_map        the caller's map, written either way round
fit              whether one can be the other
misfit           what errors show of those that do not go together
inexact          what cannot be converted exactly
binding          which module goes with which saved layer: by the caller's map, by names, by order
layout           the names under which a Keras program looks for its variables, where no checkpoint tells
leaves           variables of a Keras layer that torch has nothing like
view             a module as a node with Keras's names
optimizers       what Keras's optimizers keep, and torch's
optimizer_state  what the view of an optimizer asks of torch's, and the leaves of the view
kept             what is kept with a torch optimizer because its own state cannot say it
saved_optimizer  what a checkpoint has of a Keras optimizer
inexact_steps    where the steps of a torch optimizer are not those of Keras
optimizer_view   an optimizer as a node with Keras's names
epsilon          steps of torch's optimizers that are those of Keras
load             all of it in one line
"""

from torch_trackckpt.interop.keras.arrays import AS_IS, KerasArray, Piece, Transform
from torch_trackckpt.interop.keras.epsilon import KerasEpsilon, KerasRMSprop
from torch_trackckpt.interop.keras.inexact import Inexact
from torch_trackckpt.interop.keras.layers import dense_after_flatten
from torch_trackckpt.interop.keras.load import KerasLoadStatus, keras_view, load_keras
from torch_trackckpt.interop.keras.modules import KerasBatchNorm1d, KerasBatchNorm2d, KerasNormalization
from torch_trackckpt.interop.keras.optimizer_view import KerasOptimizerView
from torch_trackckpt.interop.keras.registry import LayerForm, register_keras_layer
from torch_trackckpt.interop.keras.saved import Flavor
from torch_trackckpt.interop.keras.view import KerasModelView

__all__ = [
    "AS_IS",
    "Flavor",
    "Inexact",
    "KerasArray",
    "KerasBatchNorm1d",
    "KerasBatchNorm2d",
    "KerasEpsilon",
    "KerasLoadStatus",
    "KerasModelView",
    "KerasNormalization",
    "KerasOptimizerView",
    "KerasRMSprop",
    "LayerForm",
    "Piece",
    "Transform",
    "dense_after_flatten",
    "keras_view",
    "load_keras",
    "register_keras_layer",
]
