# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""CheXpert's own `train.csv`, made ready for the rules of `read_table`: patients, labels, and what must be left out."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_mimmx.data.tables import Task, and_more, lacks_columns, leave_out, map_distinct, value_key
from monai_mimmx.errors import raise_problems
from monai_mimmx.options import option_problems

__all__ = ["CheXpertColumns", "find_table", "is_chexpert"]

PATHOLOGIES = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
"""The labels that say what is wrong: all but "No Finding" and "Support Devices"."""

LABELS = ("No Finding", *PATHOLOGIES, "Support Devices")
_TEXT = {1.0: "1", 0.0: "0", -1.0: "-1"}
_PATIENT = re.compile(r"(?:^|/)(patient\d+)/")


def find_table(dataset_dir: str | os.PathLike[str]) -> Path:
    """
    The table of a data folder: its `labels.csv`, or the `train.csv` of a CheXpert download in it.

    Args:
        dataset_dir: folder with `labels.csv` or `train.csv`, or that holds the folder `CheXpert-v1.0*` with it.

    Raises:
        FileNotFoundError: if there is none of them.
        ValueError: if there are several downloads.

    Example:
        `find_table("/data/CheXpert-v1.0-small")`
    """
    folder = Path(dataset_dir).expanduser()
    for name in ("labels.csv", "train.csv"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("CheXpert-v1.0*/train.csv"))
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds {len(found)} downloads ({', '.join(path.parent.name for path in found)}): name one of them "
            "as dataset_dir"
        )
    if not found:
        raise FileNotFoundError(f"there is no labels.csv, train.csv or CheXpert-v1.0*/train.csv in {folder}")
    return found[0]


def is_chexpert(path: str | os.PathLike[str], image_column: str = "Path", subject_column: str = "subject") -> bool:
    """
    Whether a table is to be prepared by `CheXpertColumns`: its images stand in `Path`, and it is no other with subjects.

    Args:
        path: of the table; of one that cannot be read the answer is yes, and reading it tells why.
        image_column: column of the image files.
        subject_column: column of the subjects, which CheXpert's table lacks.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     print("Path,patient,sick", file=file, flush=True)
        ...     is_chexpert(file.name), is_chexpert(file.name, subject_column="patient")
        (True, False)
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        header = []
    others = {"Path", subject_column} <= set(header) and "Frontal/Lateral" not in header
    return image_column == "Path" and not others


def _below_download(path: str) -> str:
    """A path without the download's folder, `CheXpert-v1.0` or `CheXpert-v1.0-small`, at its start."""
    start = 2 if path.startswith("./") else int(path.startswith("/"))
    if path.startswith("CheXpert-v1.0", start) and (end := path.find("/", start)) >= 0:
        return path[end + 1 :]
    return path


def _patient(path: str) -> str | None:
    """The folder of the patient: quickly where the first folder that can be it is; by a pattern anywhere else."""
    _, found, rest = path.partition("/patient")
    number, ended, _ = rest.partition("/")
    if found and ended and number.isdecimal() and not path.startswith("patient"):
        return "patient" + number
    match = _PATIENT.search(path)
    return match[1] if match else None


