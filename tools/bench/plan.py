"""A plan on paper of a large training: machines, hours, memory and network, by the terms of tools/bench/cost_model.py.

    seconds a step = max(fixed + per_picture P + per_sample S + exchange + bytes / bandwidth, P / decoded a second)

for the P pictures and S samples of a GPU. What a GPU and its machine do is assumed, not measured; each assumption is a
flag, and those of the defaults are explained in docs/scaling.md.

    python tools/bench/plan.py [--gpus 8 16 32 64] [--utilisation 0.25] [--gbit 100] ...
"""

from __future__ import annotations

import argparse
import math

import workload

from easyrec_mm.runs.snapshot import KEPT_SHARE

RESNET18_WEIGHTS = 11.2e6
RESNET18_FLOPS = 3 * 2 * 1.82e9  # at 224 x 224 (He et al. 2015: 1.8e9 multiply-adds); backward is twice forward
GIB = 1 << 30


def main() -> None:
    """Print a table with a column for each number of GPUs."""
    flags = workload.parser(__doc__)
    flags.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64])
    flags.add_argument("--samples", type=float, default=10e9)
    flags.add_argument("--ids", type=float, default=1e9, help="rows of all tables")
    flags.add_argument("--group_size", type=float, default=16, help="samples that share a picture in a batch")
    flags.add_argument("--id_features", type=int, default=12)
    flags.add_argument("--embedding_dim", type=int, default=16)
    flags.add_argument("--copies", type=int, default=3, help="of a row: its weights, and Adam's two slots")
    flags.add_argument("--batch_size", type=int, default=256, help="groups of a GPU a step")
    flags.add_argument("--picture_flops", type=float, default=RESNET18_FLOPS)
    flags.add_argument(
        "--sample_flops", type=float, default=3 * 2 * 0.8e6, help="three times the weights' multiply-adds"
    )
    flags.add_argument("--dense_weights", type=float, default=RESNET18_WEIGHTS + 0.8e6)
    flags.add_argument("--peak", type=float, default=989e12, help="operations a second of a GPU in bfloat16")
    flags.add_argument("--utilisation", type=float, default=0.25, help="share of the peak that a step reaches")
    flags.add_argument("--fixed_s", type=float, default=0.008, help="of a step, whatever its batch")
    flags.add_argument("--exchange_s", type=float, default=0.002, help="of a step's exchanges, whatever their bytes")
    flags.add_argument("--gbit", type=float, default=100, help="bandwidth of a GPU's network, 10^9 bits a second")
    flags.add_argument("--cores", type=float, default=12, help="processor cores for each GPU")
    flags.add_argument("--decoded", type=float, default=2100, help="pictures that a core decodes in a second")
    flags.add_argument("--read", type=float, default=200e3, help="groups a second that a worker reads without parsing")
    flags.add_argument("--gpus_per_machine", type=int, default=8)
    flags.add_argument("--picture_bytes", type=float, default=224 * 224 * 3, help="of the pixels of a picture")
    flags.add_argument("--prefetched", type=float, default=4, help="batches loaded ahead, data_config.prefetch_size")
    flags.add_argument("--process_gib", type=float, default=1.5, help="of a worker without pictures and tables")
    flags.add_argument("--disk", type=float, default=1e9, help="bytes a second that a worker writes to model_dir")
    options = flags.parse_args()
    columns = [plan(options, num) for num in options.gpus]
    for name in columns[0]:
        print(f"{name:<44}" + "".join(f"{column[name]:>12.4g}" for column in columns))


def plan(options: argparse.Namespace, gpus: int) -> dict[str, float]:
    """Return the figures for that many GPUs, each a worker with its own part of the tables."""
    samples = options.batch_size * options.group_size
    steps = options.samples / (samples * gpus)
    achieved = options.peak * options.utilisation
    others = (gpus - 1) / gpus
    # A ring sends each dense gradient twice. A row that another worker has comes once, and its gradient goes back; all
    # ids of a batch are counted as distinct, which is the most that they can be.
    dense = 2 * others * options.dense_weights * 4
    rows = others * samples * options.id_features * (2 * options.embedding_dim * 4 + 8)
    compute = options.fixed_s + (options.batch_size * options.picture_flops + samples * options.sample_flops) / achieved
    exchange = options.exchange_s + (dense + rows) / (options.gbit * 1e9 / 8)
    decoding = options.batch_size / (options.cores * options.decoded)
    step = max(compute + exchange, decoding)
    tables = options.ids * options.embedding_dim * 4 * options.copies
    machines = math.ceil(gpus / options.gpus_per_machine)
    # Beside the pixels, what a snapshot keeps of a worker's rows.
    waiting = (options.prefetched + 1) * options.batch_size * options.picture_bytes + KEPT_SHARE * tables / gpus
    return {
        "GPUs": gpus,
        "machines": machines,
        "samples a step, all": samples * gpus,
        "steps an epoch": steps,
        "ms a step: compute": 1e3 * compute,
        "ms a step: exchange": 1e3 * exchange,
        "ms a step: decoding beside them": 1e3 * decoding,
        "hours an epoch": steps * step / 3600,
        "GPU hours an epoch": steps * step / 3600 * gpus,
        "MB sent by a worker a step: dense": dense / 1e6,
        "MB sent by a worker a step: rows": rows / 1e6,
        "GiB of tables and slots a worker": tables / gpus / GIB,
        "GiB of host memory a machine": gpus / machines * (options.process_gib + waiting / GIB),
        "cores a GPU so that decoding is no bound": options.batch_size / options.decoded / (compute + exchange),
        "hours of reading all groups on each worker": options.samples / options.group_size / options.read / 3600,
        "s of writing a full checkpoint": tables / gpus / options.disk,
        "GiB of tables to export": options.ids * options.embedding_dim * 4 / GIB,
    }


if __name__ == "__main__":
    main()
