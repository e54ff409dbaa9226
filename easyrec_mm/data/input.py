"""Files -> batches: which files, in which order, from which position on, with pictures loaded ahead of the step.

The order of the data is a function of the config's seed and the epoch alone, so that a training that goes on from a
checkpoint reads on where it stopped: it skips the batches that were read, at the speed of reading lines.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.data.batch import Batch, Images, one_picture_each
from easyrec_mm.data.packed_pictures import find_tars, packed_path
from easyrec_mm.data.packing import Packing, cut
from easyrec_mm.data.picture_bank import PictureBank, Plan
from easyrec_mm.data.pictures import Pictures, picture_loader
from easyrec_mm.data.shuffled_pictures import ShuffledPictures
from easyrec_mm.features.tensorflow_transform import FeatureTransform, vector_keys
from easyrec_mm.files.local_copies import LocalCopies, local_copies
from easyrec_mm.formats.data_files import find_infos, require_unchanged
from easyrec_mm.formats.source import Chunk, Order, Source
from easyrec_mm.formats.sources import What, open_source
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import CROSS_SEPARATOR, Feature, Schema
from easyrec_mm.store.feature_vectors import Found, VectorStores

# Bytes of files that are read only to count their groups: one or two seconds.
_MOST_COUNTED_BYTES = 1 << 28


@dataclass(frozen=True)
class InputBatch:
    """A batch and what it says of its origin.

    batch          the samples; there may be none, if every group was bad
    kept           field name -> [S], the fields that were asked for beside the model's
    num_groups     groups read, the bad ones included
    epoch          epoch (from 0) of the batch's last group
    step           the step that is to train it; a batch without samples has that of the next one
    picture_path   what PictureLoader takes of each of the P pictures
    """

    batch: Batch
    kept: dict[str, tf.Tensor]
    num_groups: int
    epoch: int
    step: int
    picture_path: list[bytes]


@dataclass(frozen=True)
class _Pending:
    """A batch whose pictures are being loaded."""

    rows: dict[str, tf.Tensor]
    paths: list[bytes]
    step: int
    bank: PictureBank | None
    plan: Plan | None
    loading: Future[Pictures] | None
    vectors: Future[dict[str, Found]] | None


class Input:
    """The batches of some files.

    Args:
      data: the config's data section.
      schema: what a row means.
      path: files, separated by commas, each may be a glob.
      setting: the config path of `path`, for messages.
      bad_records: where bad groups and pictures are counted.
      training: shuffle, and read labels; else one epoch in the order of the files.
      labels: label fields to read; () when predicting.
      kept_fields: further input fields to hand out beside the batch.
      vectors: where features name vectors by key; by default what is current in the stores that they name.

    Raises:
      DataError: if there is no file, or one cannot be read.
      StoreError: if a store of vectors cannot be used.
    """

    def __init__(
        self,
        data: DatasetConfig,
        schema: Schema,
        path: str,
        setting: str,
        bad_records: BadRecords,
        training: bool = False,
        labels: tuple[str, ...] | None = None,
        kept_fields: tuple[str, ...] = (),
        vectors: VectorStores | None = None,
    ) -> None:
        self._data = data
        self._schema = schema
        self._path, self._setting = path, setting
        self._training = training
        self._bad_records = bad_records
        self._kept_fields = kept_fields
        self._labels = schema.labels if labels is None else labels
        used = {*schema.fields_read(), *kept_fields}
        fields = tuple(name for name in schema.layout.sample_fields if name in used)
        read_labels = tuple(name for name in schema.labels if name in self._labels or name in kept_fields)
        order = Order(training and data.shuffle, data.seed, data.shuffle_buffer_size)
        self.source, self._files = open_source(data, schema, path, setting, What(read_labels, fields, order))
        self._packed = data.packed_images and schema.uses_image
        if self._packed:
            self._files = [*self._files, *find_tars(self.source.files, self._copies)]
        self._transform = FeatureTransform(schema.features)
        self._image_transform = FeatureTransform(schema.image_features)
        self._stored = schema.stored_features()
        self.vectors = vectors or VectorStores(self._stored)
        self._pictures = picture_loader(schema.image, data) if schema.uses_image else None
        self._shuffled = ShuffledPictures(data.shuffled_pictures) if data.shuffled_pictures else None
        self._no_pixels = tf.zeros([0, *self._pixel_spec.shape[1:]], tf.uint8)
        self._no_images = one_picture_each(0)
        self._num_threads = data.num_parallel_calls or os.cpu_count() or 1
        # Traced once for all the datasets that use them.
        records = self.source.records(1, 0, 1)
        self._read = tf.function(self._read_chunk, input_signature=records.element_spec, autograph=False)
        chunk = records.map(self._read).element_spec
        first = tf.TensorSpec([], tf.int64)
        self._cut = tf.function(self._batch_of_chunk, input_signature=(chunk, first), autograph=False)

    @property
    def batch_size(self) -> int:
        """Groups in a batch."""
        return self._data.batch_size if self._training else self._data.eval_batch_size or self._data.batch_size

    def fingerprint(self) -> int:
        """A number that changes with the files and the settings that decide which lines a batch holds."""
        parts = [f"{info.path}:{info.size}" for info in self._files[: len(self.source.files)]]
        data = self._data
        parts += [str(v) for v in (data.batch_size, data.shuffle, data.shuffle_buffer_size, data.seed)]
        return zlib.crc32("\n".join(parts).encode())

    def batches(
        self,
        num_epochs: int = 1,
        num_skipped: int = 0,
        first_step: int = 0,
        bank_of: Callable[[int], PictureBank | None] = lambda step: None,
    ) -> Generator[InputBatch, None, None]:
        """Batches in order, parsed and with pictures loaded ahead.

        Args:
          num_epochs: times the files are read; 0 means without end.
          num_skipped: batches to leave out at the start.
          first_step: the step that trains the first batch; a batch without samples is no step.
          bank_of: step -> the bank that spares the encoding of pictures then.

        Raises:
          DataError: when a file cannot be read on, or more records are bad than allowed.
        """
        dataset = self.dataset(num_epochs, num_skipped)
        pending: deque[_Pending] = deque()
        epoch: int | None = None  # of the batch before
        stop = threading.Event()
        with ThreadPoolExecutor(self._num_threads + 1, thread_name_prefix="pictures") as pool:
            whole = pool.submit(self.source.check_whole, stop)
            try:
                step = first_step
                for rows in iterate(dataset, self.source):
                    pending.append(self._load_ahead(rows, step, bank_of(step), pool))
                    step += len(rows["sample_image"]) > 0
                    if whole.done():
                        whole.result()
                    if len(pending) > self._data.prefetch_size:
                        batch = self._finish(pending.popleft())
                        if epoch is not None and batch.epoch > epoch:
                            require_unchanged(self._files)
                            self._bad_records.check_all()
                        epoch = batch.epoch
                        yield batch
                while pending:
                    yield self._finish(pending.popleft())
                whole.result()
                require_unchanged(self._files)
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                if self._pictures is not None:
                    self._pictures.forget()
        self._bad_records.check_all()

    def is_up_to_date(self) -> bool:
        """Whether the files are still those that were found at first; never true of tables, which are opened anew.

        Raises:
          DataError: if there are none, or they cannot be listed.
        """
        if self._data.input_type == DatasetConfig.OdpsGroupRTPInput:
            return False
        files = find_infos(self._path, self._setting, self._copies)
        if self._packed:
            files += find_tars([info.path for info in files], self._copies)
        return files == self._files

    def estimate_groups(self) -> tuple[int, bool]:
        """Groups in the files, and whether they are exactly as many.

        Of much data that has to be read for it, some files are counted and the others taken to be like them by their
        sizes: always the same files, so that every start of a training finds the same number.

        Raises:
          DataError: when a file cannot be read.
        """
        sizes = [info.size for info in self._files[: len(self.source.files)]]
        counted = list(range(len(sizes)))
        if not self.source.counts_at_once and sum(sizes) > _MOST_COUNTED_BYTES:
            # From all over: files are often in the order of time.
            order = np.random.default_rng(0).permutation(len(sizes))
            num_files = 1 + int(np.searchsorted(np.cumsum([sizes[i] for i in order]), _MOST_COUNTED_BYTES // 4))
            counted = sorted(int(i) for i in order[:num_files])
        try:
            num_groups = self.source.count(counted)
        except tf.errors.OpError as error:
            raise self.source.failure(error) or error from error
        if len(counted) == len(sizes):
            return num_groups, True
        return round(num_groups * sum(sizes) / max(sum(sizes[i] for i in counted), 1)), False

    def num_batches(self, num_groups: int) -> int:
        """Batches of so many groups; epochs may share one."""
        return num_groups // self.batch_size if self._drops_remainder else -(-num_groups // self.batch_size)

    def spec(self) -> Batch:
        """Shapes and dtypes of the batches, for tf.function: G, S and U are open."""
        outputs = self._cut.get_concrete_function().structured_outputs
        rows = tf.nest.map_structure(tf.type_spec_from_value, outputs)
        indices, numbers = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)
        images = Images(
            encoded=indices,
            category=numbers,
            bank_row=indices,
            link_picture=indices,
            link_image=indices,
            has_picture=tf.TensorSpec([None], tf.bool),
            features=rows.get("image_features", {}),
            labels=rows.get("image_labels", {}),
        )
        of_vectors = {f.name: _vector_spec(f) for f in self._stored}
        features = {**self._packing.specs["features"], **of_vectors}
        return _batch({**self._packing.specs, "features": features}, indices, self._pixel_spec, images)

    @property
    def _pixel_spec(self) -> tf.TensorSpec:
        image = self._schema.image
        return tf.TensorSpec([None, image.height, image.width, image.channels], tf.uint8)

    @property
    def _copies(self) -> LocalCopies:
        return local_copies(self._data.file_cache_dir, self._data.file_cache_gib)

    @property
    def _drops_remainder(self) -> bool:
        return self._training and self._data.drop_remainder

    def dataset(self, num_epochs: int, num_skipped: int) -> tf.data.Dataset:
        """The batches before their pictures, in the form of `_finish`; arguments as for `batches`."""
        batches_at_once = -(-self.source.chunk_size // self.batch_size)
        records = self.source.records(num_epochs, num_skipped * self.batch_size, batches_at_once * self.batch_size)
        chunks = records.map(self._read, num_parallel_calls=self._num_threads, deterministic=True)
        places = chunks.flat_map(self._places_of_batches)
        batches = places.map(self._cut, num_parallel_calls=self._num_threads, deterministic=True)
        return batches.prefetch(self._data.prefetch_size)

    def _read_chunk(self, *element: Any) -> dict[str, Any]:
        """An element of the source -> its good groups, transformed, in the order of the file."""
        chunk: Chunk = self.source.parse(*element)
        groups = chunk.groups
        first_sample = tf.cumsum(groups.group_size, exclusive=True)  # [G]
        of_groups = {n: tf.gather(groups.fields[n], first_sample) for n in self._image_transform.fields}
        # "" for what the data do not have.
        per_group = {self._schema.image.field: groups.image_path, self._schema.group_size_field: groups.group_size}
        kept = {
            name: tf.repeat(per_group[name], groups.group_size) if name in per_group else groups.fields[name]
            for name in self._kept_fields
        }
        num_samples = tf.reduce_sum(groups.group_size)
        weight = groups.fields.get(self._schema.sample_weight or "")
        samples = {
            "features": self._transform(groups.fields),
            "labels": {name: groups.fields[name] for name in self._labels},
            "sample_weight": tf.ones([num_samples]) if weight is None else tf.cast(weight, tf.float32),
            "kept": kept,
        }
        self._packing = Packing(tf.nest.map_structure(tf.type_spec_from_value, samples))
        return {
            "samples": self._packing.pack(samples),
            "keys": {feature.name: vector_keys(feature, groups.fields) for feature in self._stored},
            "groups": {
                "image_path": groups.image_path,
                "group_size": groups.group_size,
                "record": groups.kept,
                "image_features": self._image_transform(of_groups),
                "image_labels": {
                    name: tf.gather(groups.fields[name], first_sample)
                    for name, _ in self._schema.image_labels
                    if name in self._labels
                },
            },
            "first_sample": tf.concat([first_sample, [num_samples]], 0),  # [G + 1]
            "refused": {"record": groups.refused, "evidence": groups.evidence},
            "records": {"epoch": chunk.epoch, "file": chunk.file, "row": chunk.row},
        }

    def _places_of_batches(self, chunk: dict[str, Any]) -> tf.data.Dataset:
        """(chunk, first record) of each batch in a chunk."""
        size = tf.size(chunk["records"]["row"], tf.int64)
        num_batches = size // self.batch_size if self._drops_remainder else -(-size // self.batch_size)
        starts = tf.data.Dataset.range(0, num_batches * self.batch_size, self.batch_size)
        return tf.data.Dataset.zip((tf.data.Dataset.from_tensors(chunk).repeat(), starts))

    def _batch_of_chunk(self, chunk: dict[str, Any], first: tf.Tensor) -> dict[str, Any]:
        """The batch of `batch_size` records from `first` on: its tensors, and where its groups come from."""
        limits = tf.stack([first, first + self.batch_size])
        group_limits = tf.searchsorted(chunk["groups"]["record"], limits, out_type=tf.int64)
        groups = cut(chunk["groups"], group_limits)
        refused_limits = tf.searchsorted(chunk["refused"]["record"], limits, out_type=tf.int64)
        refused = cut(chunk["refused"], refused_limits)
        origin = {"file": chunk["records"]["file"], "row": chunk["records"]["row"]}
        last = tf.minimum(limits[1], tf.size(origin["row"], tf.int64))
        counts = [last - first, chunk["records"]["epoch"][last - 1], refused_limits[1] - refused_limits[0]]
        sample_limits = tf.gather(chunk["first_sample"], group_limits)
        return {
            "samples": self._packing.cut(chunk["samples"], sample_limits),
            "keys": {name: _distinct_keys(keys) for name, keys in cut(chunk["keys"], sample_limits).items()},
            **(self._images_of_groups(groups, origin) if self._schema.uses_image else _no_images(groups)),
            "refused": {"evidence": refused["evidence"], **_gather(origin, refused["record"])},
            # In one tensor: each costs the loop time.
            "counts": tf.stack(counts),
        }

    def _images_of_groups(self, groups: dict[str, Any], origin: dict[str, tf.Tensor]) -> dict[str, Any]:
        """Which images and pictures groups have."""
        features = groups["image_features"]
        # Pictures of two categories are two to the image tower.
        category = features.get(self._schema.category_feature, tf.zeros_like(groups["group_size"]))
        group_image, first_group = _distinct(_image_keys(groups["image_path"], category))  # [G], [U]
        pictures = self._distinct_pictures(
            tf.gather(groups["image_path"], first_group), tf.gather(category, first_group)
        )
        picture_group = tf.gather(first_group, pictures.pop("first_image"))  # [P]
        return {
            "sample_image": tf.repeat(group_image, groups["group_size"]),
            **pictures,
            "picture_origin": _gather(origin, tf.gather(groups["record"], picture_group)),
            "image_features": _gather(features, first_group),
            "image_labels": _gather(groups["image_labels"], first_group),
            "num_images": tf.size(first_group),
        }

    def _distinct_pictures(self, path: tf.Tensor, category: tf.Tensor) -> dict[str, tf.Tensor]:
        """The pictures of images, each once, and which images they are of.

        Args:
          path: string `[U]`, as it stands in the image field.
          category: int64 `[U]`.
        """
        schema = self._schema
        rows = tf.range(tf.size(path))
        link_image = rows
        if schema.image_separator:
            paths = tf.strings.split(path, schema.image_separator)
            paths = tf.ragged.boolean_mask(paths, tf.not_equal(paths, ""))
            # An image without a path is a bad picture, unless it may be without.
            without = tf.where(tf.equal(paths.row_lengths(), 0))[:, 0]
            link_image = tf.concat([tf.gather(rows, paths.value_rowids()), tf.gather(rows, without)], 0)
            path = tf.concat([paths.flat_values, tf.fill(tf.shape(without), "")], 0)
            order = tf.argsort(link_image, stable=True)
            link_image, path = tf.gather(link_image, order), tf.gather(path, order)
        if schema.has_no_image_vector:
            named = tf.not_equal(path, "")
            link_image, path = tf.boolean_mask(link_image, named), tf.boolean_mask(path, named)
        category = tf.gather(category, link_image)
        keys = _image_keys(path, category)
        link_picture, first_link = _distinct(keys)  # [L], [P]
        return {
            "picture_path": tf.gather(path, first_link),
            "picture_key": tf.gather(keys, first_link),
            "category": tf.gather(category, first_link),
            "link_picture": link_picture,
            "link_image": link_image,
            "first_image": tf.gather(link_image, first_link),
        }

    def _load_ahead(
        self, rows: dict[str, tf.Tensor], step: int, bank: PictureBank | None, pool: ThreadPoolExecutor
    ) -> _Pending:
        vectors = None
        if self._stored:
            keys = {name: of_feature["distinct"].numpy() for name, of_feature in rows["keys"].items()}
            vectors = pool.submit(self._look_up, keys)
        if self._pictures is None:
            return _Pending(rows, [], step, None, None, None, vectors)
        paths = list(rows["picture_path"].numpy())
        if self._shuffled is not None:
            paths = self._shuffled.instead_of(paths)
        elif self._packed:
            files = rows["picture_origin"]["file"].numpy()
            paths = [packed_path(self.source.files[file], path) for file, path in zip(files, paths, strict=True)]
        plan = bank.plan(list(rows["picture_key"].numpy()), step) if bank else None
        wanted = paths if plan is None else [paths[i] for i in plan.encoded]
        self._pictures.begin(wanted)
        return _Pending(rows, paths, step, bank, plan, pool.submit(self._pictures.load, wanted), vectors)

    def _finish(self, pending: _Pending) -> InputBatch:
        rows, plan = pending.rows, pending.plan
        num_groups, epoch, num_refused = rows["counts"].numpy().tolist()
        records = self._bad_groups(rows["refused"]) if num_refused else []
        pixels, images, num_loaded = self._no_pixels, self._no_images, 0
        if pending.loading is not None:
            pictures = pending.loading.result()
            pixels = pictures.pixels
            num_pictures = len(rows["picture_path"])
            encoded = np.arange(num_pictures, dtype=np.int32) if plan is None else plan.encoded
            problems = {int(encoded[row]): problem for row, problem in pictures.problems.items()}
            records += self._bad_pictures(rows["picture_path"], rows["picture_origin"], problems)
            is_bad = np.zeros(num_pictures, bool)
            is_bad[list(problems)] = True
            if pending.bank is not None and plan is not None:
                pending.bank.mark_bad(plan.rows[encoded], is_bad[encoded])
                is_bad = pending.bank.are_bad(plan.rows)
            images = self._images(rows, encoded, plan, is_bad)
            num_loaded = len(encoded)
        self._bad_records.add(num_groups, num_loaded, records)
        samples = self._packing.unpack(rows["samples"])
        if pending.vectors is not None:
            samples["features"] |= self._looked_up(rows["keys"], pending.vectors.result())
        batch = _batch(samples, rows["sample_image"], pixels, images)
        return InputBatch(batch, samples["kept"], num_groups, epoch, pending.step, pending.paths)

    def _look_up(self, keys: dict[str, NDArray[np.object_]]) -> dict[str, Found]:
        """What the stores have of the distinct keys of features."""
        found = {}
        for feature in self._stored:
            texts = [key.decode("utf-8", "replace") for key in keys[feature.name]]
            found[feature.name] = self.vectors.look_up(feature, texts)
        return found

    def _looked_up(
        self, keys: dict[str, dict[str, tf.Tensor]], found: dict[str, Found]
    ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Vectors of samples, float32 `[S, D]` or ragged `[S, (elements), D]`, of those of distinct keys."""
        features: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for feature in self._stored:
            distinct, index = keys[feature.name]["distinct"].numpy(), keys[feature.name]["index"]
            vectors, is_missing = found[feature.name]
            rows = index.flat_values if isinstance(index, tf.RaggedTensor) else index
            uses = np.bincount(rows.numpy(), minlength=len(distinct))
            num = int(uses[distinct != b""].sum())
            share = feature.max_missing_share
            num_missing = int(uses[is_missing].sum())
            self._bad_records.add_keys(feature.name, num, distinct[is_missing].tolist(), num_missing, share)
            of_samples = tf.gather(vectors, rows)
            is_list = isinstance(index, tf.RaggedTensor)
            features[feature.name] = index.with_flat_values(of_samples) if is_list else of_samples
        return features

    def _images(
        self, rows: dict[str, tf.Tensor], encoded: NDArray[np.int32], plan: Plan | None, is_bad: NDArray[np.bool_]
    ) -> Images:
        link_picture, link_image = rows["link_picture"], rows["link_image"]
        num_images = int(rows["num_images"])
        has_picture = np.ones(num_images, bool)
        if self._schema.has_no_image_vector or self._schema.image_separator:
            # A bad picture is left out where the item has another, or may be without.
            is_good = ~is_bad[link_picture.numpy()]
            has_good = np.bincount(link_image.numpy(), is_good, num_images) > 0
            has_picture = has_good if self._schema.has_no_image_vector else np.ones(num_images, bool)
            kept = is_good | ~has_good[link_image.numpy()] & has_picture[link_image.numpy()]
            link_picture, link_image = tf.boolean_mask(link_picture, kept), tf.boolean_mask(link_image, kept)
        return Images(
            encoded=tf.constant(encoded),
            category=rows["category"],
            bank_row=tf.zeros(tf.shape(rows["category"]), tf.int32) if plan is None else tf.constant(plan.rows),
            link_picture=link_picture,
            link_image=link_image,
            has_picture=tf.constant(has_picture),
            features=rows["image_features"],
            labels=rows["image_labels"],
        )

    def _bad_groups(self, refused: dict[str, tf.Tensor]) -> list[BadRecord]:
        places = zip(*(refused[name].numpy() for name in ("file", "row", "evidence")), strict=True)
        return [
            BadRecord("group", self.source.files[file], int(row), *self.source.explain(evidence))
            for file, row, evidence in places
        ]

    def _bad_pictures(self, path: tf.Tensor, origin: dict[str, tf.Tensor], problems: dict[int, str]) -> list[BadRecord]:
        if not problems:
            return []
        paths, files, rows = (tensor.numpy() for tensor in (path, origin["file"], origin["row"]))
        return [
            BadRecord(
                "picture",
                self.source.files[files[i]],
                int(rows[i]),
                paths[i].decode("utf-8", "backslashreplace"),
                problem,
            )
            for i, problem in problems.items()
        ]


