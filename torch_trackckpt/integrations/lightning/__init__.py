"""Lightning trainings, saved and restored as objects.

`package` finds Lightning, `training` says what is saved and how a trainer goes on from it, `callback` says when.
"""

from torch_trackckpt.integrations.lightning.callback import TrackCheckpoint

__all__ = ["TrackCheckpoint"]
