"""Lines and pictures for the reference config, written without TensorFlow."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from reference import FEATURES, LABELS


class ReferenceData(NamedTuple):
    """Files of lines, and the pictures that they name."""

    files: list[Path]
    pictures: list[Path]

    @property
    def input_path(self) -> str:
        """The files as train_input_path and eval_input_path take them."""
        return ",".join(map(str, self.files))


def write_reference_data(
    folder: Path,
    num_groups: int,
    seed: int = 0,
    *,
    name: str = "train",
    num_files: int = 1,
    num_pictures: int | None = None,
    picture_size: int = 32,
    max_group_size: int = 6,
) -> ReferenceData:
    """Write groups for the reference config: `<folder>/<name>-<i>.txt` and `<folder>/pictures/<name>-<i>.jpg`.

    A play is likelier of members and of bright pictures, and its time is longer at night, so that a model can learn
    something from features and pictures. A few values and labels are empty, which means their default.

    Args:
      folder: where to write; pictures are named by their absolute path.
      num_groups: lines over all files.
      seed: the same seed writes the same bytes.
      name: of the files, so that training and evaluation data can share a folder.
      num_files: files that the lines are dealt to in turn.
      num_pictures: distinct pictures; unset means two thirds of num_groups, so that groups share some.
      picture_size: height of the pictures in pixels; their width is a quarter more.
      max_group_size: samples in the largest group; the smallest has one.
    """
    random = np.random.default_rng(seed)
    num_pictures = num_pictures or max(1, num_groups * 2 // 3)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = [(folder / "pictures" / f"{name}-{i}.jpg").absolute() for i in range(num_pictures)]
    brightness = random.uniform(0, 1, num_pictures)
    for path, value in zip(pictures, brightness, strict=True):
        path.write_bytes(_jpeg(value, picture_size, random))
    files = [folder / f"{name}-{i}.txt" for i in range(num_files)]
    lines: list[list[str]] = [[] for _ in files]
    for group in range(num_groups):
        picture = group if group < num_pictures else int(random.integers(num_pictures))
        size = int(random.integers(1, max_group_size + 1))
        samples = [random_sample(brightness[picture], random) for _ in range(size)]
        columns = [f"request_{group}", "unused", "20240101", *_label_columns(samples)]
        columns += ["\x01".join("\x02".join(values) for _, values in samples), "unused"]
        columns += [str(pictures[picture]), str(size)]
        lines[group % num_files].append("|".join(columns))
    for path, file_lines in zip(files, lines, strict=True):
        path.write_text("".join(f"{line}\n" for line in file_lines), encoding="utf-8")
    return ReferenceData(files, pictures)


def _label_columns(samples: list[tuple[list[str], list[str]]]) -> list[str]:
    return ["\x01".join(labels[i] for labels, _ in samples) for i in range(len(LABELS))]


def random_sample(brightness: float, random: np.random.Generator) -> tuple[list[str], list[str]]:
    """The texts of a sample's labels and of its feature values."""
    is_member, hour = int(random.integers(2)), int(random.integers(24))
    province = int(random.integers(30))
    values = {
        "latitude": f"{random.uniform(18, 42):.6f}",
        "longitude": f"{random.uniform(95, 125):.6f}",
        "city": f"city_{province}_{random.integers(10)}",
        "province": f"province_{province}",
        "os": str(random.choice(["android", "ios"])),
        "os_version": f"{random.integers(9, 18)}.{random.integers(5)}",
        "day_h": str(hour),
        "week_day": str(random.integers(7)),
        "is_new_userid": str(random.integers(2)),
        "level": str(random.integers(1, 60)),
        "is_member": str(is_member),
        "familyid": f"family_{random.integers(500)}",
        "gender": str(random.choice(["M", "F", ""])),
        "constellation": str(random.choice(["aries", "taurus", "gemini", "leo", "virgo", "libra"])),
        "user_auth_type": str(random.integers(4)),
        "fans_num": str(int(random.lognormal(4, 2))),
        "follow_num": str(int(random.lognormal(3, 1))),
        "visitor_num": f"{random.lognormal(3, 2):.1f}",
        "billboard_num": f"{random.uniform(0, 3):.2f}",
    }
    for name in ("latitude", "city", "fans_num"):
        if random.uniform() < 0.02:
            values[name] = ""
    logit = 3 * (2 * brightness - 1) + 1.5 * (2 * is_member - 1)
    is_valid = random.uniform() < 1 / (1 + np.exp(-logit))
    play_time = is_valid * random.gamma(2, 1 + hour / 24)
    rare = [str(int(random.uniform() < share)) for share in (0.2, 0.05, 0.05, 0.1)]
    labels = [str(int(is_valid)) if is_valid or random.uniform() < 0.9 else "", f"{play_time:.2f}", *rare]
    return labels, [values[name] for name in FEATURES]


def _jpeg(brightness: float, size: int, random: np.random.Generator) -> bytes:
    """A picture whose mean grows with the brightness, and that differs from every other."""
    colour = 30 + 170 * brightness + random.uniform(-20, 20, 3)
    pixels = colour + random.uniform(-15, 15, (size, size + size // 4, 3))
    data = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()
