"""Rules for the BERT checkpoints that Google released, and for the classes of Hugging Face's transformers.

The names are those of ``google-research/bert``; whatever was trained or fine-tuned with it has them.
"""

from __future__ import annotations

from torch_trackckpt.interop.rules import TRAINING_STATE, Rule, RuleSet, Scope
from torch_trackckpt.interop.transforms import TRANSPOSED

__all__ = [
    "BERT_FOR_PRE_TRAINING",
    "BERT_FOR_QUESTION_ANSWERING",
    "BERT_FOR_SEQUENCE_CLASSIFICATION",
    "BERT_MODEL",
]

_DENSE = (Rule("kernel", "weight", TRANSPOSED), Rule("bias", "bias"))
_NORM = (Rule("gamma", "weight"), Rule("beta", "bias"))
# These are stored as (classes, hidden), and TensorFlow's program transposes them when it multiplies.
_HEAD = (Rule("output_weights", "weight"), Rule("output_bias", "bias"))

_EPSILON = 1e-12


def _encoder(prefix: str, *, with_pooler: bool = True) -> tuple[Rule | Scope, ...]:
    pooler = (Scope("bert/pooler/dense", f"{prefix}pooler.dense", _DENSE),) if with_pooler else ()
    layer, torch_layer = r"bert/encoder/layer_(\d+)", f"{prefix}encoder.layer.{{1}}"
    return (
        Rule("bert/embeddings/(word|position|token_type)_embeddings", f"{prefix}embeddings.{{1}}_embeddings.weight"),
        Scope("bert/embeddings/LayerNorm", f"{prefix}embeddings.LayerNorm", _NORM),
        Scope(f"{layer}/attention/self/(query|key|value)", f"{torch_layer}.attention.self.{{2}}", _DENSE),
        Scope(f"{layer}/attention/output/dense", f"{torch_layer}.attention.output.dense", _DENSE),
        Scope(f"{layer}/attention/output/LayerNorm", f"{torch_layer}.attention.output.LayerNorm", _NORM),
        Scope(f"{layer}/(intermediate|output)/dense", f"{torch_layer}.{{2}}.dense", _DENSE),
        Scope(f"{layer}/output/LayerNorm", f"{torch_layer}.output.LayerNorm", _NORM),
        *pooler,
    )


BERT_FOR_PRE_TRAINING = RuleSet(
    "BertForPreTraining",
    (
        *_encoder("bert."),
        Scope("cls/predictions/transform/dense", "cls.predictions.transform.dense", _DENSE),
        Scope("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm", _NORM),
        Rule("cls/predictions/output_bias", "cls.predictions.bias"),
        Scope("cls/seq_relationship", "cls.seq_relationship", _HEAD),
    ),
    epsilon=_EPSILON,
)
"""For ``BertForPreTraining``, whose ``cls.predictions.decoder`` is tied to the embeddings and to
``cls.predictions.bias``."""

BERT_MODEL = RuleSet(
    "BertModel",
    _encoder(""),
    ignore=(*TRAINING_STATE, "cls/.*", "output_(weights|bias)"),
    epsilon=_EPSILON,
)
"""For ``BertModel``, which has no head; those of the file are dropped."""

BERT_FOR_SEQUENCE_CLASSIFICATION = RuleSet(
    "BertForSequenceClassification",
    (*_encoder("bert."), Rule("output_weights", "classifier.weight"), Rule("output_bias", "classifier.bias")),
    ignore=(*TRAINING_STATE, "cls/.*"),
    epsilon=_EPSILON,
)
"""For ``BertForSequenceClassification``, fine-tuned with ``run_classifier.py``; the heads of pre-training are
dropped."""

BERT_FOR_QUESTION_ANSWERING = RuleSet(
    "BertForQuestionAnswering",
    (*_encoder("bert.", with_pooler=False), Scope("cls/squad", "qa_outputs", _HEAD)),
    ignore=(*TRAINING_STATE, "bert/pooler/.*", "cls/(predictions|seq_relationship)/.*"),
    epsilon=_EPSILON,
)
"""For ``BertForQuestionAnswering``, fine-tuned with ``run_squad.py``; it has no pooler. The other heads are dropped."""
