"""Finds the distinct images and pictures of the groups in a batch, within a TensorFlow graph.

Shape legend: G groups; U distinct images, where an image is what the image field of a group names; P distinct pictures;
L pairs of an image and one of its pictures.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from easyrec_mm.schema import Schema

# Separates the path and the category of a picture; neither contains it.
_KEY_SEPARATOR = "\x1d"


def images_of_groups(schema: Schema, groups: dict[str, Any], origin: dict[str, tf.Tensor]) -> dict[str, Any]:
    """Find the distinct images of groups, and the distinct pictures of these images.

    Args:
      schema: determines how the image field is read.
      groups: image_path string `[G]`, group_size and record int64 `[G]`, image_features and image_labels name -> `[G]`,
        contents kind -> string `[G]`.
      origin: file and row of each record.

    Returns:
      sample_image    int32 `[S]`: sample -> image
      picture_path    string `[P]`
      picture_key     string `[P]`, equal only for the same picture and category
      picture_number  int64 `[P]`, as picture_key
      picture_origin  file and row `[P]` of the first group with the picture
      category        int64 `[P]`
      link_picture    int32 `[L]`: pair -> picture
      link_image      int32 `[L]`: pair -> image, ascending
      image_features  feature name -> `[U]`
      image_labels    label name -> `[U]`
      image_key       int64 `[U]`, equal only for the same content of the image field and category
      num_images      U
      contents        kind -> "values" string `[C]`, the distinct contents; "number" int64 `[C]`, equal only for the
                      same; "of_image" int32 `[U]`: image -> content
    """
    if not schema.has_item_vector:
        return {"sample_image": tf.zeros([tf.reduce_sum(groups["group_size"])], tf.int32)}
    features = groups["image_features"]
    # For the image tower, a picture with two categories is two pictures.
    category = features.get(schema.category_feature, tf.zeros_like(groups["group_size"]))
    path, contents = groups["image_path"], groups["contents"]
    if not schema.uses_image:
        path = tf.fill(tf.shape(path), "")  # the data may have pictures that the network does not use
    keys = tf.strings.join([_image_keys(path, category), *contents.values()], _KEY_SEPARATOR)
    group_image, first_group = _distinct(keys)  # [G], [U]
    pictures = _distinct_pictures(schema, tf.gather(path, first_group), tf.gather(category, first_group))
    picture_group = tf.gather(first_group, pictures.pop("first_image"))  # [P]
    return {
        "sample_image": tf.repeat(group_image, groups["group_size"]),
        **pictures,
        "picture_origin": rows_of(origin, tf.gather(groups["record"], picture_group)),
        "image_features": rows_of(features, first_group),
        "image_labels": rows_of(groups["image_labels"], first_group),
        "image_key": _number(tf.gather(keys, first_group)),
        "num_images": tf.size(first_group),
        "contents": {kind: _distinct_contents(tf.gather(values, first_group)) for kind, values in contents.items()},
    }


def _distinct_contents(of_images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Find the distinct contents of images, given that of each, string `[U]`."""
    of_image, first_image = _distinct(of_images)
    distinct = tf.gather(of_images, first_image)
    return {"values": distinct, "number": _number(distinct), "of_image": of_image}


def rows_of(values: dict[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return these rows of every tensor."""
    return {name: tf.gather(tensor, rows) for name, tensor in values.items()}


def _distinct_pictures(schema: Schema, path: tf.Tensor, category: tf.Tensor) -> dict[str, tf.Tensor]:
    """Find the distinct pictures of images, and the images to which they belong.

    Args:
      schema: determines how the image field is read.
      path: string `[U]`, the content of the image field.
      category: int64 `[U]`.
    """
    rows = tf.range(tf.size(path))
    link_image = rows
    if schema.image_separator:
        paths = tf.strings.split(path, schema.image_separator)
        paths = tf.ragged.boolean_mask(paths, tf.not_equal(paths, ""))
        # An image without a path counts as a bad picture, unless images without pictures are allowed.
        without = tf.where(tf.equal(paths.row_lengths(), 0))[:, 0]
        link_image = tf.concat([tf.gather(rows, paths.value_rowids()), tf.gather(rows, without)], 0)
        path = tf.concat([paths.flat_values, tf.fill(tf.shape(without), "")], 0)
        order = tf.argsort(link_image, stable=True)
        link_image, path = tf.gather(link_image, order), tf.gather(path, order)
    if schema.has_no_image_vector or not schema.uses_image:
        named = tf.not_equal(path, "")
        link_image, path = tf.boolean_mask(link_image, named), tf.boolean_mask(path, named)
    category = tf.gather(category, link_image)
    keys = _image_keys(path, category)
    link_picture, first_link = _distinct(keys)  # [L], [P]
    return {
        "picture_path": tf.gather(path, first_link),
        "picture_key": tf.gather(keys, first_link),
        "picture_number": _number(tf.gather(keys, first_link)),
        "category": tf.gather(category, first_link),
        "link_picture": link_picture,
        "link_image": link_image,
        "first_image": tf.gather(link_image, first_link),
    }


def _image_keys(path: tf.Tensor, category: tf.Tensor) -> tf.Tensor:
    """Return texts `[N]` that are equal only for the same picture and category."""
    return tf.strings.join([path, tf.strings.as_string(category)], _KEY_SEPARATOR)


def _number(keys: tf.Tensor) -> tf.Tensor:
    """Return an int64 for each key, not negative and equal only for equal keys."""
    return tf.strings.to_hash_bucket_fast(keys, tf.int64.max)


def _distinct(keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the index of each key among the distinct keys, int32 `[N]`, and where these first occur, `[distinct]`."""
    distinct, index = tf.unique(keys)
    return index, tf.math.unsorted_segment_min(tf.range(tf.size(keys)), index, tf.size(distinct))
