"""Embeds the pictures of all items into a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from easyrec_mm.api.frames import Data, as_file, is_frame, naming, path_of, table_of
from easyrec_mm.api.options import options_from, path_text, require_choice
from easyrec_mm.console import warn
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.embedding.writing import EmbedResult


Runtime: TypeAlias = Literal["auto", "onnx", "tensorflow"]


@dataclass(frozen=True)
class Pictures:
    """The pictures to embed, and the model that embeds them; the fields are flags of the command.

    name           what messages and lists of bad records call `input`, if it has another name there
    vector_stores  feature -> URI of the store of its vectors, if it differs from that in the config
    """

    img_model_dir: str
    input: str
    image_root: str = ""
    key_column: str = ""
    path_column: str = ""
    runtime: Runtime = "auto"
    name: str = ""
    vector_stores: Mapping[str, str] = field(default_factory=dict)


def embed(
    img_model_dir: str | os.PathLike[str],
    pictures: Data,
    store: str,
    *,
    image_root: str | os.PathLike[str] = "",
    key_column: str = "",
    path_column: str = "",
    runtime: Runtime = "auto",
    vector_stores: Mapping[str, str] | None = None,
    **options: Any,
) -> EmbedResult:
    """Embed pictures into a store of vectors, as `easyrec-mm embed` does.

    Args:
      img_model_dir: folder of the exported image model.
      pictures: a .txt with a path per line, .csv or .parquet, grouped samples, or the pictures themselves; globs and
        lists of them; or a DataFrame with the columns of the keys and of the paths.
      store: URI of the store, such as lmdb://vectors.
      image_root: folder in which relative picture paths start.
      key_column: column of the keys; by default the image field.
      path_column: column of the paths; by default that of the keys.
      runtime: "onnx", "tensorflow", or "auto", the faster one.
      vector_stores: feature -> URI of the store of its vectors, if it differs from that in the config.
      **options: further flags of the command: refresh, dtype, bad_pictures, max_bad_share, batch_size.

    Returns:
      How many pictures were embedded, were there already, and are bad; and the generation of the store.

    Raises:
      UserError: if the model, the pictures or the store cannot be used, or an option does not exist.
    """

    require_choice(runtime, Runtime, "embed: runtime")
    model_dir, root = path_text(img_model_dir, "embed: img_model_dir"), path_text(image_root, "embed: image_root")
    uri = path_text(store, "embed: store")

    def run_on(path: str, name: str = "") -> EmbedResult:
        columns = key_column, path_column
        chosen = Pictures(model_dir, path, root, *columns, runtime, name, vector_stores or {})
        return run(chosen, uri, {"bad_pictures": "bad_pictures.jsonl", **options}, warn)[0]

    if not is_frame(pictures):
        with naming({"--input": "pictures"}):
            return run_on(path_of(pictures, "pictures"))
    table = table_of(pictures, "pictures", [str(column) for column in pictures.columns])
    name = "the DataFrame pictures"
    with as_file(table, name) as path:
        return run_on(path, name)


def run(
    pictures: Pictures,
    store: str,
    options: Mapping[str, Any],
    tell: Callable[[str], None],
) -> tuple[EmbedResult, str]:
    """Embed pictures; return the result, and the runtime of the model.

    Args:
      pictures: the pictures and the model.
      store: URI of the store.
      options: values for EmbedOptions, which says what they mean; TensorFlow is not imported for them.
      tell: takes a line about records that are left out.

    Raises:
      UserError: if the model, the pictures or the store cannot be used, or an option does not exist.
    """
    from easyrec_mm.manifest import IMAGE_ONNX, read_header
    from easyrec_mm.store import open_store

    # TensorFlow only decodes, one picture per thread: more threads would take the cores from ONNX Runtime.
    if pictures.runtime != "tensorflow" and IMAGE_ONNX in read_header(pictures.img_model_dir, "image").files:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    import_tensorflow()
    from easyrec_mm.embedding.embed import EmbedOptions
    from easyrec_mm.embedding.embed import embed as embed_items
    from easyrec_mm.embedding.image_model import ImageModel
    from easyrec_mm.embedding.items import read_items

    chosen = options_from(EmbedOptions, {**options, "image_root": pictures.image_root}, "embed")
    model = ImageModel(pictures.img_model_dir, pictures.runtime, vector_stores=pictures.vector_stores)
    items, refused = read_items(
        pictures.input, model.manifest.schema, pictures.image_root, pictures.key_column, pictures.path_column
    )
    if pictures.name:
        refused = [replace(record, file=pictures.name) for record in refused]
    if chosen.task is not None:
        refused = [refused[i] for i in chosen.task.part_of(len(refused))]
    if refused:
        tell(f"{len(refused)} records are left out (listed in {chosen.bad_pictures}). The first: {refused[0]}")
    with closing(open_store(store, writable=True)) as opened:
        return embed_items(model, items, opened, chosen, refused), model.runtime
