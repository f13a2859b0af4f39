"""Checkpoints of other libraries: what they call their values, and how they lay them out."""

from torch_trackckpt.interop.bert import (
    BERT_FOR_PRE_TRAINING,
    BERT_FOR_QUESTION_ANSWERING,
    BERT_FOR_SEQUENCE_CLASSIFICATION,
    BERT_MODEL,
)
from torch_trackckpt.interop.keras import (
    KerasLoadStatus,
    keras_view,
    load_keras,
    register_keras_layer,
)
from torch_trackckpt.interop.name_based import load_name_based
from torch_trackckpt.interop.name_based_status import RulesLoadStatus
from torch_trackckpt.interop.rules import TRAINING_STATE, Rule, RuleSet, Scope
from torch_trackckpt.interop.slim import INCEPTION_V3, MOBILENET_V1, MOBILENET_V2, RESNET_V1, RESNET_V2
from torch_trackckpt.interop.transforms import (
    AS_IS,
    CONV_1D,
    CONV_2D,
    CONV_3D,
    DEPTHWISE_2D,
    LOGITS_1X1,
    TRANSPOSED,
    WITHOUT_BACKGROUND,
    DenseAfterFlatten,
    Permuted,
    Sliced,
    Transform,
)

__all__ = [
    "AS_IS",
    "BERT_FOR_PRE_TRAINING",
    "BERT_FOR_QUESTION_ANSWERING",
    "BERT_FOR_SEQUENCE_CLASSIFICATION",
    "BERT_MODEL",
    "CONV_1D",
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_2D",
    "INCEPTION_V3",
    "LOGITS_1X1",
    "MOBILENET_V1",
    "MOBILENET_V2",
    "RESNET_V1",
    "RESNET_V2",
    "TRAINING_STATE",
    "TRANSPOSED",
    "WITHOUT_BACKGROUND",
    "DenseAfterFlatten",
    "KerasLoadStatus",
    "Permuted",
    "Rule",
    "RuleSet",
    "RulesLoadStatus",
    "Scope",
    "Sliced",
    "Transform",
    "keras_view",
    "load_keras",
    "load_name_based",
    "register_keras_layer",
]
