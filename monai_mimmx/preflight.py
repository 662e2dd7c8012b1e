# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Everything that can be wrong with a training or an inference, looked for before it begins and told at once."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser, ReferenceResolver
from torch import nn

from monai_mimmx.data.cache import blank_subsets, cached_file, load_image
from monai_mimmx.data.cohort_folder import MARKER_NAME
from monai_mimmx.data.headers import check_headers
from monai_mimmx.data.splits import describe_subsets
from monai_mimmx.errors import Problems, check_writable, first_line, first_three, root_cause
from monai_mimmx.evaluation.refit import check_refit
from monai_mimmx.options import idle_options, known_options, option_problems
from monai_mimmx.trained_model import load_model, require_checkpoint, stored_identity, stored_metrics

__all__ = ["Preflight", "training_differences"]

WORDS = {"true": True, "false": False, "null": None}
"""JSON's words, which the command line of MONAI hands on as texts."""

NOT_OPTIONS = ("save_execute_config",)
"""Ids that MONAI reads by itself."""

AS_TRAINED = {
    **{name: name for name in ("image_size", "slice_position", "spatial_dims")},
    "strides": "network_def#encoder#strides",
}
"""Settings of a training, and the ids in which an inference must be alike though the weights would fit without."""

WRITES_WHEN_MADE = ("TensorBoard", "MLFlow")
"""Parts of the names of handlers that make files as soon as they exist."""

_PARALLEL = re.compile(r"\$.*DistributedDataParallel\(\s*(@[\w#:]+).*", re.DOTALL)
_MAX_DECODED = 200


class Preflight:
    """
    Check the options, the table and the images of a bundle's run before it begins, and tell all that is wrong at once.

    To be called as the first step of a config's `initialize`, before anything is seeded, or of an inference's `run`: it
    evaluates the config's ids one by one, and goes on where one of them fails. Looked at are

    - ids that nothing in the config uses, such as a misspelt option;
    - options, each by its rule (see :func:`~monai_mimmx.options.option_problems`), and folders that must be writable;
    - tasks, table and subsets, by the components that read and draw them;
    - images: whether they exist, all of them; header and size, as many as fit in the time; a few are decoded. Nothing of it
      where the image cache holds them already;
    - everything that the steps of `run` refer to: it is made once for trial, with blank images, and the network is
      applied to two of them, so that what a component refuses is told before the images are decoded;
    - a checkpoint that is to be evaluated, predicted with or resumed from.

    A config without a table and subsets but with a `datalist`, as that of an inference, is looked at in the same way: its
    options, the images of that list by its `preprocessing`, the checkpoint, and the folder of `predictions_path`.

    Texts `true`, `false` and `null` as values of top-level ids become what they mean in JSON. With the id `check_only`
    true the process ends after the check, with status 0.

    Args:
        seconds: for the headers of the images.
        decode: images that are decoded.
        checkpoint: file that is about to be evaluated or predicted with; None: there is none.

    Raises:
        ValueError: for negative numbers.
        Problems: when called, if anything is wrong.

    Example:
        >>> config = {"n_b": 0, "lambda_mi": -1.0, "lamda_mi": 2.0, "run": ["$@n_b + @lambda_mi"]}
        >>> parser = ConfigParser(config | {"preflight": {"_target_": "Preflight"}, "initialize": "$@preflight()"})
        >>> try:
        ...     parser.get_parsed_content("initialize")
        ... except RuntimeError as error:
        ...     print(root_cause(error))
        3 problems:
          1. nothing uses the option 'lamda_mi': did you mean 'lambda_mi'?
          2. lambda_mi must be 0 or more, got -1.0.
          3. n_b, the estimator steps per encoder batch, must be 1 or more, got 0.
    """

    def __init__(
        self, *, seconds: float = 20.0, decode: int = 8, checkpoint: str | os.PathLike[str] | None = None
    ) -> None:
        if seconds < 0 or decode < 0:
            raise ValueError(f"expected seconds and decode of 0 or more, got {seconds} and {decode}")
        self.seconds, self.decode = seconds, decode
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.logger = logging.getLogger("monai_mimmx")

    def __call__(self, rank: int = 0) -> None:
        """
        Check what the config that calls this says.

        Args:
            rank: of the process; only the first one checks.
        """
        parser = _calling_parser()
        if words := {key: WORDS[value] for key, value in parser.config.items() if _is_word(value)}:  # type: ignore[union-attr]
            parser.update(words)
            parser.parse()
        check_only = "check_only" in parser and parser.get_parsed_content("check_only") is True
        if rank == 0:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                check = _Check(parser, self, scratch)
                check.run(check_only)
            if check.problems:
                raise Problems(check.problems)
            lines = [*check.lines, f"nothing is wrong; this took {time.perf_counter() - started:.1f} s"]
            if check_only:
                print("\n".join([*lines, *check.idle, *check.tables]))
            else:
                for told in check.idle:
                    self.logger.warning(told)
                self.logger.info("checked before the start: " + "; ".join(lines))
        if check_only:
            raise SystemExit(0)


