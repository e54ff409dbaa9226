"""extract of sounds: the vectors are those of each encoder's own pipeline; sounds that cannot be used are listed."""

from __future__ import annotations

import io
import json

import keras
import keras_hub
import numpy as np
import pytest
import soundfile
import tensorflow as tf
import tf2onnx
import yaml
from extract_helpers import extract, refused, write_settings
from scipy.signal import resample_poly

from easyrec_mm.data import sounds
from easyrec_mm.data.sounds import decode_sound

RATE, SECONDS, NUM_MELS = 16000, 2, 16
EQUAL = {"atol": 1e-5, "rtol": 1e-4}
FORMATS = {"WAV": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}


def tone(pitch, seconds=1.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def content_of(samples, rate=RATE, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sounds of both lengths and several rates as files, and a table of them; not to be changed."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "s").mkdir()
    for i, (pitch, seconds) in enumerate([(300, 1.0), (700, 0.4), (1500, 3.0), (3000, 2.0)]):
        (folder / f"s/{i}.flac").write_bytes(content_of(tone(pitch, seconds), kind="FLAC"))
    lines = ["id,path", *(f"item{i},{i}.flac" for i in range(4))]
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    return folder


def samples_of(folder):
    """What counts of each sound, followed by silence: `[4, SECONDS * RATE]`; and its share of the time."""
    read = [soundfile.read(folder / f"s/{i}.flac", dtype="float32")[0][: SECONDS * RATE] for i in range(4)]
    padded = np.stack([np.pad(samples, (0, SECONDS * RATE - len(samples))) for samples in read])
    return padded, [len(samples) / (SECONDS * RATE) for samples in read]


def vectors(path, keys):
    assert path.with_name(f"{path.stem}.ids.txt").read_text().splitlines() == keys
    return np.load(path)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A small Whisper: (folder of its preset, backbone, converter)."""
    folder = tmp_path_factory.mktemp("whisper") / "p"
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=11, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, num_mels=NUM_MELS,
        max_encoder_sequence_length=2 * SECONDS * 100, max_decoder_sequence_length=4,
    )  # fmt: skip
    converter = keras_hub.layers.WhisperAudioConverter(num_mels=NUM_MELS, max_audio_length=SECONDS)
    backbone.save_to_preset(str(folder))
    converter.save_to_preset(str(folder))
    return folder, backbone, converter


def test_the_encoder_of_whisper(folder, whisper, tmp_path):
    """Its output and its first convolution: means over the positions that a sound reaches."""
    preset, backbone, converter = whisper
    conv, out = "encoder_token_embedding_conv_layer_1", "encoder_layer_norm"
    extract("--preset", preset, "--input", folder / "items.csv", "--key_column", "id", "--path_column", "path",
            "--image_root", folder / "s", "--layers", f"{out},{conv}",
            "--output", f"{tmp_path}/{{layer}}.npy")  # fmt: skip
    samples, shares = samples_of(folder)
    features = converter(samples)
    inner = keras.Model(
        backbone.input["encoder_features"],
        [backbone.output["encoder_sequence_output"], backbone.get_layer(conv).output],
    )
    for layer, output in zip((out, conv), inner(features), strict=True):
        output = np.asarray(output)
        used = [int(np.ceil(share * output.shape[1])) for share in shares]
        expected = [x[:number].mean(0) for x, number in zip(output, used, strict=True)]
        np.testing.assert_allclose(
            vectors(tmp_path / f"{layer}.npy", [f"item{i}" for i in range(4)]), expected, **EQUAL
        )
    origin = yaml.safe_load((tmp_path / f"{out}.yaml").read_text())
    assert origin["kind"] == "audio"
    assert origin["preprocessing"] == {
        "sample_rate": RATE, "max_seconds": SECONDS, "num_mels": NUM_MELS, "pooling": "mean"
    }  # fmt: skip


def loudness(x):
    """Root mean square and largest of samples, in whatever part of them."""
    return tf.stack([tf.sqrt(tf.reduce_mean(x**2, 1)), tf.reduce_max(x, 1)], 1)


def test_onnx_and_saved_models_of_samples(folder, tmp_path):
    """A folder of sounds; at another rate, resampled."""
    signature = [tf.TensorSpec([None, None], tf.float32, name="input_values")]
    function = tf.function(loudness, input_signature=signature)
    tf2onnx.convert.from_function(function, input_signature=signature, opset=18, output_path=str(tmp_path / "l.onnx"))
    module = tf.Module()
    module.call = tf.function(lambda input_values: {"loudness": loudness(input_values)}, input_signature=signature)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.call)
    settings = write_settings(tmp_path, sample_rate=RATE // 2, max_seconds=SECONDS)
    for kind, path in (("onnx", "l.onnx"), ("saved_model", "m")):
        output = tmp_path / f"{kind}.npy"
        extract(f"--{kind}", tmp_path / path, "--preprocessing", settings, "--input", f"{folder}/s", "--image_root",
                f"{folder}/s", "--output", output)  # fmt: skip
        samples = [
            resample_poly(soundfile.read(folder / f"s/{i}.flac")[0], 1, 2)[: SECONDS * RATE // 2] for i in range(4)
        ]
        padded = np.stack([np.pad(x, (0, SECONDS * RATE // 2 - len(x))) for x in samples]).astype(np.float32)
        np.testing.assert_allclose(vectors(output, [f"{i}.flac" for i in range(4)]), loudness(padded), atol=1e-4)


def test_onnx_of_spectrograms_with_the_bands_first(folder, tmp_path):
    """As Transformers exports Whisper."""
    signature = [tf.TensorSpec([None, NUM_MELS, SECONDS * 100], tf.float32, name="input_features")]
    function = tf.function(lambda x: tf.reduce_max(x, 2), input_signature=signature)
    tf2onnx.convert.from_function(function, input_signature=signature, opset=18, output_path=str(tmp_path / "w.onnx"))
    flags = ["--onnx", tmp_path / "w.onnx", "--input", f"{folder}/s", "--image_root", f"{folder}/s"]
    extract(*flags, "--preprocessing", write_settings(tmp_path, num_mels=NUM_MELS), "--output", tmp_path / "v.npy")
    converter = keras_hub.layers.WhisperAudioConverter(num_mels=NUM_MELS, max_audio_length=SECONDS)
    expected = np.asarray(converter(samples_of(folder)[0])).max(1)
    found = vectors(tmp_path / "v.npy", [f"{i}.flac" for i in range(4)])
    np.testing.assert_allclose(found, expected, **EQUAL)
    assert np.argmax(found[0]) < np.argmax(found[3])  # the lower tone is in a lower band


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sample_rate": 16000}, "takes [16, 200], but would get 80 mel bands; change num_mels in --preprocessing"),
        ({"num_mels": 16, "max_seconds": 3}, "takes 2 s, but would get 3 s (max_seconds); lower it"),
        ({"num_mels": 16, "max_tokens": 3}, "max_tokens has no effect, because the encoder takes sounds; remove it"),
        ({"max_seconds": 0}, "max_seconds: is 0; give a number of seconds, at most 600"),
        ({"sample_rate": 44100.5}, "sample_rate: is 44100.5; give a whole number, 1 or more"),
    ],
)
def test_settings_that_do_not_fit(folder, tmp_path, capsys, settings, says):
    signature = [tf.TensorSpec([None, NUM_MELS, SECONDS * 100], tf.float32, name="input_features")]
    function = tf.function(lambda x: tf.reduce_max(x, 2), input_signature=signature)
    tf2onnx.convert.from_function(function, input_signature=signature, opset=18, output_path=str(tmp_path / "w.onnx"))
    flags = ["--onnx", tmp_path / "w.onnx", "--input", f"{folder}/s", "--image_root", f"{folder}/s"]
    said = refused(
        capsys, *flags, "--preprocessing", write_settings(tmp_path, **settings), "--output", tmp_path / "v.npy"
    )
    assert says in said


def test_sounds_that_cannot_be_used_are_listed(folder, whisper, tmp_path, capsys):
    good = content_of(tone(500))
    bad = {
        "silent.wav": (content_of(np.zeros(RATE, np.float32)), "is silent"),
        "none.wav": (content_of(np.zeros(0, np.float32)), "has no samples"),
        "cut.wav": (good[: len(good) // 4], "is damaged: it breaks off after 0.2"),
        "text.wav": (b"words " * 50, "is not a WAV, FLAC, OGG or MP3 sound"),
        "header.flac": (b"fLaC" + b"\0" * 100, "is damaged: "),
        "empty.wav": (b"", "is empty (0 bytes)"),
        "nan.wav": (
            content_of(np.full(99, np.nan, np.float32), subtype="FLOAT"),
            "samples that are not finite numbers",
        ),
        "missing.wav": (None, "cannot be read: No such file or directory"),
    }
    for name, (content, _) in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "good.wav").write_bytes(good)
    (tmp_path / "paths.txt").write_text("\n".join(["good.wav", *bad]) + "\n")
    flags = ["--preset", whisper[0], "--input", tmp_path / "paths.txt", "--image_root", tmp_path, "--bad_items",
             tmp_path / "bad.jsonl", "--output", tmp_path / "v.npy"]  # fmt: skip
    assert "8 of 9 items have no valid sound, more than --max_bad_share" in refused(capsys, *flags)
    extract(*flags, "--max_bad_share", 1)
    assert (tmp_path / "v.ids.txt").read_text() == "good.wav\n"
    listed = {r["path"]: r["problem"] for r in map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())}
    assert set(listed) == set(bad)
    for name, (_, says) in bad.items():
        assert says in listed[name], (name, listed[name])


# Decoding


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_format_and_rate(kind, rate):
    """The same tone at 16 kHz, but for what the format and a lower rate lose."""
    stereo = np.stack([tone(440, rate=rate) * 2, np.zeros(rate, np.float32)], 1)
    samples = decode_sound(content_of(stereo, rate, kind), RATE, 10)
    assert abs(len(samples) - RATE) < 0.1 * RATE  # MP3 has frames of a fixed length
    spectrum = np.abs(np.fft.rfft(samples[2000:14000] * np.hanning(12000)))
    assert np.argmax(spectrum) * RATE / 12000 == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(samples[2000:14000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_the_beginning_of_a_long_sound(monkeypatch):
    """No more of it is decoded than is needed; of a file that is too large, its beginning is enough."""
    content = content_of(tone(440, seconds=300))
    np.testing.assert_array_equal(
        decode_sound(content, RATE, 0.5), soundfile.read(io.BytesIO(content))[0][: RATE // 2].astype(np.float32)
    )
    monkeypatch.setattr(sounds, "MOST_BYTES", 100_000)
    assert len(decode_sound(content[:100_000], RATE, 1)) == RATE
