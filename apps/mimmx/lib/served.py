# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundle that the app serves: its configs, its tasks, and where its models stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

import monai_mimmx  # noqa: F401 (makes the components known to the parser)
from monai_mimmx.bundle_folders import bundle_folders

NEEDED = ("network_def", "preprocessing", "inferer", "parsed_tasks", "ckpt")


def find_bundle(name: str, app_dir: str) -> Path:
    """
    The folder of a bundle: a path, or the name of a folder in the app's `model/` or of a bundle that comes with the package.

    Raises:
        FileNotFoundError: none of these holds `configs/inference.json`.
    """
    places = [Path(name), Path(app_dir) / "model" / name, *filter(None, [bundle_folders().get(name)])]
    for place in places if name else ():
        if (place / "configs" / "inference.json").is_file():
            return place.resolve()
    raise FileNotFoundError(
        f"there is no bundle {name!r} with configs/inference.json at {', '.join(map(str, places))}: name its folder by "
        "--bundle (or --conf models)"
    )


class ServedBundle:
    """
    Args:
        root: folder of the bundle.
        ckpt: the trained model; by default what the bundle's config says, or `models/model.pt` in the bundle.
        output_dir: where fine-tuned models go; by default `output/label` in the bundle.
        options: replace values of its configs.

    Raises:
        ValueError: the bundle is not built on this plugin, or has no such option.
        FileNotFoundError: a given `ckpt` does not exist.
    """

    def __init__(
        self,
        root: Path,
        *,
        ckpt: str | None = None,
        output_dir: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.name = root, root.name
        self.options = dict(options or {})
        self.parser = self.parse("inference")
        config = json.dumps(self.parser.config, sort_keys=True, default=str)
        self.digest = hashlib.sha256(config.encode()).hexdigest()  # of all that shapes a prediction
        if missing := [key for key in NEEDED if key not in self.parser]:
            raise ValueError(f"{root}: configs/inference.json has no {missing[0]!r}; is it a bundle of monai_mimmx?")
        train = root / "configs" / "train.json"
        known = {*self.parser.config, *(ConfigParser.load_config_file(train) if train.is_file() else {})}
        if unknown := [key for key in self.options if key.split("#")[0] not in known]:
            raise ValueError(f"{root} has no option {unknown[0]!r}")
        self.tasks = self.parser.get_parsed_content("parsed_tasks")
        self.num_classes = [task.num_classes for task in self.tasks]
        self.metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        self.output_dir = Path(output_dir) if output_dir else root / "output" / "label"
        self.tuned = self.output_dir / "models" / "model.pt"
        if ckpt is not None and not Path(ckpt).is_file():
            raise FileNotFoundError(f"there is no checkpoint {ckpt}; train first, or name another with --ckpt")
        trained = [Path(ckpt)] if ckpt else [root / "models" / "model.pt", Path(self.parser.get_parsed_content("ckpt"))]
        self.checkpoints = [str(path) for path in (*trained, self.tuned)]

    def parse(self, name: str, **more: Any) -> ConfigParser:
        """The config `name` with the bundle's root, the options that it has, and `more`."""
        parser = ConfigParser()
        parser.read_config(self.root / "configs" / f"{name}.json")
        parser.update({"bundle_root": str(self.root)} | self.options_of(parser.config) | more)
        return parser

    def options_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The options whose id stands in a config."""
        return {key: value for key, value in self.options.items() if key.split("#")[0] in config}

    def value(self, name: str) -> Any:
        """What an id of the inference evaluates to; None where there is none."""
        return self.parser.get_parsed_content(name) if name in self.parser else None

    def network(self) -> nn.Module:
        """The network, untrained."""
        return self.parser.get_parsed_content("network_def")

    @property
    def untrained(self) -> str:
        """What to do where there is no trained model."""
        return (
            f"the bundle {self.name} has no trained model ({' or '.join(self.checkpoints)}): make it by python -m "
            f"monai.bundle run --config_file {self.root}/configs/train.json, name one by --ckpt, or label images and train"
        )
