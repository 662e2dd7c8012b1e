# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What each option of a training may be: one rule per name, for the component that takes it and for the check before."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from monai_mimmx.errors import first_line, raise_problems

__all__ = ["idle_options", "known_options", "option_problems", "require_options"]

METHODS = ("mimmx", "mimm", "dcor", "adversarial", "mmd", "baseline", "rebalance", "groupdro", "dfr")
WITHOUT_DEPENDENCE = ("baseline", "rebalance", "groupdro", "dfr")
WITHOUT_ESTIMATOR = (*WITHOUT_DEPENDENCE, "dcor", "mmd")
NATURAL = "natural"
OF_THE_MACHINE = ("amp", "amp_fresh", "device", "output_dir")
"""Settings in which one training may be called on another machine."""
SUBSET_NAMES = ("train", "select", "probe", "val", "inv", "bal")

Rule = Callable[[Any], str | None]
"""A value to what it should be, in words that follow "must", or None where it is right."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _number(text: str, holds: Callable[[Any], bool], *, whole: bool = False) -> Rule:
    def rule(value: Any) -> str | None:
        if not (_is_whole(value) if whole else _is_number(value)):
            return f"be a {'whole ' if whole else ''}number, {text}"
        return None if math.isfinite(value) and holds(value) else f"be {text}"

    return rule


def _at_least(low: int, *, whole: bool = True) -> Rule:
    return _number(f"{low} or more", lambda value: value >= low, whole=whole)


def _one_of(*values: Any, numbers: bool = False) -> Rule:
    listed = ", ".join(map(repr, values))
    text = f"be one of {listed}" if len(values) > 4 else f"be {' or '.join(listed.rsplit(', ', 1))}"
    # 1 is no True here, unless a command line may give it for one, and a text no number.
    return lambda value: (
        None
        if any((type(value) is type(known) or (numbers and value in (0, 1))) and value == known for known in values)
        else text
    )


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "be a text"


def _folder(value: Any) -> str | None:
    named = value is None or (isinstance(value, str | os.PathLike) and str(value).strip())
    return None if named else "be the name of a folder"


def _agreement(value: Any) -> str | None:
    for single in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if not (_is_number(single) and 0 <= single <= 1) and single != NATURAL:
            return f"be a number from 0 to 1 or {NATURAL!r}" + ("" if single is value else ", for each factor")
    return None


def _fractions(value: Any) -> str | None:
    right = isinstance(value, Sequence) and len(value) == 3 and all(_is_number(share) and share >= 0 for share in value)
    if right and math.isclose(sum(value), 1.0, abs_tol=1e-6):
        return None
    return "be three fractions, of train, val and test, that sum to 1"


def _subset_sizes(value: Any) -> str | None:
    if value is not None and not isinstance(value, Mapping):
        return "name subsets and their largest numbers of rows"
    if unknown := [name for name in value or () if name not in SUBSET_NAMES]:
        return f"name subsets among {', '.join(SUBSET_NAMES)}, not {', '.join(map(repr, unknown))}"
    wrong = [name for name, size in (value or {}).items() if size is not None and (not _is_whole(size) or size < 1)]
    return f"be a whole number of 1 or more, or None, for {wrong[0]!r}" if wrong else None


def _position(value: Any) -> str | None:
    if (_is_number(value) and 0 <= value <= 1) or value == "foreground":
        return None
    return "be a number from 0 to 1 or 'foreground'"


def _device(value: Any) -> str | None:
    try:
        torch.empty(0, device=torch.device(value))
    except Exception as error:
        devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        reason = first_line(error)
        return f"be a device of this machine, such as {', '.join(devices)} ({reason})"
    return None


_FLAG = _one_of(True, False)
_RATE = _number("above 0", lambda value: value > 0)
_NOT_NEGATIVE = _at_least(0, whole=False)

RULES: dict[str, Rule] = {
    "amp_dtype": _one_of("float16", "bfloat16"),
    "method": _one_of(*METHODS),
    "sampling": _one_of("correlated", "balanced"),
    "estimator": _one_of("per_factor", "joint"),
    "caw": _one_of(True, False, "features", "terms", numbers=True),
    "uncertain": _one_of("exclude", "zero", "one"),
    "blank": _one_of("no_finding", "zero", "exclude"),
    **dict.fromkeys(
        (
            "dls",
            "conditional",
            "ema",
            "detach_z",
            "refine_detach_z",
            "amp",
            "amp_fresh",
            "compile",
            "cuda_graph",
            "resume",
            "channels_last",
            "tensorboard",
            "frontal_only",
            "check_only",
        ),
        _FLAG,
    ),
    "lambda_mi": _NOT_NEGATIVE,
    "refine_lambda_mi": _NOT_NEGATIVE,
    "lambda_warmup": _NOT_NEGATIVE,
    "alpha_y": _NOT_NEGATIVE,
    "alpha_z": _NOT_NEGATIVE,
    "beta_y": _number("finite", lambda value: True),
    "ema_decay": _number("at least 0 and below 1", lambda value: 0 <= value < 1),
    "learning_rate": _RATE,
    "refine_learning_rate": _RATE,
    "mine_learning_rate": _RATE,
    "cohort_scale": _RATE,
    "n_b": _at_least(1),
    "feature_batches": _at_least(0),
    "refine_feature_batches": _at_least(0),
    "feature_dim": _at_least(1),
    "spatial_dims": _one_of(2, 3),
    "image_size": _at_least(1),
    "slice_position": _position,
    "batch_size": _at_least(2),
    "epochs": _at_least(1),
    "refine_epochs": _at_least(0),
    "val_interval": _at_least(1),
    "num_workers": _at_least(0),
    "seed": _number("from 0 to 4294967295", lambda value: 0 <= value < 2**32, whole=True),
    "cohort_seed": _at_least(0),
    "device": _device,
    "agreement": _agreement,
    "fractions": _fractions,
    "subset_sizes": _subset_sizes,
    "image_column": _text,
    "subject_column": _text,
    **dict.fromkeys(("dataset_dir", "image_root", "cache_dir", "output_dir"), _folder),
}
ARGUMENTS = {
    "decay": "ema_decay",
    "interval": "val_interval",
    "num_batches": "n_b",
    "position": "slice_position",
    "sizes": "subset_sizes",
}
"""Arguments of components to the option whose rule is theirs."""

_OF_THE_TERM = ("lambda_mi", "lambda_warmup", "detach_z", "conditional")
_OF_THE_ESTIMATOR = ("estimator", "n_b", "feature_batches", "amp_fresh", "mine_learning_rate")


def _among(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _is_kept(value: Any) -> bool:
    return isinstance(value, int) and value > 0


IDLE: tuple[tuple[tuple[str, ...], Mapping[str, Callable[[Any], bool]]], ...] = (
    (_OF_THE_TERM, {"method": _among(*WITHOUT_DEPENDENCE)}),
    (_OF_THE_ESTIMATOR, {"method": _among(*WITHOUT_ESTIMATOR)}),
    (("alpha_y", "alpha_z", "beta_y"), {"dls": _among(False)}),
    (("ema_decay",), {"ema": _among(False)}),
    (("amp_dtype",), {"amp": _among(False), "amp_fresh": _among(False)}),
    (("amp_dtype",), {"amp": _among(False), "amp_fresh": _among(True), "feature_batches": _is_kept}),
    (("amp_fresh",), {"amp": _among(True)}),
    (("amp_fresh",), {"amp": _among(False), "feature_batches": _is_kept}),
    (
        ("refine_detach_z", "refine_feature_batches", "refine_lambda_mi", "refine_learning_rate"),
        {"refine_epochs": _among(0)},
    ),
    (("slice_position",), {"spatial_dims": _among(3)}),
    (("cuda_graph",), {"cuda_graph": _among(True), "device": _among("cpu", torch.device("cpu"))}),
)
"""Options, and others with what they are where, all of them together, they change nothing."""

MEANING = {
    "n_b": "the estimator steps per encoder batch",
    "batch_size": "over which features are standardised",
    "ema_decay": "the weight of the past in the averaged weights",
}


def known_options() -> list[str]:
    """
    The names that have a rule.

    Example:
        >>> "lambda_mi" in known_options()
        True
    """
    return list(RULES)


def idle_options(given: Iterable[str], values: Mapping[str, Any]) -> list[str]:
    """
    Which options change nothing, as others are what they are.

    Args:
        given: names of the options that someone has set.
        values: of all options by name; where one is missing, nothing is told of what depends on it.

    Returns:
        a sentence for each.

    Example:
        >>> idle_options(["lambda_mi", "seed"], {"method": "baseline", "lambda_mi": 3.0, "seed": 1})
        ["lambda_mi changes nothing where method is 'baseline'"]
    """
    names = {*given}
    return [
        f"{', '.join(idle)} {'change' if len(idle) > 1 else 'changes'} nothing where "
        + " and ".join(f"{cause} is {values[cause]!r}" for cause in causes)
        for options, causes in IDLE
        if all(cause in values and holds(values[cause]) for cause, holds in causes.items())
        and (idle := [name for name in options if name in names])
    ]


def option_problems(**values: Any) -> list[ValueError]:
    """
    What is wrong with options, each by its own rule; none that has no rule.

    Args:
        values: by name.

    Returns:
        An error for each wrong value.

    Example:
        >>> option_problems(n_b=0, lambda_mi=1.0, sampling="fair")
        [ValueError('n_b, the estimator steps per encoder batch, must be 1 or more, got 0.'),
         ValueError("sampling must be 'correlated' or 'balanced', got 'fair'.")]
    """
    problems = []
    for name, value in values.items():
        rule = RULES.get(ARGUMENTS.get(name, name))
        if rule is not None and (expected := rule(value)):
            told = f"{name}, {MEANING[name]}," if name in MEANING else name
            problems.append(ValueError(f"{told} must {expected}, got {value!r}."))
    return problems


def require_options(**values: Any) -> None:
    """
    Raise what `option_problems` finds, all of it at once.

    Args:
        values: by name.

    Raises:
        ValueError: for a wrong value.

    Example:
        >>> require_options(feature_dim=2)
        >>> require_options(feature_dim=0)
        Traceback (most recent call last):
            ...
        ValueError: feature_dim must be 1 or more, got 0.
    """
    raise_problems(option_problems(**values))
