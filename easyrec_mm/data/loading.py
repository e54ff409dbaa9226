"""Loads what a batch needs in addition to its rows, ahead of its training step: pixels, and vectors from stores."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.data.batch import Batch, Contents, Images, InputBatch, one_picture_each
from easyrec_mm.data.chunks import ChunkReader
from easyrec_mm.data.item_contents import ItemContents
from easyrec_mm.data.packed_pictures import packed_path
from easyrec_mm.data.pictures import PictureLoader, Pictures
from easyrec_mm.data.shuffled_pictures import ShuffledPictures
from easyrec_mm.data.stored_vectors import StoredVectors
from easyrec_mm.data.vector_bank import Banks, Plan
from easyrec_mm.files.daemon_pool import DaemonPool
from easyrec_mm.formats.source import Source
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import IMAGE, Schema
from easyrec_mm.store.feature_vectors import Found, VectorStores


@dataclass(frozen=True)
class Pending:
    """A batch whose pictures and vectors are being loaded.

    rows         the rows of the batch, from ChunkReader
    epochs_done  number of epochs that are over with this batch
    paths        the argument of PictureLoader for each of the P pictures
    step         the step that trains the batch
    banks        the banks that save encoding
    plans        the plan of each bank, by its name
    loading      result of loading the pictures to encode; None for a model without pictures
    vectors      result of looking up the distinct keys; None for a model without such features
    contents     result of looking up the vectors of items
    """

    rows: dict[str, Any]
    epochs_done: int
    paths: list[bytes]
    step: int
    banks: Banks
    plans: dict[str, Plan]
    loading: Future[Pictures] | None
    vectors: Future[dict[str, Found]] | None
    contents: Future[dict[str, Found]] | None


class BatchLoader:
    """Loads the pixels and stored vectors of batches.

    Args:
      data: the config's data section.
      schema: meaning of a row.
      source: source of the rows.
      chunks: reads the rows.
      stores: the stores of vectors that features name by key.
      bad_records: counts bad groups and pictures.
    """

    def __init__(
        self,
        data: DatasetConfig,
        schema: Schema,
        source: Source,
        chunks: ChunkReader,
        pictures: PictureLoader | None,
        stores: VectorStores,
        bad_records: BadRecords,
    ) -> None:
        self._data, self._schema = data, schema
        self._source, self._chunks, self._pictures = source, chunks, pictures
        self._vectors = StoredVectors(schema.stored_features(), stores, bad_records)
        self._contents = ItemContents(schema, stores, bad_records)
        self._bad_records = bad_records
        self._shuffled = ShuffledPictures(data.shuffled_pictures) if data.shuffled_pictures else None
        image = schema.image
        self._pixel_spec = tf.TensorSpec([None, image.height, image.width, image.channels], tf.uint8)
        self._no_pixels = tf.zeros([0, *self._pixel_spec.shape[1:]], tf.uint8)
        self._no_images = one_picture_each(0)

    def spec(self) -> Batch:
        """Return the shapes and dtypes of batches; the sizes S, U, E, P and L are unknown."""
        rows = self._chunks.row_specs
        indices, numbers = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)
        images = Images(
            encoded=indices,
            category=numbers,
            picture_key=numbers,
            bank_row=indices,
            link_picture=indices,
            link_image=indices,
            has_picture=tf.TensorSpec([None], tf.bool),
            key=numbers,
            features=rows.get("image_features", {}),
            labels=rows.get("image_labels", {}),
        )
        samples = self._chunks.sample_specs()
        is_there = tf.TensorSpec([None], tf.bool)
        contents = {
            kind: Contents(values, indices, numbers, indices, indices, is_there)
            for kind, values in self._contents.specs().items()
        }
        return _batch(samples, self._vectors.specs(), indices, self._pixel_spec, images, contents)

    def begin(self, rows: dict[str, Any], epochs_done: int, step: int, banks: Banks, pool: DaemonPool) -> Pending:
        """Begin to load the pixels and stored vectors of a batch.

        Args:
          rows: the rows of the batch, from ChunkReader.
          epochs_done: number of epochs that are over with this batch.
          step: the step that trains the batch.
          banks: the banks that save encoding.
          pool: its threads load.
        """
        vectors = self._vectors.begin(rows["keys"], pool)
        of_contents = rows.get("contents", {})
        contents = self._contents.begin(of_contents, pool)
        keys = {kind: of_kind["values"] for kind, of_kind in of_contents.items()}
        if self._pictures is not None:
            keys[IMAGE] = rows["picture_key"]
        plans = {name: bank.plan(list(keys[name].numpy()), step) for name, bank in banks.items()}
        if self._pictures is None:
            return Pending(rows, epochs_done, [], step, banks, plans, None, vectors, contents)
        paths = self._paths(rows)
        encoded_paths = [paths[i] for i in plans[IMAGE].encoded] if IMAGE in plans else paths
        self._pictures.begin(encoded_paths)
        loading = pool.submit(self._pictures.load, encoded_paths)
        return Pending(rows, epochs_done, paths, step, banks, plans, loading, vectors, contents)

    def finish(self, pending: Pending) -> InputBatch:
        """Wait until a batch is loaded, count its bad groups, pictures and keys, and return it.

        Raises:
          DataError: if more groups, pictures or keys are bad than allowed.
          StoreError: if a store of vectors cannot be reached.
        """
        rows = pending.rows
        epochs_before, epoch, num_groups, num_own, num_refused, num_of_first_epoch = rows["counts"].numpy().tolist()
        records = self._bad_groups(rows["refused"]) if num_refused else []
        pixels, images, num_loaded = self._no_pixels, self._no_images, 0
        if pending.loading is not None:
            pictures = pending.loading.result()
            encoded = _encoded(pending)
            problems = {int(encoded[row]): problem for row, problem in pictures.problems.items()}
            records += self._bad_pictures(rows, problems)
            pixels, images = pictures.pixels, self._images(pending, encoded, problems)
            num_loaded = len(encoded)
        elif self._schema.has_item_vector:
            images = self._images(pending, _encoded(pending), {})
        self._bad_records.add(num_own, num_loaded, records)
        samples = self._chunks.samples(rows)
        vectors = self._vectors.of_samples(rows["keys"], pending.vectors)
        contents = self._contents.of_batch(rows.get("contents", {}), pending.plans, pending.contents)
        batch = _batch(samples, vectors, rows["sample_image"], pixels, images, contents)
        return InputBatch(
            batch=batch,
            kept_fields=samples["kept_fields"],
            num_groups=num_groups,
            num_of_first_epoch=num_of_first_epoch,
            epoch=epoch,
            epochs_before=epochs_before,
            epochs_done=pending.epochs_done,
            step=pending.step,
            picture_path=pending.paths,
            origin=rows["origin"],
        )

    def forget(self) -> None:
        """Cancel loading that was begun and not finished."""
        if self._pictures is not None:
            self._pictures.forget()

    def _paths(self, rows: dict[str, Any]) -> list[bytes]:
        """Return the argument of PictureLoader for each of the P pictures."""
        paths = list(rows["picture_path"].numpy())
        if self._shuffled is not None:
            return self._shuffled.instead_of(paths)
        if self._data.packed_images:
            files = rows["picture_origin"]["file"].numpy()
            return [packed_path(self._source.files[file], path) for file, path in zip(files, paths, strict=True)]
        return paths

    def _images(self, pending: Pending, encoded: NDArray[np.int32], problems: dict[int, str]) -> Images:
        """Return which pictures the images have, without the bad pictures.

        Args:
          pending: the batch.
          encoded: int32 `[E]`, the pictures that were loaded.
          problems: picture -> why it is bad.
        """
        rows, plan = pending.rows, pending.plans.get(IMAGE)
        is_bad = np.zeros(len(rows["picture_path"]), bool)
        is_bad[list(problems)] = True
        if plan is not None:
            bank = pending.banks[IMAGE]
            bank.mark_bad(plan.rows[encoded], is_bad[encoded])
            is_bad = bank.are_bad(plan.rows)
        link_picture, link_image = rows["link_picture"], rows["link_image"]
        num_images = int(rows["num_images"])
        has_picture = np.full(num_images, self._schema.uses_image)
        if self._schema.has_no_image_vector or self._schema.image_separator:
            # A bad picture is left out if the item has another one, or may be without a picture.
            is_good = ~is_bad[link_picture.numpy()]
            has_good = np.bincount(link_image.numpy(), is_good, num_images) > 0
            has_picture = has_good if self._schema.has_no_image_vector else np.ones(num_images, bool)
            is_kept = is_good | ~has_good[link_image.numpy()] & has_picture[link_image.numpy()]
            link_picture, link_image = tf.boolean_mask(link_picture, is_kept), tf.boolean_mask(link_image, is_kept)
        return Images(
            encoded=tf.constant(encoded),
            category=rows["category"],
            picture_key=rows["picture_number"],
            bank_row=tf.zeros(tf.shape(rows["category"]), tf.int32) if plan is None else tf.constant(plan.rows),
            link_picture=link_picture,
            link_image=link_image,
            has_picture=tf.constant(has_picture),
            key=rows["image_key"],
            features=rows["image_features"],
            labels=rows["image_labels"],
        )

    def _bad_groups(self, refused: dict[str, tf.Tensor]) -> list[BadRecord]:
        places = zip(*(refused[name].numpy() for name in ("file", "row", "evidence")), strict=True)
        problems = ((file, row, self._source.explain(evidence)) for file, row, evidence in places)
        files = self._source.files
        return [BadRecord("group", files[file], int(row), *problem) for file, row, problem in problems if problem]

    def _bad_pictures(self, rows: dict[str, Any], problems: dict[int, str]) -> list[BadRecord]:
        if not problems:
            return []
        paths, origin = rows["picture_path"].numpy(), rows["picture_origin"]
        files, numbers = origin["file"].numpy(), origin["row"].numpy()
        return [
            BadRecord(
                "picture",
                self._source.files[files[i]],
                int(numbers[i]),
                paths[i].decode("utf-8", "backslashreplace"),
                problem,
            )
            for i, problem in problems.items()
        ]


def _encoded(pending: Pending) -> NDArray[np.int32]:
    """Return the indices of the pictures of a batch that are encoded, int32 `[E]`."""
    if IMAGE not in pending.plans:
        return np.arange(len(pending.rows["picture_path"]), dtype=np.int32)
    return pending.plans[IMAGE].encoded


def _batch(
    samples: dict[str, Any],
    vectors: dict[str, Any],
    sample_image: Any,
    pixels: Any,
    images: Images,
    contents: dict[str, Contents],
) -> Batch:
    """Return a Batch of tensors, or of their specs."""
    features = {**samples["features"], **vectors}
    return Batch(features, samples["labels"], samples["sample_weight"], pixels, sample_image, images, contents)
