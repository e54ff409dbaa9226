"""The image side of a config's network: the image tower, the vectors of items, and the losses on image vectors.

Shapes: U images, D width of the image vector.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from google.protobuf.message import Message

from easyrec_mm.config.image import PLACE, backbone_name, image_losses
from easyrec_mm.config.item import is_joint
from easyrec_mm.data.batch import Images
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.errors import ConfigError
from easyrec_mm.network.content import ContentOfItems, Encoded
from easyrec_mm.network.layers.augmentation import Augmentation
from easyrec_mm.network.layers.backbones import BackboneError, named_backbone, preset_backbone
from easyrec_mm.network.layers.batch_norm import BatchNorm
from easyrec_mm.network.layers.descriptors import Descriptors
from easyrec_mm.network.layers.dnn import DNN, Highway
from easyrec_mm.network.layers.embedding import FeatureEmbedding
from easyrec_mm.network.layers.image_losses import ClassLoss, ContrastiveLoss, MultiSimilarityLoss
from easyrec_mm.network.layers.image_tower import POSITIONS, ImageTower, TowerOptions
from easyrec_mm.network.layers.item_image import ItemImage
from easyrec_mm.network.rec import build_dnn
from easyrec_mm.protos.image_pb2 import (
    ContrastiveImageLoss,
    ImageLoss,
    ImagePooling,
    ImgModel,
    MarginImageLoss,
    MultiSimilarityImageLoss,
)
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import TEXT, Schema
from easyrec_mm.weights.catalog import preset_location


def image_tower(config: EasyRecConfig, schema: Schema, dtype: str, num_replicas: int = 1) -> ImageTower:
    """Build the image tower of a config, for a number of replicas that train together.

    Raises:
      ConfigError: if the backbone cannot be loaded or lacks something that the config requires.
    """
    try:
        tower = _image_tower(config, schema, dtype)
        tower.require_stages(config.model_config.e2e_mm_dbmtl.img_model.last_n_stages)
        if config.train_config.sync_batch_norm and num_replicas > 1:
            _require_all_at_once(tower, config.model_config.e2e_mm_dbmtl.img_model.image_micro_batch)
    except BackboneError as error:
        raise ConfigError(f"{PLACE}.{error.setting}: {error}") from error
    return tower


def _require_all_at_once(tower: ImageTower, micro_batch: int) -> None:
    """Check that batch norm of the backbone sees all pictures of a step, so that replicas meet in it as often."""
    if micro_batch and any(isinstance(layer, BatchNorm) for layer in tower.backbone._flatten_layers()):
        raise BackboneError(
            "image_micro_batch",
            f"{micro_batch} lets batch norm of the backbone see {micro_batch} pictures at a time, and "
            "train_config.sync_batch_norm those of all workers; remove one of the two, or choose a backbone without "
            "batch norm, such as ConvNeXt-Tiny",
        )


def _image_tower(config: EasyRecConfig, schema: Schema, dtype: str) -> ImageTower:
    network, image = config.model_config.e2e_mm_dbmtl, schema.image
    settings = network.img_model
    shape = (image.height * settings.upscale, image.width * settings.upscale, image.channels)
    name = backbone_name(settings.model_name) or settings.model_name
    # Built before the backbone: the order of construction decides which initial weights a seed gives.
    head: DNN | Highway | None = build_dnn(network, "img_dnn", "img_dnn", network.l2_regularization, dtype)
    if network.HasField("highway_dnn"):
        head = Highway(network.highway_dnn.emb_size, "highway_dnn", dtype)
    build, source = (preset_backbone, preset_location(settings.preset)) if settings.preset else (named_backbone, name)
    backbone = build(source, shape, dtype, settings.feature_layer, settings.min_map_size)
    category = schema.category
    options = TowerOptions(
        pooling=POSITIONS if is_joint(network) else ImgModel.Pooling.Name(settings.pooling),
        num_categories=category.num_rows if category else 0,
        category_dim=category.width if category else 0,
        attention_places=ImgModel.AttentionPlaces.Name(settings.category_attention),
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha or settings.lora_rank,
        augmentation=_augmentation(config),
        upscale=settings.upscale,
        descriptors=_descriptors(settings),
        normalizes=settings.normalize_features,
        rematerialize=settings.rematerialize,
        micro_batch=settings.image_micro_batch,
    )
    projection = 0 if is_joint(network) else settings.num_classes
    return ImageTower(backbone, shape, projection, head, dtype, options)


def _augmentation(config: EasyRecConfig) -> Augmentation | None:
    settings = config.model_config.e2e_mm_dbmtl.img_model
    if not settings.HasField("augmentation"):
        return None
    changes = settings.augmentation
    values = {field.name: getattr(changes, field.name) for field in changes.DESCRIPTOR.fields}
    return Augmentation(**values, seed=config.data_config.seed)


def _descriptors(settings: ImgModel) -> Descriptors | None:
    if not settings.HasField("descriptors"):
        return None
    descriptors = settings.descriptors
    return Descriptors(descriptors.colour_grid, descriptors.colour_bins, descriptors.edge_grid)


def item_image(settings: ImgModel, tower: ImageTower, seed: int) -> ItemImage:
    """Build the layer that makes the vector of an item from the vectors of its pictures, which are those of a tower."""
    pooling = ImagePooling.Name(settings.image_pooling) if settings.image_separator else ""
    return ItemImage(tower.width, pooling, settings.no_image_vector, settings.modality_dropout, seed, tower.length)


class ImageLosses:
    """The losses on image vectors that a config defines.

    They compare the images of a global batch with each other: with several replicas, each computes the same losses of
    all images, of which its part is one of as many. `widths` are those of image vectors and of text vectors.
    """

    def __init__(
        self,
        settings: ImgModel,
        schema: Schema,
        widths: tuple[int, int],
        embedding: FeatureEmbedding,
        replicas: Replicas,
    ) -> None:
        width, self._text_width = widths
        self._replicas = replicas
        self._losses = image_losses(settings) if schema.uses_image else []
        self._embedding = embedding
        self._features = {feature.name: feature for feature in schema.features}
        self.layers = [self._layer(loss, f"image_loss_{i}") for i, loss in enumerate(self._losses)]
        for layer in self.layers:
            layer.build((None, width))

    def __call__(self, vectors: tf.Tensor, images: Images, contents: Encoded, training: bool) -> dict[str, tf.Tensor]:
        """Return the weighted losses by name, for image vectors `[U, D]`, and the other contents of the images."""
        texts = contents.get(TEXT)
        losses: dict[str, tf.Tensor] = {}
        if self._losses and self._replicas.num > 1:
            vectors, images, texts = self._of_all(vectors, images, texts)
        counted = images.has_picture
        for loss, layer in zip(self._losses, self.layers, strict=True):
            if loss.WhichOneof("loss") == "contrastive":
                name = loss.contrastive.item_feature
                ids = images.features[name]
                rows = self._embedding.look_up({name: (str(self._features[name].table), ids)})[name]
                value = layer(vectors, rows, ids, counted)
            elif loss.WhichOneof("loss") == "text_contrastive":
                value = layer(vectors, texts.vectors, texts.key, counted & texts.is_there) if texts else 0.0
            else:
                label = tf.cast(images.labels[loss.label_name], tf.int64)
                # Only a ClassLoss counts the classes that it sees in training.
                extra = {"training": training} if isinstance(layer, ClassLoss) else {}
                value = layer(vectors, label, counted, **extra)
            losses[layer.name] = loss.weight * value / self._replicas.num
        return losses

    def _of_all(
        self, vectors: tf.Tensor, images: Images, texts: ContentOfItems | None
    ) -> tuple[tf.Tensor, Images, ContentOfItems | None]:
        """Return the vectors of the distinct images of all replicas, the images without their pictures, their texts."""
        gather = self._replicas.gather
        key = gather(images.key)
        distinct, place = tf.unique(key)
        first = tf.math.unsorted_segment_min(tf.range(tf.size(key)), place, tf.size(distinct))

        def of_all(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(gather(values), first)

        has_picture = tf.cast(of_all(tf.cast(images.has_picture, tf.int32)), tf.bool)
        features = {name: of_all(images.features[name]) for name in sorted(images.features)}
        labels = {name: of_all(images.labels[name]) for name in sorted(images.labels)}
        images = images._replace(key=distinct, has_picture=has_picture, features=features, labels=labels)
        if texts is not None:
            is_there = tf.cast(of_all(tf.cast(texts.is_there, tf.int32)), tf.bool)
            texts = ContentOfItems(of_all(texts.vectors), of_all(texts.key), is_there)
        return of_all(vectors), images, texts

    def _layer(self, loss: ImageLoss, name: str) -> keras.layers.Layer:
        kind = loss.WhichOneof("loss")
        settings = getattr(loss, kind)
        if kind == "contrastive":
            stop = ContrastiveImageLoss.StopGradient.Name(settings.stop_gradient).lower()
            dim = self._features[settings.item_feature].width
            return ContrastiveLoss(dim, settings.temperature, "none" if stop == "neither" else stop, name=name)
        if kind == "text_contrastive":
            return ContrastiveLoss(self._text_width, settings.temperature, name=name)
        return class_or_pair_loss(kind, settings, loss.num_class, name)


def class_or_pair_loss(kind: str, settings: Message, num_class: int, name: str) -> keras.layers.Layer:
    """Build a loss on vectors and their classes, of a kind of ImageLoss with its settings."""
    if isinstance(settings, MultiSimilarityImageLoss):
        return MultiSimilarityLoss(settings.alpha, settings.beta, settings.base, settings.epsilon, name=name)
    if isinstance(settings, MarginImageLoss):
        return ClassLoss(num_class, kind, settings.scale, settings.margin, settings.rarity_power, name=name)
    return ClassLoss(num_class, "softmax", name=name)
