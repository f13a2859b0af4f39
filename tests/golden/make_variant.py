#!/usr/bin/env python3
"""Writes the files in variant/ with TensorFlow 2.21. Usage: python make_variant.py [FOLDER], which must not exist."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "variant")
os.makedirs(folder)

numbers = tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
filled = tf.raw_ops.TensorListFromTensor(tensor=numbers, element_shape=tf.constant([2]))
empty = tf.raw_ops.EmptyTensorList(
    element_shape=tf.constant([3, 1], tf.int64), max_num_elements=7, element_dtype=tf.int64
)
# 20 numbers, each a tensor of its own: the length of the message takes two bytes.
long = tf.raw_ops.TensorListFromTensor(tensor=tf.range(20), element_shape=tf.zeros([0], tf.int32))
matrix = tf.reshape(tf.stack([filled, empty, long, filled]), [2, 2])
values = {"scalar": filled, "matrix": matrix, "none": matrix[:0], "number": tf.constant([7], tf.int32)}
tf.raw_ops.SaveV2(
    prefix=os.path.join(folder, "ckpt"),
    tensor_names=list(values),
    shape_and_slices=[""] * len(values),
    tensors=list(values.values()),
)