def _batch(samples: dict[str, Any], sample_image: Any, pixels: Any, images: Images) -> Batch:
    """A Batch of tensors, or of their specs."""
    parts = {name: samples[name] for name in ("features", "labels", "sample_weight")}
    return Batch(**parts, pixels=pixels, sample_image=sample_image, images=images)


def _vector_spec(feature: Feature) -> tf.TensorSpec | tf.RaggedTensorSpec:
    if feature.kind == "sequence":
        return tf.RaggedTensorSpec([None, None, feature.raw_dim], tf.float32, ragged_rank=1)
    return tf.TensorSpec([None, feature.raw_dim], tf.float32)


def _distinct_keys(keys: tf.Tensor | tf.RaggedTensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """Each key once, and which of them stands where."""
    if isinstance(keys, tf.RaggedTensor):
        distinct, index = tf.unique(keys.flat_values)
        return {"distinct": distinct, "index": keys.with_flat_values(index)}
    distinct, index = tf.unique(keys)
    return {"distinct": distinct, "index": index}


def _no_images(groups: dict[str, Any]) -> dict[str, Any]:
    """What `Input._images_of_groups` gives where the model has no pictures."""
    return {"sample_image": tf.zeros([tf.reduce_sum(groups["group_size"])], tf.int32)}


def _gather(values: dict[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """These rows of every tensor."""
    return {name: tf.gather(tensor, rows) for name, tensor in values.items()}


def _image_keys(path: tf.Tensor, category: tf.Tensor) -> tf.Tensor:
    """Text `[N]` that is the same for the same picture and category alone."""
    return tf.strings.join([path, tf.strings.as_string(category)], CROSS_SEPARATOR)


def _distinct(keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Keys `[N]` -> int32 `[N]`, which of the distinct ones each is, and `[distinct]`, where each stands first."""
    distinct, index = tf.unique(keys)
    return index, tf.math.unsorted_segment_min(tf.range(tf.size(keys)), index, tf.size(distinct))


def iterate(dataset: tf.data.Dataset, source: Source) -> Iterator[Any]:
    """Iterate a dataset; an error of a file becomes a DataError that names it."""
    options = tf.data.Options()
    # Its thread sometimes misses that an iterator ends and keeps it waiting for up to a minute (TensorFlow 2.21).
    # Nothing is left to it anyway: all numbers of threads and buffers are given.
    options.autotune.enabled = False
    try:
        yield from dataset.with_options(options)
    except tf.errors.OpError as error:
        failure = source.failure(error)
        if failure:
            raise failure from error
        raise