class CheXpertColumns:
    """
    Prepare CheXpert's table for `read_table`: derived columns, one policy for uncertain labels and one for blank ones.

    New columns: `subject` (the patient of the path) and `CoD` (co-occurring disease: "1" where any of `cod_columns` is
    labelled positive, else "0"; an uncertain label counts as positive under the policy "one" only). `Path` becomes
    relative to the table's folder, or `image_root`, whatever the download's folder is called now, unless the images are below
    it just as `Path` says. Pathology columns hold "1", "0" or
    blank. Rows that are left out, each counted: views that are not frontal, Sex "Unknown", Age 0, and an uncertain
    primary label under "exclude".

    A blank in CheXpert means that the report does not mention the finding. The labeller sets "No Finding" where no
    pathology at all is positive or uncertain, so there a blank does mean negative; elsewhere it is not known.

    Args:
        primary: column of the primary label, for the count of its uncertain rows.
        uncertain: of -1.0 labels: "exclude" (unknown), "zero" or "one".
        blank: of labels that are not mentioned: "no_finding" (negative where "No Finding" is 1, else unknown), "zero"
            (all negative) or "exclude" (all unknown).
        cod_columns: labels that count as co-occurring disease; None: every pathology except the primary one.
        frontal_only: leave lateral views out.
        tasks: where a rule of one lists -1 as a value of a label, the rule decides of that label, not `uncertain`.
        image_root: as in `read_table`.

    Raises:
        ValueError: an unknown policy or column; when called, a missing column, a label that is none of 1, 0, -1 and
            blank, or a path without a patient.

    Example:
        >>> table = pd.DataFrame({"Path": ["CheXpert-v1.0-small/train/patient00007/study1/view1_frontal.jpg"],
        ...     "Sex": ["Male"], "Age": ["61"], "Frontal/Lateral": ["Frontal"], "No Finding": [None],
        ...     "Pleural Effusion": ["1.0"], "Edema": ["0.0"]})
        >>> columns = CheXpertColumns("Pleural Effusion", cod_columns=["Edema"])
        >>> prepared, excluded = columns(table, "train.csv")
        >>> prepared[["Path", "subject", "Pleural Effusion", "CoD"]].iloc[0].tolist()
        ['train/patient00007/study1/view1_frontal.jpg', 'patient00007', '1', '0']
    """

    def __init__(
        self,
        primary: str = "Pleural Effusion",
        *,
        uncertain: str = "exclude",
        blank: str = "no_finding",
        cod_columns: Sequence[str] | None = None,
        frontal_only: bool = True,
        tasks: Sequence[Task] = (),
        image_root: str | os.PathLike[str] | None = None,
    ) -> None:
        problems = option_problems(uncertain=uncertain, blank=blank)
        if primary not in LABELS:
            problems.append(ValueError(f"expected primary to be one of {', '.join(LABELS)}, got {primary!r}"))
        chosen = [name for name in PATHOLOGIES if name != primary] if cod_columns is None else list(cod_columns)
        if wrong := [name for name in chosen if name not in LABELS or name == primary]:
            listed = ", ".join(name for name in LABELS if name != primary)
            problems.append(ValueError(f"expected cod_columns among {listed}, got {', '.join(map(repr, wrong))}"))
        raise_problems(problems)
        self.primary, self.uncertain, self.blank = primary, uncertain, blank
        self.cod_columns, self.frontal_only, self.image_root = chosen, frontal_only, image_root
        self.ruled = {task.column for task in tasks if any(value_key(-1) in rule.values for rule in task.classes)}

    def __call__(self, table: pd.DataFrame, path: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, int]]:
        """
        Args:
            table: all columns of the file as text, blanks as NA; the index is the line in the file.
            path: of the file, for messages.

        Returns:
            The table of the rows that stay, and the number of rows left out for each reason.

        Raises:
            ValueError: for missing columns; or for values that are no label and paths without a patient, whose attribute
                `usable` is what would be returned without them, if any row is left.
        """
        needed = ["Path", "Sex", "Age", "Frontal/Lateral", "No Finding", self.primary, *self.cod_columns]
        if missing := [name for name in dict.fromkeys(needed) if name not in table.columns]:
            raise ValueError(
                f"{lacks_columns(path, missing, list(table.columns))}; CheXpert's table has them, another needs tasks of "
                "its own, and image_column and subject_column that it has"
            )
        reasons = (
            {"not a frontal view": (table["Frontal/Lateral"] != "Frontal").to_numpy()} if self.frontal_only else {}
        )
        reasons["Sex is Unknown"] = table["Sex"].isin(["Unknown"]).to_numpy()
        ages = map_distinct(table["Age"], partial(pd.to_numeric, errors="coerce"))
        reasons["Age is 0"] = (ages == 0).to_numpy()
        excluded: dict[str, int] = {}
        keep = np.ones(len(table), dtype=bool)
        leave_out(reasons, keep, excluded)
        problems: list[Exception] = []
        labels = {
            name: self._read(table[name][keep], path, problems)
            for name in dict.fromkeys(["No Finding", *(name for name in LABELS if name in table.columns)])
        }
        if self.uncertain == "exclude" and self.primary not in self.ruled:
            codes, numbers = labels[self.primary]
            if (uncertain := numbers[codes] == -1).any():
                excluded[f"{self.primary} is uncertain"] = int(uncertain.sum())
                labels = {name: (codes[~uncertain], numbers) for name, (codes, numbers) in labels.items()}
                keep[keep] = ~uncertain
        # Column by column: rows of a whole table of texts would be copied several times.
        columns: dict[str, Any] = {
            name: values.to_numpy()[keep] for name, values in table.items() if name not in labels
        }
        index, order = table.index[keep], list(table.columns)
        codes, numbers = labels["No Finding"]
        unremarkable = numbers[codes] == 1
        for name, (codes, numbers) in labels.items():
            if name not in self.ruled:
                numbers = np.where(numbers == -1, {"exclude": np.nan, "zero": 0.0, "one": 1.0}[self.uncertain], numbers)
            texts = np.array([_TEXT.get(number, np.nan) for number in numbers], dtype=object)
            columns[name] = texts[codes]
            if self.blank == "zero":
                columns[name][codes == -1] = "0"
            elif self.blank == "no_finding" and name in PATHOLOGIES:
                columns[name][(codes == -1) & unremarkable] = "0"
        table = pd.DataFrame({name: columns[name] for name in order}, index=index)
        others = (table[name] == "1" for name in self.cod_columns)
        table["CoD"] = np.where(np.any([np.zeros(len(table), dtype=bool), *others], axis=0), "1", "0").astype(object)
        relative = table["Path"].map(_below_download, na_action="ignore")
        table["subject"] = relative.map(_patient, na_action="ignore")
        root = Path(path).parent if self.image_root is None else Path(self.image_root).expanduser()
        if any((root / name).exists() for name in table["Path"].dropna().iloc[:1]):
            relative = table["Path"]
        if (unknown := table["subject"].isna()).any():
            line = table.index[unknown][0]
            told = (
                f"{path}, line {line}: expected a Path with a patient, such as "
                f"CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg, got {table['Path'][line]!r}"
            )
            problems.append(ValueError(told + and_more(int(unknown.sum()))))
        table["Path"] = relative
        raise_problems(problems, usable=None if unknown.all() else (table[~unknown], excluded))
        return table, excluded

    @staticmethod
    def _read(
        values: pd.Series, path: str | os.PathLike[str], problems: list[Exception]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Per row the place of its label among the numbers, the last of which is NaN, for blanks; tells what is no label."""
        codes, distinct = pd.factorize(values)
        numbers = np.append(pd.to_numeric(pd.Series(distinct, dtype=object), errors="coerce").astype(float), np.nan)
        wrong = ~np.isin(numbers, [1.0, 0.0, -1.0])
        wrong[-1] = False
        if wrong.any():
            rows = np.flatnonzero(wrong[codes])
            told = (
                f"{path}, line {values.index[rows[0]]}, column {values.name!r}: expected 1.0, 0.0, -1.0 or blank, got "
                f"{values.iloc[rows[0]]!r}"
            )
            problems.append(ValueError(told + and_more(len(rows))))
        return codes, numbers
