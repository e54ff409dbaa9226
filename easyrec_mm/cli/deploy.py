"""`easyrec-mm deploy`."""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from easyrec_mm.api.workers import strategy_flags
from easyrec_mm.cli import flags as f
from easyrec_mm.cli import train
from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, plain
from easyrec_mm.safe_text import hide_secrets

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.distribution.kubernetes import Document, Training

HELP = "print the manifests with which Kubernetes trains on several workers"

# A label of DNS that Services may have as name, and a name of DNS.
_LABEL, _LABEL_LENGTH = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?"), 63
_PART = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_NAME, _NAME_LENGTH = re.compile(rf"{_PART}(\.{_PART})*"), 253
_CPU = re.compile(r"[1-9]\d*m|\d+(\.\d+)?")
_MEMORY = re.compile(r"(\d+(\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)")
# Nodes may have to be started first, and Kubernetes waits up to 10 minutes before it starts a worker again.
_WAIT = ("--wait_for_workers_s", "1800")
# Each has a port of the container. No machine has more.
_MOST_GPUS = 64

_Claim = tuple[str, str]


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    add = parser.add_argument
    add("--workers", metavar="N", type=f.positive, required=True, help="number of workers, a container each")
    add("--image", metavar="I", type=_image, required=True, help="container image with easyrec-mm, see Dockerfile")
    add("--name", metavar="N", help="name of all that is started (default: made from the name of the config file)")
    kinds = "job: a Job of Kubernetes (default); tfjob: a TFJob of Kubeflow's training operator"
    add("--kind", choices=["job", "tfjob"], default="job", help=kinds)
    add("--gpus", metavar="N", type=_gpus, default=0, help="GPUs of each worker (default 0)")
    add("--cpu", metavar="C", type=_cpu, help="cores of each worker, such as 4 or 500m")
    add("--memory", metavar="M", type=_memory, help="memory of each worker, such as 16Gi")
    claim = (
        "persistent volume claim, and the folder at which all workers have it; may be repeated. Relative paths of the "
        "config start in the first one"
    )
    add("--claim", metavar="NAME:/PATH", type=_claim, action="append", default=[], help=claim)
    secret = "Secret whose entries become environment variables, such as the credentials of a bucket"
    add("--secret", metavar="S", type=_resource("a Secret"), help=secret)
    account = "service account of the workers, such as one that may use a bucket"
    add("--service_account", metavar="A", type=_resource("a service account"), help=account)
    restarts = "how often a training that fails is started again (default 10)"
    add("--max_restarts", metavar="N", type=f.not_negative, default=10, help=restarts)
    add("train_flags", metavar="-- FLAGS", nargs="*", help="further flags of easyrec-mm train, behind --")


def run(flags: f.Flags) -> int:
    """Print the manifests, and notes on stderr."""
    from easyrec_mm.distribution.kubernetes import KINDS, to_yaml

    pipeline, strategy = _load(flags)
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    _require_shared_folder(pipeline, flags.claim)
    training = _training(flags, strategy)
    make_documents, worker_name = KINDS[flags.kind]
    _require_label(training, worker_name)
    documents = make_documents(training)
    _require_sizes(documents, flags)
    text = to_yaml(documents)
    if hide_secrets(text) != text:
        raise UserError(
            f"{flags.pipeline_config}: the config or a flag contains a password or token, which the manifests would "
            "show; put the config into a bucket, or into the folder of a --claim, and the setting into it"
        )
    print(f"# kubectl apply -f FILE starts the training; docs/scaling.md describes it.\n{text}", end="")
    return 0


def _load(flags: f.Flags) -> tuple[Pipeline, tuple[str, ...]]:
    """Load and check the config as the workers will, without TensorFlow; return it with the flags that make it theirs.

    By these flags each worker starts a process on each of its GPUs.
    """
    own: tuple[str, ...] = ("--set", f"train_config.num_gpus_per_worker={max(flags.gpus, 1)}")
    _require_gpus(train.load(flags.train_flags, flags.pipeline_config), flags.gpus)
    pipeline = train.load([*flags.train_flags, *own], flags.pipeline_config)
    if strategy := strategy_flags(pipeline):
        own = (*own, *strategy)
        pipeline = train.load([*flags.train_flags, *own], flags.pipeline_config)
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    return pipeline, own


def _require_gpus(pipeline: Pipeline, gpus: int) -> None:
    """Check that the config does not ask for other GPUs than the containers have.

    Raises:
      UserError: if it does.
    """
    asked = pipeline.config.train_config.num_gpus_per_worker
    if asked not in (0, max(gpus, 1)):
        raise UserError(
            f"{pipeline.path}: train_config.num_gpus_per_worker: is {asked}, but --gpus is {gpus}; "
            f"give --gpus {asked}, or leave the setting out"
        )