def training_differences(
    checkpoint: str | os.PathLike[str],
    value: Callable[[str], Any],
    *,
    tasks: bool = True,
    advice: str = "pass --{key} '{then}'",
) -> list[ValueError]:
    """
    In what a config differs from the training of a checkpoint, though the weights fit: how images are prepared, the strides
    of the encoder, and the tasks.

    Args:
        checkpoint: the trained model. Without its training's `metrics.json` above its folder there is nothing to compare.
        value: the id of something in the config to what it evaluates to; None where there is none.
        tasks: compare the names and classes of the tasks too.
        advice: how an option gets the value that it had then.

    Returns:
        an error for each difference, which says what to pass.

    Example:
        >>> training_differences("models/model.pt", {"image_size": 96}.get)
        []
    """
    trained, record = stored_metrics(checkpoint), Path(checkpoint).parent.parent / "metrics.json"
    if not trained:
        return []
    where = f"in the training of {checkpoint}, as {record} tells"
    problems = []
    for name, key in AS_TRAINED.items():
        now, then = value(key), trained["config"].get(name)
        if now is not None and then is not None and now != then:
            how = advice.format(key=key, then=then)
            problems.append(ValueError(f"{key} is {now!r}, but was {then!r} {where}: {how}, or the training's overlay"))
    if tasks and (parsed := value("parsed_tasks")) is not None:
        now, then = [(task.name, task.class_names) for task in parsed], trained["tasks"]
        if now != then:
            told = f"the tasks and their classes are {dict(now)}, but were {dict(then)} {where}"
            problems.append(ValueError(f"{told}: give the same tasks, such as by the training's overlay"))
    return problems


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value in WORDS


