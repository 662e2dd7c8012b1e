# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The folder of images and labels, with every name and label checked before anything is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from monai_mimmx.data.image_list import SUFFIXES
from monai_mimmx.data.tables import Task
from monai_mimmx.errors import first_three
from monai_mimmx.label import parse_label

FINAL = DefaultLabelTag.FINAL.value


def check_name(name: str, what: str) -> None:
    """HTTP 400 for a name that could lead out of the folder it is for."""
    if name in ("", ".", "..") or os.path.basename(name) != name or "\\" in name or "\0" in name:
        raise HTTPException(400, f"expected the name of {what} without any folder, got {name!r}")


def read_label(path: str, tasks: Sequence[Task], image_id: str) -> tuple[list[int], str | None]:
    """
    Class indices and subject of the label file of an image; see `parse_label`.

    Raises:
        HTTPException: 400 for a file that is no JSON or states no label of these tasks.
    """
    try:
        return parse_label(json.loads(Path(path).read_text(encoding="utf-8")), tasks)
    except ValueError as error:  # JSON and text errors are of this kind
        raise HTTPException(400, f"label of {image_id}: {error}") from error


class StudyFolder(LocalDatastore):
    """
    MONAI Label's folder of images (not of its subfolders) and JSON labels, of all image endings that the plugin reads. An
    image's id is its name without the ending.

    Args:
        path: the folder.
        tasks: what a final label may state.
        auto_reload: follow changes of the folder.
        read_only: do not take in images that are new in the folder.

    Raises:
        ValueError: two images differ in their ending only.
    """

    def __init__(self, path: str, tasks: Sequence[Task], *, auto_reload: bool, read_only: bool) -> None:
        self.tasks = tasks
        # .png, .PNG and .Png: MONAI Label looks at the case of letters.
        patterns = [f"*{case(suffix)}" for case in (str.lower, str.upper, str.title) for suffix in SUFFIXES]
        super().__init__(path, extensions=patterns, auto_reload=auto_reload, read_only=read_only)
        files: dict[str, list[str]] = {}
        for file in sorted(self._list_files(path, patterns)):
            files.setdefault(self._to_id(file)[0], []).append(file)
        if twice := [" and ".join(names) for names in files.values() if len(names) > 1]:
            told = f"{first_three(twice, '; ')} in {path} would be one image, as its id is the name without the ending"
            raise ValueError(f"{told}: rename all but one")

    def require_image(self, image_id: str) -> None:
        """HTTP 404 for an image that is not in the folder."""
        if not self.get_image_uri(image_id):
            raise HTTPException(404, f"there is no image {image_id!r} in {self._datastore_path}")

    def require_images(self) -> None:
        """HTTP 404 where the folder holds no image."""
        if not self.list_images():
            raise HTTPException(404, f"no image ({', '.join(SUFFIXES)}) stands in {self._datastore_path}")

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """
        Copy an image into the folder; HTTP 400 for a name with a folder, an ending that is no image's, or another one than
        the image of that id has.
        """
        if image_id:
            check_name(image_id, "an image")
        if not image_filename.lower().endswith(SUFFIXES):
            raise HTTPException(400, f"expected an image ({', '.join(SUFFIXES)}), got {Path(image_filename).name!r}")
        own, ending = self._to_id(os.path.basename(image_filename))
        there = self.get_image_uri(image_id or own)
        if there and not there.endswith(ending):
            raise HTTPException(400, f"{Path(there).name} is there already: give the {ending} image another id")
        return super().add_image(image_id, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        """Delete an image and its labels; HTTP 404 where there is none."""
        self.require_image(image_id)
        super().remove_image(image_id)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """
        Keep a label; HTTP 404 for an unknown image, 400 for a tag with a folder or a final label that states no class of
        the tasks.
        """
        self.require_image(image_id)
        check_name(label_tag, "a label's tag")
        if label_tag == FINAL:
            read_label(label_filename, self.tasks, image_id)
        before = self.get_label_uri(image_id, label_tag)
        saved = super().save_label(image_id, label_filename, label_tag, label_info)
        if before and before != self.get_label_uri(image_id, label_tag):  # of another ending
            Path(before).unlink(missing_ok=True)
        return saved

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Delete a label; HTTP 404 where there is none."""
        self._require_label(label_id, label_tag)
        super().remove_label(label_id, label_tag)
        self.refresh()  # MONAI Label's follower of the folder looks at images only

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is noted of a label; HTTP 404 where there is none."""
        self._require_label(label_id, label_tag)
        super().update_label_info(label_id, label_tag, info)

    def _require_label(self, label_id: str, label_tag: str) -> None:
        if not self.get_label_uri(label_id, label_tag):
            raise HTTPException(404, f"there is no label of {label_id!r} with the tag {label_tag!r}")

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is noted of an image; HTTP 404 where there is none."""
        self.require_image(image_id)
        super().update_image_info(image_id, info)

    def update_image_infos(self, infos: Mapping[str, Mapping[str, Any]]) -> None:
        """The same for many images, with the file of the folder written once."""
        for image_id, info in infos.items():
            self._datastore.objects[image_id].image.info.update(info)
        self._update_datastore_file()

    def final_labels(self) -> dict[str, tuple[list[int], str | None]]:
        """Image to class indices and subject, of every image with a final label; one whose file is gone has none."""
        if not all(Path(self.get_label_uri(image_id, FINAL)).is_file() for image_id in self.get_labeled_images()):
            self.refresh()
        return {
            image_id: read_label(self.get_label_uri(image_id, FINAL), self.tasks, image_id)
            for image_id in sorted(self.get_labeled_images())
        }
