"""Cut a trained model into image, rec and total model: the flags are those of EasyRec's tool of this name.

    python tools/export_mm_model.py --model_dir D --pipeline_config_path C --checkpoint_path K \\
        --rec_model_export_dir R --total_model_export_dir T --img_model_export_dir I [--asset_files A,B]

The same as `easyrec-mm export`.
"""

from __future__ import annotations

import sys

from easyrec_mm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