def _calling_parser() -> ConfigParser:
    """The parser of the config whose expression is being evaluated; MONAI gives expressions no name for it."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), ConfigParser):
            return caller
        frame = frame.f_back
    raise RuntimeError("a Preflight is called by an expression of a config, such as '$@preflight()'")


class _Check:
    """One check: what is wrong, and what was looked at."""

    def __init__(self, parser: ConfigParser, settings: Preflight, scratch: str) -> None:
        self.parser, self.settings, self.scratch = parser, settings, scratch
        self.config: dict[str, Any] = parser.config  # type: ignore[assignment]
        self.problems: list[BaseException] = []
        self.lines: list[str] = []
        self.tables: list[str] = []
        self.idle: list[str] = []
        self.wrong: list[str] = []
        self.cache_problem: OSError | None = None
        self.predicts = "datalist" in self.config
        self.root = self._value("bundle_root") if "bundle_root" in self.config else None
        self.shipped: dict[str, Any] = {}

    def _is_of_another(self, shipped: Mapping[str, Any]) -> bool:
        """Whether the config looked for its bundle by itself, and found a folder with the config of another."""
        searches = [str(config.get("bundle_root")) for config in (self.config, shipped)]
        return all(search.startswith("$next((p for p in ('.', ") for search in searches) and len({*searches}) > 1

    def run(self, check_only: bool) -> None:
        """Look at everything."""
        if self.root is not None:
            shipped = Path(self.root) / "configs" / "train.json"
            if shipped.is_file():
                self.shipped = json.loads(shipped.read_text(encoding="utf-8"))
                predicting = shipped.with_name("inference.json")
                own = self.shipped
                if self.predicts and predicting.is_file():
                    own = json.loads(predicting.read_text(encoding="utf-8"))
                if self._is_of_another(own):
                    self.problems.append(
                        ValueError(
                            f"the config is of another bundle than the one in {str(self.root)!r}, where it was started: run it "
                            "in its own bundle's folder, or pass that folder as --bundle_root"
                        )
                    )
                    return
            elif not self.predicts:  # nothing else is where it is looked for
                self.problems.append(
                    FileNotFoundError(
                        f"bundle_root is {str(self.root)!r}, where {shipped} is missing: run in the bundle's folder, or pass "
                        "that folder as --bundle_root"
                    )
                )
                return
        self._unused()
        values = self._options()
        if self.shipped:
            given = [name for name in values if self.config[name] != self.shipped.get(name)]
            used = {name.split("::")[0] for name in _references({**self.config, "settings": None})}
            self.idle = idle_options(given, values)
            recorded = [] if self.predicts else _references(self.shipped.get("settings"))
            self.idle += [
                f"{name} changes nothing: what uses it in configs/train.json has been replaced"
                for name in given
                if name in self.shipped and name not in used and name in recorded
            ]
        self._folders(make=not check_only)
        if self.predicts:
            self._inference()
            return
        tasks = self._value("parsed_tasks") if "parsed_tasks" in self.config else None
        subsets, images = self._table(tasks, values)
        if tasks is not None and subsets is not None:
            self.tables.append(describe_subsets(subsets, tasks))
        shape = self._images(images)
        if self.cache_problem is not None:
            self.problems.append(self.cache_problem)
        trial = self._trial(tasks, subsets, shape)
        if self.settings.checkpoint is not None:
            self._checkpoint(trial, self.settings.checkpoint)
            self._evaluated(trial, self.settings.checkpoint)
        elif values.get("resume") is True and (latest := self._value("resume_checkpoint")):
            self._resumed(trial, Path(latest))

    def _value(self, name: str, parser: ConfigParser | None = None) -> Any:
        """What an id evaluates to; None, and one more problem, where it fails."""
        try:
            return (parser or self.parser).get_parsed_content(name)
        except Exception as error:
            self._add(error, name)
            return None

    def _sound_value(self, name: str) -> Any:
        """What an id evaluates to; None where there is none, or what is wrong with it is told already."""
        return self._value(name) if name in self.parser and name not in self.wrong else None

    def _add(self, error: BaseException, name: str) -> BaseException:
        cause = root_cause(error)
        if isinstance(cause, ValueError | OSError):
            self.problems.append(cause)
        else:  # not meant for the user's eyes, so that its kind and place help
            self.problems.append(ValueError(f"{_place(error, name)}: {type(cause).__name__}: {first_line(cause)}"))
        return cause

    def _unused(self) -> None:
        known = {*(self.shipped or ["bundle_root", *known_options()]), *NOT_OPTIONS}
        used = {name.split("::")[0] for name in _references(self.config)}
        for name, value in self.config.items():
            if name in known or name in used or name.startswith("_") or _is_code(value):
                continue
            near = difflib.get_close_matches(name, sorted(known | used), 1)
            advice = f"did you mean {near[0]!r}?" if near else "see configs/train.json; a note begins with _"
            self.problems.append(ValueError(f"nothing uses the option {name!r}: {advice}"))

    def _options(self) -> dict[str, Any]:
        """The values of all options that can be evaluated. What is wrong only as another option is, is not told."""
        values: dict[str, Any] = {}
        told: dict[str, list[BaseException]] = {}
        for name in sorted({*known_options()} & {*self.config}):
            before = len(self.problems)
            value = self._value(name)
            if len(self.problems) == before:
                values[name] = value
                if not (name == "batch_size" and self.predicts):
                    self.problems += option_problems(**{name: value})
                elif not isinstance(value, int) or value < 1:  # one is too few to train only
                    self.problems.append(ValueError(f"batch_size must be 1 or more, got {value!r}."))
            if len(self.problems) > before:
                told[name] = self.problems[before:]
                del self.problems[before:]
        self.wrong += told
        own = [name for name in told if not {*_references(str(self.config[name]))} & {*told} - {name}]
        self.problems += [problem for name in own or told for problem in told[name]]
        self.lines.append(f"{len(values)} options")
        return values

    def _folders(self, make: bool) -> None:
        for name in ["predictions_path"] if self.predicts else ["output_dir", "cache_dir"]:
            if name not in self.config or name in self.wrong or (folder := self._value(name)) is None:
                continue
            try:
                check_writable(Path(folder).parent if self.predicts else folder, name, make=make)
            except OSError as error:
                if name == "cache_dir":  # told where something is to be written there
                    self.cache_problem = error
                else:
                    self.problems.append(error)

    def _inference(self) -> None:
        """The images that are to be predicted, and the checkpoint."""
        if "load" in self.config and self.config["load"] != self.config.get("preprocessing"):
            self.problems.append(
                ValueError(
                    "load, a training's transforms, is not what an inference applies: give it the same as preprocessing, in an "
                    "overlay that may hold both"
                )
            )
        # By the parser of the run, which then has the list already: a folder is searched once.
        if "dataset_dir" not in self.wrong and (items := self._value("datalist")) is not None:
            self._images([item["image"] for item in items], "preprocessing")
        if self.settings.checkpoint is not None:
            self.problems += training_differences(self.settings.checkpoint, self._sound_value)
            fits = "network" in self.config and {*self.wrong} <= {*self.shipped}
            self._checkpoint(self._trial_parser({}) if fits else None, self.settings.checkpoint)

    def _table(self, tasks: Any, values: Mapping[str, Any]) -> tuple[dict[str, pd.DataFrame] | None, list[str]]:
        """The subsets, and the distinct images of all rows that could be read."""
        if "subsets" not in self.config or (self.problems and not self._has_data(values)):
            return None, []
        usable, found, name = None, None, "subsets"
        parser = self._trial_parser({}) if self.wrong else self.parser
        if tasks is None and "parsed_tasks" in self.config:
            usable = getattr(self.problems[-1], "usable", None)
            if usable is None or "subsets#frame" not in self.parser:
                return None, []
            # Some tasks cannot be read. With the others the table can, and its problems are told too.
            parser, name = self._trial_parser({"parsed_tasks": usable}), "subsets#frame"
        try:
            found = parser.get_parsed_content(name)
        except Exception as error:
            usable = getattr(self._add(error, name), "usable", None)
        if name == "subsets#frame" and found is not None:
            usable, found = found, None
        frames = found.values() if isinstance(found, Mapping) else [usable] if isinstance(usable, pd.DataFrame) else []
        images = sorted({image for frame in frames for image in frame["image"]})
        if found is not None:
            rows = ", ".join(f"{key} {len(frame):,}" for key, frame in found.items())
            self.lines.append(f"the table's rows in the subsets {rows}, of {len(images):,} images, all of which exist")
        return found, images

    def _has_data(self, values: Mapping[str, Any]) -> bool:
        """Whether there is a table without a cohort being written first."""
        if {"dataset_dir", "cohort_scale", "cohort_seed"} & {*self.wrong}:
            return False
        if values.get("dataset_dir") is not None or "cohort_dir" not in self.config:
            return True
        if not _is_code(self.config.get("table")):
            return True
        folder = self._value("cohort_dir")
        return folder is not None and (Path(folder) / MARKER_NAME).is_file()

    def _images(self, images: Sequence[str], transforms: str = "load") -> tuple[int, ...] | None:
        """The shape of an image after the transforms of that id, where one can be decoded."""
        if not images:
            return None
        parser = self._trial_parser({})
        block = self.config.get("images")
        settings = {
            key: self._value(f"images#{key}", parser)
            for key in ("cache_dir", "transform_key", "dtype")
            if isinstance(block, Mapping) and key in block
        }
        transform = self._value(transforms, parser) if transforms in self.config else None
        cached = None
        if transform is not None and {"cache_dir", "transform_key"} <= {*settings}:
            cached = cached_file(images, transform, **settings)
        if cached is not None:
            self.cache_problem = None
            self.lines.append(f"all images were decoded before, in {cached}")
            return np.load(cached, mmap_mode="r").shape[1:]
        started = time.perf_counter()
        doubtful, looked = check_headers(images, self.settings.seconds)
        took = time.perf_counter() - started
        count = "all" if looked == len(images) else f"{looked:,} of {len(images):,}"
        rest = "" if looked == len(images) else "; the rest is checked when decoded"
        self.lines.append(f"headers of {count} images read in {took:.1f} s{rest}")
        if transform is None:
            return None
        sample = np.random.default_rng(0).permutation(len(images))[: self.settings.decode]
        shape, failed = None, []
        for path in dict.fromkeys([*(images[index] for index in sorted(sample)), *doubtful[:_MAX_DECODED]]):
            try:
                shape = load_image(path, transform, settings.get("dtype", "float16"), shape).shape
            except ValueError as error:
                failed.append(f"{path}: {error}")
        if failed:
            total = f"{len(failed)}{' or more' if len(doubtful) > _MAX_DECODED else ''}"
            shown = first_three(failed, "; ")
            told = f"{total} of {looked:,} images looked at cannot be used: {shown} (replace them, or leave them out)"
            self.problems.append(ValueError(told))
        self.lines.append(f"{len(sample)} images decoded")
        return shape

    def _trial_parser(self, more: Mapping[str, Any]) -> ConfigParser:
        """
        A parser of the same config, whose components are others than those of the training and leave no files (those of an
        inference read from there). Wrong options have the values that came with the bundle, so that no component refuses
        them a second time.
        """
        repaired = {name: _for_trial(self.shipped[name]) for name in self.wrong if name in self.shipped}
        folders = () if self.predicts else ("output_dir", "ckpt_dir")
        scratch = {name: self.scratch for name in folders if name in self.config}
        changed = {"tensorboard": False, "resume": False} | repaired | scratch | dict(more)
        return ConfigParser(_for_trial(self.config) | changed)

    def _trial(
        self, tasks: Any, subsets: dict[str, pd.DataFrame] | None, shape: tuple[int, ...] | None
    ) -> ConfigParser | None:
        """Make what the training is made of, and apply its network."""
        if tasks is None or subsets is None or not {*self.wrong} <= {*self.shipped}:
            return None
        parser = self._trial_parser({"parsed_tasks": tasks, "subsets": subsets})
        if shape is None and not {"image_size", "spatial_dims"} <= {*self.config}:
            return None
        if shape is None:
            size, dims = (self._value(name, parser) for name in ("image_size", "spatial_dims"))
            shape = (1, *[size] * dims)
        names = [task.name for task in tasks]
        parser["images"] = blank_subsets(subsets, names, shape)
        if "network_def" in self.shipped and self._value("network_def", parser) is None:
            parser["network_def"] = _for_trial(self.shipped["network_def"])  # so that the rest can be made all the same
        if "train#sampler" in parser and self._value("train#sampler", parser) is None:
            parser["sampling"] = "correlated"
        steps = self.config.get("run") or []
        for name in dict.fromkeys(_references(steps)):
            if name != "finished":
                self._value(name, parser)
        network = self._value("network", parser) if "network" in self.config else None
        if not isinstance(network, nn.Module):
            return None
        image = torch.zeros(2, *shape, device=next(network.parameters()).device)
        try:
            with torch.no_grad():
                network(image)
        except Exception as error:
            told = f"the network cannot take images of shape {tuple(shape)}: try another image_size or encoder"
            self.problems.append(ValueError(f"{told} ({first_line(error)})"))
        else:
            if "train#prepare_batch" in parser and (prepare := self._value("train#prepare_batch", parser)):
                try:
                    prepare({"image": image, "label": torch.zeros(2, len(names), dtype=torch.int64)}, image.device)
                except Exception as error:
                    told = f"train#prepare_batch cannot take images of shape {tuple(shape)}: try another image_size"
                    self.problems.append(ValueError(f"{told} ({first_line(error)})"))
        if self._value("method", parser) == "dfr" and "select" in subsets:
            try:
                labels = subsets["select"][names].to_numpy(dtype=np.int64)
                check_refit(labels, [task.num_classes for task in tasks], self._value("feature_dim", parser))
            except ValueError as error:
                self.problems.append(error)
        self.lines.append("every part of the training made for trial")
        return parser

    def _checkpoint(self, parser: ConfigParser | None, path: Path) -> None:
        """Whether a checkpoint exists and fits the network."""
        try:
            require_checkpoint(path)
            network = None if parser is None else self._value("network", parser)
            if network is not None:
                if not isinstance(network, torch.jit.ScriptModule):  # which was read from it
                    load_model(network, path)
                self.lines.append(f"the checkpoint {path}")
        except (OSError, ValueError) as error:
            self.problems.append(error)

    def _evaluated(self, parser: ConfigParser | None, path: Path) -> None:
        """Whether the records of the evaluation would be of another training, or its rows among those trained on."""
        if "output_dir" in self.wrong or "output_dir" not in self.config or not (output := self._value("output_dir")):
            return
        home = path.resolve().parent.parent == Path(output).resolve()
        if not home and (Path(output) / "history.jsonl").is_file():
            told = f"output_dir {output} holds the records of another training than that of {path}"
            self.problems.append(ValueError(f"{told}: evaluate with an --output_dir of its own"))
        stored = stored_identity(path)
        if parser is None or stored is None or "state#identity" not in parser or self.wrong:
            return
        own = parser.get_parsed_content("state#identity").state_dict()
        if all(stored.get(part) == own[part] for part in ("tasks", "subsets")):
            return
        told = f"the table's training rows are others than those that {path} was trained on"
        if home:
            self.problems.append(
                ValueError(
                    f"{told}, and the test sets may hold subjects of its training: give the table, tasks and options of the "
                    "subsets that it had, or evaluate a table of other subjects with an --output_dir of its own"
                )
            )
        else:
            self.idle.append(f"{told}: where it has subjects of that training, their figures are too good")

    def _resumed(self, parser: ConfigParser | None, path: Path) -> None:
        """Whether the checkpoint to go on from is of the same training, and fits the network."""
        if parser is not None and not self.wrong and "state#identity" in parser:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            try:
                parser.get_parsed_content("state#identity").load_state_dict(stored["identity"])
            except KeyError:
                self.problems.append(
                    ValueError(f"{path} does not tell of which training it is: train without --resume")
                )
                return
            except ValueError as error:
                self.problems.append(ValueError(f"{path}: {error}"))
                return
            state = stored.get("trainer") or {}
            epoch = state.get("iteration", 0) // (state.get("epoch_length") or 1)
            if epoch > (epochs := self._value("epochs")):
                self.problems.append(
                    ValueError(
                        f"{path} is of epoch {epoch}: go on with epochs of {epoch} or more, or train anew without "
                        f"--resume, got epochs {epochs}"
                    )
                )
                return
        self._checkpoint(parser, path)


def _place(error: BaseException, name: str) -> str:
    """The innermost component that MONAI says it failed to make, or the id that was asked for."""
    place = name
    while error.__cause__ is not None:
        if made := re.match(r"Failed to instantiate component '([\w.]+)'", str(error)):
            place = made[1].rpartition(".")[2]
        error = error.__cause__
    return place


def _texts(value: Any) -> Iterator[str]:
    """All texts in a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _references(config: Any) -> list[str]:
    """The ids that a config, or a part of it, refers to."""
    return [name for text in _texts(config) for name in ReferenceResolver.match_refs_pattern(text)]


def _is_code(value: Any) -> bool:
    """Whether MONAI does anything with a value of itself: steps to run, or components."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_is_code, value.values()))
    return any(map(_is_code, value)) if isinstance(value, list) else isinstance(value, str) and value.startswith("$")


def _for_trial(value: Any) -> Any:
    """A copy of a config without what writes as soon as it is made, or needs other processes."""
    if isinstance(value, Mapping):
        copied = {key: _for_trial(inner) for key, inner in value.items()}
        writes = any(part in str(value.get("_target_", "")) for part in WRITES_WHEN_MADE)
        return copied | {"_disabled_": True} if writes else copied
    if isinstance(value, list):
        return [_for_trial(inner) for inner in value]
    return _PARALLEL.sub(r"\1", value) if isinstance(value, str) else value
