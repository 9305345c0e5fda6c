"""`python3 -m tests.small_bases FOLDER`: a small checkpoint of each further family, to try commands with.

Their weights are random: whatever is trained or drawn with them means nothing, but takes seconds at 64 pixels.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE)]


def write_bases(folder: Path) -> list[Path]:
    """Writes the files, each named for what it is, and returns their paths."""
    import tiny_sdxl
    from checkpoints import write
    from ldm_layout import TINY_SD1, TINY_SD2, tensors

    folder.mkdir(parents=True, exist_ok=True)
    whole = {"vocabulary": 49408, "vae_multiples": (1, 1, 1, 1)}
    others = {
        "small-sd1-inpainting": replace(TINY_SD1, in_channels=9, **whole),
        "small-sd2": replace(TINY_SD2, **whole),
    }
    sdxl = {"small-sdxl": "epsilon", "small-sdxl-v": "v", "small-sdxl-zsnr": "zsnr"}
    return [
        *(
            tiny_sdxl.write_checkpoint(folder / f"{name}.safetensors", kind=kind)
            for name, kind in sdxl.items()
        ),
        *(write(folder / f"{name}.safetensors", tensors(layout)) for name, layout in others.items()),
    ]


def main() -> int:
    from dreambooth import environment
    from dreambooth.shared.errors import DreamboothError

    parser = argparse.ArgumentParser(prog="python3 -m tests.small_bases", description=__doc__)
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where they go; files of these names are replaced"
    )
    folder = parser.parse_args().folder
    try:
        environment.enter(__file__, sys.argv[1:])
    except DreamboothError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for path in write_bases(folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
