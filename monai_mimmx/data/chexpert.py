# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""CheXpert's own `train.csv`, made ready for the rules of `read_table`: patients, labels, and what must be left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from monai_mimmx.data.tables import and_more, lacks_columns, map_distinct
from monai_mimmx.errors import raise_problems
from monai_mimmx.options import option_problems

__all__ = ["CheXpertColumns", "find_table"]

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
_TEXT = {1.0: "1", 0.0: "0"}


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


class CheXpertColumns:
    """
    Prepare CheXpert's table for `read_table`: derived columns, one policy for uncertain labels and one for blank ones.

    New columns: `subject` (the patient of the path) and `CoD` (co-occurring disease: "1" where any of `cod_columns` is
    labelled positive, else "0"; an uncertain label counts as positive under the policy "one" only). `Path` becomes
    relative to the table's folder, whatever the download's folder is called now. Pathology columns hold "1", "0" or
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
        self.cod_columns, self.frontal_only = chosen, frontal_only

    def __call__(self, table: pd.DataFrame, path: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, int]]:
        """
        Args:
            table: all columns of the file as text, blanks as NA; the index is the line in the file.
            path: of the file, for messages.

        Returns:
            The table of the rows that stay, and the number of rows left out for each reason.
        """
        needed = ["Path", "Sex", "Age", "Frontal/Lateral", "No Finding", self.primary, *self.cod_columns]
        if missing := [name for name in dict.fromkeys(needed) if name not in table.columns]:
            raise ValueError(
                f"{lacks_columns(path, missing, list(table.columns))}; CheXpert's table has them, another needs image_column, "
                "subject_column and tasks of its own"
            )
        excluded: dict[str, int] = {}

        def leave_out(rows: pd.Series, reason: str) -> None:
            nonlocal table
            if count := int(rows.sum()):
                excluded[reason] = count
                table = table[~rows]

        if self.frontal_only:
            leave_out(table["Frontal/Lateral"] != "Frontal", "not a frontal view")
        leave_out(table["Sex"].isin(["Unknown"]), "Sex is Unknown")
        leave_out(pd.to_numeric(table["Age"], errors="coerce") == 0, "Age is 0")
        problems: list[Exception] = []
        labels = {
            name: self._numbers(table[name], path, problems)
            for name in dict.fromkeys(["No Finding", *(name for name in LABELS if name in table.columns)])
        }
        if self.uncertain == "exclude":
            uncertain = labels[self.primary] == -1
            labels = {name: values[~uncertain] for name, values in labels.items()}
            leave_out(uncertain, f"{self.primary} is uncertain")
        table = table.copy()
        unremarkable = labels["No Finding"] == 1
        for name, values in labels.items():
            values = values.replace(-1.0, {"exclude": np.nan, "zero": 0.0, "one": 1.0}[self.uncertain])
            is_blank = labels[name].isna()
            if self.blank == "zero":
                values = values.mask(is_blank, 0.0)
            elif self.blank == "no_finding" and name in PATHOLOGIES:
                values = values.mask(is_blank & unremarkable, 0.0)
            table[name] = values.map(_TEXT)
        others = table[self.cod_columns]
        table["CoD"] = (others == "1").any(axis=1).map({True: "1", False: "0"})
        relative = table["Path"].str.replace(r"^/?CheXpert-v1\.0[^/]*/", "", regex=True)
        table["subject"] = relative.str.extract(r"(?:^|/)(patient\d+)/", expand=False)
        if (unknown := table["subject"].isna()).any():
            line = table.index[unknown][0]
            told = (
                f"{path}, line {line}: expected a Path with a patient, such as "
                f"CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg, got {table['Path'][line]!r}"
            )
            problems.append(ValueError(told + and_more(int(unknown.sum()))))
        raise_problems(problems)
        table["Path"] = relative
        return table, excluded

    @staticmethod
    def _numbers(values: pd.Series, path: str | os.PathLike[str], problems: list[Exception]) -> pd.Series:
        """The labels as numbers; adds to the problems what is none of them."""
        numbers = map_distinct(values, partial(pd.to_numeric, errors="coerce"))
        wrong = values.notna() & ~numbers.isin([1.0, 0.0, -1.0])
        if wrong.any():
            line = values.index[wrong][0]
            told = (
                f"{path}, line {line}, column {values.name!r}: expected 1.0, 0.0, -1.0 or blank, got {values[line]!r}"
            )
            problems.append(ValueError(told + and_more(int(wrong.sum()))))
        return numbers.astype(float)
