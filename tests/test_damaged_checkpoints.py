"""No byte of a checkpoint or of the list of checkpoints can change unnoticed."""

import random

import pytest
import tensorflow as tf
from checkpoint_helpers import assert_same, variables
from training_helpers import EACH_STEP, Training

from easyrec_mm.data.vector_bank import VectorBank
from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.runs import checkpoint_parts
from easyrec_mm.runs.checkpoint import Checkpoints, newest_whole, resolve_checkpoint
from easyrec_mm.runs.checkpoint_index import read_index
from easyrec_mm.runs.checkpoint_list import is_damaged
from easyrec_mm.runs.checkpoint_reader import checkpoint_shapes, read_text_value, restore
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.warm_start import warm_start
from easyrec_mm.training.resume import checkpoints_in

TEXT = "a text of the training"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The path and the values of a checkpoint with several files, whose large variables are written in slices."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 200)
    values = variables(1) | {"text": tf.constant(TEXT)}
    return Checkpoints(str(tmp_path)).save(1, values), values


def read_all(path):
    restored = variables(2)
    restore(path, restored)
    return restored | {"text": tf.constant(read_text_value(path, "text"))}


# Slices as when it was written, and others.
@pytest.mark.parametrize(("slice_bytes", "stride"), [(200, 13), (70, 17), pytest.param(70, 1, marks=pytest.mark.slow)])
def test_every_byte_is_verified(saved, tmp_path, monkeypatch, slice_bytes, stride):
    path, values = saved
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", slice_bytes)
    assert_same(read_all(path), values)
    rng = random.Random(slice_bytes)
    files = sorted(tmp_path.glob("model.ckpt-1.*"))
    assert len(files) > 3
    for file in files:
        content = file.read_bytes()
        for position in range(rng.randrange(stride), len(content), stride):
            damaged = bytearray(content)
            damaged[position] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError, match=r"model\.ckpt-1: "):
                read_all(path)
        file.write_bytes(content)
    assert_same(read_all(path), values)


def test_every_length_is_verified(saved, tmp_path):
    path, values = saved
    for file in sorted(tmp_path.glob("model.ckpt-1.*")):
        content = file.read_bytes()
        for length in range(0, len(content), 7):
            file.write_bytes(content[:length])
            with pytest.raises(DamagedCheckpointError, match=r"model\.ckpt-1: "):
                checkpoint_shapes(path)
        file.unlink()
        with pytest.raises(DamagedCheckpointError, match=rf"model\.ckpt-1: .+{file.name}: No such file"):
            checkpoint_shapes(path)
        file.write_bytes(content)
    assert_same(read_all(path), values)


def test_an_index_of_several_blocks(tmp_path):
    """TensorFlow's own list of the variables ends without an error at a damaged block."""
    names = [f"{'a' * 200}/{i}" for i in range(3000)]
    path, index = str(tmp_path / "model.ckpt-1"), tmp_path / "model.ckpt-1.index"
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.fill([i % 3, 2], float(i)) for i in range(len(names))],
    )
    entries = read_index(path).entries
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: list(shape) for name, shape in tf.train.load_checkpoint(path).get_variable_to_shape_map().items()
    }
    content = index.read_bytes()
    rng = random.Random(0)
    for position in [*rng.sample(range(len(content)), 100), *range(len(content) - 80, len(content))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8)
        index.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match=r"model\.ckpt-1: is not a readable checkpoint"):
            read_index(path)


def test_what_is_not_read_may_be_damaged(saved, tmp_path):
    """Whoever reads a part gets its values, or an error."""
    path, values = saved
    num_errors = 0
    for file in sorted(tmp_path.glob("model.ckpt-1.data-*")):
        content = file.read_bytes()
        for position in range(0, len(content), 5):
            damaged = bytearray(content)
            damaged[position] ^= 0x10
            file.write_bytes(damaged)
            table = {"embedding/user": tf.Variable(tf.zeros([50, 4]))}
            try:
                warm_start(path, table, {})
            except DamagedCheckpointError:
                num_errors += 1
            else:
                assert_same(table, {"embedding/user": values["embedding/user"]})
        file.write_bytes(content)
    assert 100 < num_errors < 300