def _require_sizes(documents: list[Document], flags: f.Flags) -> None:
    """Check that `kubectl apply` can send the manifests, and that Linux can start their commands.

    Raises:
      UserError: if it cannot.
    """
    from easyrec_mm.distribution.kubernetes import MOST_ANNOTATION_BYTES, MOST_ARGUMENT_BYTES, num_annotation_bytes

    for document in documents:
        num_bytes = num_annotation_bytes(document)
        if document["kind"] == "ConfigMap" and num_bytes > MOST_ANNOTATION_BYTES:
            raise UserError(
                f"{flags.pipeline_config}: is too large for a ConfigMap, which may have {MOST_ANNOTATION_BYTES} bytes "
                "with kubectl apply; put it into a bucket, or into the folder of a --claim"
            )
        if document["kind"] != "ConfigMap" and num_bytes > MOST_ARGUMENT_BYTES:
            raise UserError(
                f"--workers {flags.workers}: their names and the flags behind -- have {num_bytes} bytes, and a command "
                f"may have {MOST_ARGUMENT_BYTES}; give fewer workers, with more --gpus each, or shorter flags"
            )


def _training(flags: f.Flags, own: tuple[str, ...]) -> Training:
    from easyrec_mm.config.text import read_text
    from easyrec_mm.distribution.kubernetes import CONFIG_FILE, CONFIG_FOLDER, Training

    path, config = flags.pipeline_config, None
    if not is_remote(path) and not any(_is_below(plain(path), folder) for folder, _ in flags.claim):
        path, config = f"{CONFIG_FOLDER}/{CONFIG_FILE}", read_text(flags.pipeline_config)
        if taken := [folder for folder, _ in flags.claim if _is_below(folder, CONFIG_FOLDER)]:
            raise UserError(f"--claim: {taken[0]}: the config is mounted at {CONFIG_FOLDER}; choose another folder")
    arguments = ("train", "--pipeline_config", path, *_WAIT, *flags.train_flags, *own)
    name = flags.name if flags.name is not None else _name_from(flags.pipeline_config)
    return f.options_of(Training, flags, name=name, config=config, arguments=arguments, claims=_claims(flags.claim))


def _claims(claims: list[_Claim]) -> tuple[_Claim, ...]:
    folders = [folder for folder, _ in claims]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"--claim: two claims have the folder {folder}; give each a folder of its own")
    return tuple(claims)


def _require_shared_folder(pipeline: Pipeline, claims: list[_Claim]) -> None:
    """Check that model_dir is one folder for all workers.

    Raises:
      UserError: if it is not.
    """
    model_dir = plain(pipeline.config.model_dir)
    if not _is_shared(model_dir, claims):
        given = ", ".join(folder for folder, _ in claims)
        reason = f"is not in the folder of a --claim ({given})" if given else "would be another folder in each worker"
        raise UserError(
            f"{pipeline.path}: model_dir: '{model_dir}' {reason}; give a bucket, such as s3://bucket/folder, or a "
            "folder of a volume, with --claim NAME:/PATH"
        )
    inputs = [plain(path.strip()) for path in pipeline.config.train_input_path.split(",")]
    for path in filter(None, inputs):
        if not _is_shared(path, claims):
            print(
                f"note: train_input_path '{path}' is not in a bucket or a --claim: the image must contain it",
                file=sys.stderr,
            )


def _is_shared(path: str, claims: list[_Claim]) -> bool:
    """Return whether a path leads to the same place in all workers; a relative one starts in the first claim."""
    if is_remote(path) or not posixpath.isabs(path):
        return is_remote(path) or bool(claims)
    return any(_is_below(path, folder) for folder, _ in claims)


def _is_below(path: str, folder: str) -> bool:
    return PurePosixPath(posixpath.normpath(path)).is_relative_to(folder)


def _require_label(training: Training, worker_name: str) -> None:
    """Check that the names of the training and of its last worker are labels of DNS.

    Raises:
      UserError: if they are not.
    """
    longest = _LABEL_LENGTH - len(worker_name.format(name="", number=training.workers - 1))
    if not _LABEL.fullmatch(training.name) or len(training.name) > longest:
        raise UserError(
            f"--name: '{training.name}' is not a DNS label; give up to {longest} lower-case letters, digits and '-', "
            "which begin with a letter and do not end with '-'"
        )


def _name_from(path: str) -> str:
    stem = posixpath.basename(path).partition(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")


# --- Values of flags


def _image(text: str) -> str:
    if not text or re.search(r"\s", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of an image, such as registry.example.com/train:1")
    return text


def _gpus(text: str) -> float:
    number: float = f.not_negative(text)
    if number > _MOST_GPUS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {_MOST_GPUS}, the GPUs of a machine")
    return number


def _cpu(text: str) -> str:
    if not _CPU.fullmatch(text) or not float(text.rstrip("m")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of cores, such as 4 or 500m")
    return text


def _memory(text: str) -> str:
    match = _MEMORY.fullmatch(text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size with its unit, such as 16Gi")
    return text


def _resource(kind: str) -> Callable[[str], str]:
    """Return a parser for the name of something in Kubernetes."""

    def name(text: str) -> str:
        if not _NAME.fullmatch(text) or len(text) > _NAME_LENGTH:
            problem = f"{text!r} is not the name of {kind}: lower-case letters, digits, '-' and '.'"
            raise argparse.ArgumentTypeError(problem)
        return text

    return name


def _claim(text: str) -> _Claim:
    """Parse a claim; return its folder and its name."""
    name, _, folder = text.partition(":")
    _resource("a claim")(name)
    if not folder.startswith("/") or posixpath.normpath(folder) == "/" or ":" in folder:
        raise argparse.ArgumentTypeError(f"{text!r}: give the claim and an absolute folder, as in shared:/work")
    return posixpath.normpath(folder), name
