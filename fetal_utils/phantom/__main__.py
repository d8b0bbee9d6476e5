"""``python -m fetal_utils.phantom --out DIR --patients N --seed S [--metadata CSV]``: write a phantom data set."""

import argparse
import sys
from pathlib import Path

from fetal_utils.phantom.dataset import NOTICE, RECORD_NAME, write_phantom


def main(arguments: list[str] | None = None) -> int:
    """Write the phantom that the command line asks for; 0 if it is there afterwards, 2 if it was refused."""
    parser = argparse.ArgumentParser(prog="python -m fetal_utils.phantom", description=NOTICE)
    parser.add_argument("--out", required=True, type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--patients", type=int, default=200, help="patients to draw (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="decides every pixel (default 0)")
    parser.add_argument("--image-height", type=int, default=256, help="height in pixels (default 256)")
    parser.add_argument("--metadata", type=Path, help="a FETAL_PLANES_DB_data.csv: draw an image for every row of it")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per processor)")
    options = parser.parse_args(arguments)
    was_there = (options.out / RECORD_NAME).exists()
    try:
        write_phantom(
            options.out,
            n_patients=options.patients,
            seed=options.seed,
            image_height=options.image_height,
            metadata=options.metadata,
            n_workers=options.workers,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: " + ("the same phantom was there already, nothing to do" if was_there else "written"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