def test_a_damaged_picture_bank(tmp_path):
    bank = VectorBank(width=4)
    bank.plan([b"a", b"b"], 0)
    bank.vectors.assign(tf.ones_like(bank.vectors))
    bank.before_step(tf.constant([0, 1]), tf.constant([0, 1]), 0)
    path = Checkpoints(str(tmp_path)).save(1, bank.state())
    (data,) = tmp_path.glob("*.data-*")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"model\.ckpt-1: picture_bank/\w+ cannot be read"):
        VectorBank(width=4).restore(path)


def damages_of_lists():
    """Names and functions of the text of a list of the checkpoints 3 and 20."""
    yield from ((f"cut to {length} bytes", lambda text, length=length: text[:length]) for length in range(0, 130, 3))
    yield from (
        (f"bit {position % 8} of byte {position}", lambda text, position=position: flipped(text, position))
        for position in range(0, 120, 5)
    )
    other = b'model_checkpoint_path: "model.ckpt-7"\nall_model_checkpoint_paths: "model.ckpt-7"\n'
    yield "the list of another folder", lambda text: other


def flipped(text, position):
    content = bytearray(text)
    content[position] ^= 1 << position % 8
    return bytes(content)


def test_no_list_hides_the_newest_checkpoint(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    paths = [checkpoints.save(step, {"v": tf.constant(float(step))}) for step in (3, 20)]
    file = tmp_path / "checkpoint"
    text = file.read_bytes()
    for name, damage in damages_of_lists():
        file.write_bytes(damage(text))
        listed = checkpoints.all()
        assert listed[-1:] == paths[-1:], name
        assert listed == paths or not is_damaged(tmp_path), name


def test_a_checkpoint_without_its_index_is_missed(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    first, second = (checkpoints.save(step, variables(step)) for step in (1, 2))
    (tmp_path / "model.ckpt-2.index").unlink()
    _, path, problems = newest_whole(checkpoints.listed(), lambda path: restore(path, variables(3)))
    assert path == first
    assert [problem.startswith(f"{second}: ") for problem in problems] == [True]
    with pytest.raises(CheckpointError, match=r"--checkpoint_path: .+/model\.ckpt-2\.index is missing"):
        resolve_checkpoint(str(tmp_path), "--checkpoint_path")


def test_a_folder_in_the_place_of_the_list_is_refused_before_the_training(tmp_path):
    """No checkpoint could be written."""
    (tmp_path / "checkpoint").mkdir()
    told = rf"model_dir '{tmp_path}': 'checkpoint' is a folder, but must be the list .+; rename or remove that folder"
    with pytest.raises(CheckpointError, match=told):
        checkpoints_in(ModelDir(str(tmp_path)), Checkpoints(str(tmp_path)))


@pytest.mark.slow
@pytest.mark.usefixtures("backbone_of_three_stages")
def test_a_training_never_starts_anew_over_checkpoints(data, tmp_path, capsys):
    """It goes on from the newest that is whole, with a warning that names both; or it says what is missing."""
    folder = Training(data, tmp_path, train=f"num_steps: 3 {EACH_STEP}").run().model_dir
    index = folder / "model.ckpt-3.index"
    content = index.read_bytes()
    index.unlink()
    Training(data, tmp_path, train="num_steps: 3").run()
    said = capsys.readouterr().out
    assert f"warning: {folder}/model.ckpt-3: is not a readable checkpoint: {index.name}: No such file" in said
    assert f"continuing from {folder}/model.ckpt-2 (step 2)" in said
    assert index.exists()
    index.write_bytes(flipped(content, len(content) // 3))
    Training(data, tmp_path, train="num_steps: 3").run()
    said = capsys.readouterr().out
    assert f"warning: {folder}/model.ckpt-3: is not a readable checkpoint: its index is damaged" in said
    assert f"continuing from {folder}/model.ckpt-2 (step 2)" in said
    for file in folder.glob("model.ckpt-*.index"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"of which no file \.index is left; put them back, or remove the list"):
        Training(data, tmp_path, train="num_steps: 3").run()
    (folder / "checkpoint").unlink()
    index.write_bytes(content[:20])
    with pytest.raises(CheckpointError, match=r"holds files of model\.ckpt-1, .+ none has a whole \.index; put these"):
        Training(data, tmp_path, train="num_steps: 3").run()
    for file in {*folder.glob("model.ckpt-*")} - {*folder.glob("model.ckpt-1.*")}:
        file.unlink()
    Training(data, tmp_path, train="num_steps: 1").run()
    said = capsys.readouterr().out
    assert f"warning: {folder} holds no complete checkpoint, but model.ckpt-1.data-00000-of-00001, " in said
