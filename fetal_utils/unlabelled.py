"""A further folder of images to pretrain on: of any origin, without labels, patients or a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fetal_utils.dataset import Dataset
from fetal_utils.environment import project_path
from fetal_utils.images import files_hash, open_image_files

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")  # what torchvision decodes to gray


@dataclass(frozen=True)
class UnlabelledImages:
    """The images of a folder and of all folders in it, as they were when it was opened.

    Attributes
    ----------
    folder : str
    key : str
        Of the files' names and sizes: another folder of the same name makes another run.
    """

    folder: str
    key: str

    def paths(self) -> list[Path]:
        """The image files, sorted."""
        return image_files(Path(self.folder))

    def check(self) -> None:
        """Raise a ValueError if the folder's files are not those it was opened with."""
        if files_hash(self.paths()) != self.key:
            raise ValueError(f"{self.folder} has changed since this run was asked for; ask again")

    def images(self, dataset: Dataset, image_size: int, *, progress: bool = True) -> tuple[np.ndarray, int]:
        """The images, without those that validation or test patients have.

        Parameters
        ----------
        dataset : Dataset
            Its geometry and blanking are used, and its validation and test images kept out.
        image_size : int
            px.
        progress : bool
            Show a bar while decoding.

        Returns
        -------
        images : ndarray of uint8, shape (n_images, image_size, image_size)
        n_left_out : int
            Files of the name of a held-out image, or with exactly its pixels.
        """
        paths = self.paths()
        images = open_image_files(
            paths, dataset.image_format(image_size), cache_dir=dataset.cache_dir, progress=progress
        )
        held_out = np.concatenate([dataset.rows("val"), dataset.rows("test")])
        pictures = {picture.tobytes() for picture in dataset.images(image_size, progress=progress)[held_out]}
        names = set(dataset.metadata["image_name"].iloc[held_out])
        kept = [i for i, path in enumerate(paths) if path.stem not in names and images[i].tobytes() not in pictures]
        return images[kept], len(paths) - len(kept)


def open_unlabelled(folder: str | Path) -> UnlabelledImages | None:
    """The images of a folder, or None for an empty name.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no image in it.
    """
    if not str(folder):
        return None
    root = project_path(folder).resolve()
    if not (paths := image_files(root)):
        raise FileNotFoundError(f"{root} holds no image ({', '.join(IMAGE_ENDINGS)}); give a folder that does")
    return UnlabelledImages(str(root), files_hash(paths))


def image_files(root: Path) -> list[Path]:
    """Image files in a folder and below, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
