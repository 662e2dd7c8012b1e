# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Run a bundle for every method and seed, each in a process of its own; what is finished is never run again."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from monai_mimmx.data.cohort_folder import available_cpus
from monai_mimmx.errors import root_cause
from monai_mimmx.files import locked, write_json
from monai_mimmx.options import OF_THE_MACHINE

__all__ = [
    "PlannedRun",
    "check_runs",
    "execute_runs",
    "failure",
    "is_running",
    "plan_runs",
    "read_metrics",
    "read_plan",
    "read_run",
]

NEEDED = ("accuracy", "config", "n", "probes", "seconds", "task_names", "version")
"""What a finished run's metrics hold at least."""

ALIKE = 3
"""Runs that fail with the same words before they train, and nothing else, until the rest are not begun."""

FREE = (*OF_THE_MACHINE, "cache_dir", "num_workers", "resume", "tensorboard")
"""Options in which the same run may be called differently."""


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What a run is: the content of its `run.json`.

    Raises:
        ValueError: the file is not whole.
    """
    return _read(Path(path), ("name", "seed", "options"))


def read_plan(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    The runs that a comparison was to run, by all calls of it: the content of its `plan.json`.

    Args:
        folder: the comparison's `output_dir`; none where nothing is recorded.

    Raises:
        ValueError: the file is not whole.
    """
    path = Path(folder) / "plan.json"
    return _read(path, ("runs",))["runs"] if path.is_file() else []


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What a run measured: the content of its `metrics.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not whole, or lacks what the tables need.
    """
    return _read(Path(path), NEEDED)


def _read(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not whole ({error}): remove it, and compare runs it again") from error
    if missing := [key for key in needed if not isinstance(content, dict) or key not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: remove it, and compare runs it again")
    return content


@dataclass(frozen=True)
class PlannedRun:
    """
    One run of a bundle: a method, a seed and, in a sweep, an agreement.

    Args:
        name: of the row in the tables.
        seed: of the run.
        folder: its `output_dir`.
        options: everything that is given to the bundle.
        command: the process that runs it.
        aliases: further names of the row, whose options the bundle resolves to the same values.
        agreement: of a strength sweep; None outside one.

    Example:
        >>> run = PlannedRun("rebalance", 0, Path("out/rebalance/seed_0"), {"seed": 0}, ("python", "-c", "pass"))
        >>> run.is_finished
        False
    """

    name: str
    seed: int
    folder: Path
    options: Mapping[str, Any]
    command: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    agreement: float | None = None

    @property
    def config_file(self) -> str:
        """The config file, or the list of them as text, that the command names."""
        return self._argument("--config_file")

    @property
    def bundle(self) -> str:
        """The bundle's folder that the command names."""
        return self._argument("--bundle_root")

    def _argument(self, key: str) -> str:
        words = list(self.command)
        return words[words.index(key) + 1] if key in words else ""

    @property
    def is_finished(self) -> bool:
        """Whether the run ended with its evaluation, and left whole metrics of a whole training."""
        try:
            return not read_metrics(self.folder / "metrics.json").get("unfinished")
        except (FileNotFoundError, ValueError):
            return False


def plan_runs(
    bundle: str | os.PathLike[str],
    methods: Mapping[str, Mapping[str, Any]],
    *,
    seeds: Sequence[int],
    output_dir: str | os.PathLike[str],
    agreements: Sequence[float] = (),
    overlays: Sequence[str | os.PathLike[str]] = (),
    options: Mapping[str, Any] | None = None,
) -> list[PlannedRun]:
    """
    All runs of a comparison, seed by seed, so that every row has something early.

    Methods whose options the bundle resolves to the same values, such as its default and the same spelled out, are one
    run: of the first of them, or of the one that is finished; the others are its aliases.

    Args:
        bundle: folder of the bundle.
        methods: name to bundle options, such as `method_options` gives.
        seeds: one run of each.
        output_dir: runs go to `<output_dir>/<name>[/agreement_<a>]/seed_<seed>`.
        agreements: of a strength sweep, in [0, 1]; none: the bundle's own. Where that is one per factor, those that are
            numbers are swept together, and a "natural" one stays.
        overlays: config files that are merged over `train.json`.
        options: given to every run; those of a method win.

    Raises:
        FileNotFoundError: if the bundle has no `configs/train.json`, or an overlay is missing.
        ValueError: for no seed, a seed or an agreement twice, an agreement out of range, options that the comparison itself
            sets, or that the config cannot resolve.

    Example:
        `plan_runs("bundles/brain_age", method_options(), seeds=range(3), output_dir="out")`
    """
    root, output = Path(bundle).resolve(), Path(output_dir).resolve()
    files = [root / "configs" / "train.json", *(Path(overlay).resolve() for overlay in overlays)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no {file}: --bundle names the folder of a bundle, --overlay config files"
            )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"expected one or more different seeds, got {list(seeds)}")
    own = {"seed", "output_dir", "bundle_root", "ckpt_dir", "ckpt"}
    if clash := sorted(own & set(options or {})):
        raise ValueError(f"the comparison sets {', '.join(clash)} itself: leave it out of the bundle's options")
    if agreements and "agreement" in (options or {}):
        raise ValueError("agreement is given both as a sweep and as an option of the bundle")
    if wrong := [value for value in agreements if not 0 <= value <= 1]:
        raise ValueError(f"an agreement is a share from 0 to 1, got {', '.join(f'{value:g}' for value in wrong)}")
    if len({f"{value:g}" for value in agreements}) < len(agreements):
        raise ValueError(f"expected different agreements, got {', '.join(f'{value:g}' for value in agreements)}")
    config = _read_configs(files)
    usual: Any = config.get("agreement")

    def swept(agreement: float) -> Any:
        each = isinstance(usual, Sequence) and not isinstance(usual, str)
        return [v if isinstance(v, str) else float(agreement) for v in usual] if each else float(agreement)

    def planned(name: str, seed: int, agreement: float | None) -> PlannedRun:
        sweep = {} if agreement is None else {"agreement": swept(agreement)}
        folder = output / name / ("" if agreement is None else f"agreement_{agreement:g}") / f"seed_{seed}"
        given = {**(options or {}), **methods[name], **sweep, "seed": seed}
        command = [
            *(sys.executable, "-m", "monai.bundle", "run"),
            *("--config_file", str(files[0]) if len(files) == 1 else str([str(file) for file in files])),
            *("--logging_file", str(root / "configs" / "logging.conf")),
            *("--bundle_root", str(root), "--output_dir", str(folder)),
        ]
        for key, value in given.items():
            command += [f"--{key}", value if isinstance(value, str) else repr(value)]
        return PlannedRun(name, seed, folder, given, tuple(command), agreement=agreement)

    groups = _same_settings(config, files[0], methods, options or {})
    runs = []
    for seed in seeds:
        for names in groups:
            for agreement in agreements or (None,):
                same = [planned(name, seed, agreement) for name in names]
                run = next((run for run in same if run.is_finished), same[0])
                runs.append(replace(run, aliases=tuple(name for name in names if name != run.name)))
    return runs


def run_title(name: str, agreement: float | None) -> str:
    """What a method's runs are called, in a sweep with their agreement."""
    return name if agreement is None else f"{name} @ {agreement:g}"


def _read_configs(files: Sequence[Path]) -> dict[str, Any]:
    """What config files say together; a ValueError names the one that cannot be read."""
    for file in files:
        try:
            content = ConfigParser.load_config_file(str(file))
        except ValueError as error:
            raise ValueError(f"the config {file} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"the config {file} must hold options by name, {{...}}, got a {type(content).__name__}")
    return ConfigParser.load_config_files([str(file) for file in files])


def _same_settings(
    config: Mapping[str, Any], file: Path, methods: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> list[list[str]]:
    """
    The names of the methods, those together whose options the config resolves to the same values.

    Everything else in a config follows from the options and what all methods share, so they train the same network.

    Raises:
        ValueError: an option that the config cannot resolve.
    """
    keys = list(dict.fromkeys(key for own in methods.values() for key in own))
    groups: dict[tuple[str | None, ...], list[str]] = {}
    for name, own in methods.items():
        parser = ConfigParser(deepcopy(config))
        parser.update({**options, **own})
        try:
            found = (parser.get_parsed_content(key, instantiate=False) if key in parser else None for key in keys)
            values = tuple(None if value is None else repr(value) for value in found)
        except Exception as error:  # whatever an expression raises
            raise ValueError(f"{file} cannot resolve the options of {name}: {root_cause(error)}") from error
        groups.setdefault(values, []).append(name)
    return list(groups.values())


def execute_runs(
    runs: Sequence[PlannedRun], *, jobs: int = 1, progress: bool = True, report: Callable[[str], None] | None = None
) -> dict[str, int]:
    """
    Run those runs that are not finished.

    A run that fails leaves `error.json` (its exit status and last lines) and the rest go on; it is tried again by the
    next call. Only where the first three fail with the same words before they have trained an epoch, and none is finished, is
    it the table or an option that all share, and the rest are not begun. `log.txt` in its folder holds all that it printed.
    Each process gets its share of the CPU cores, unless OMP_NUM_THREADS is set, and where there are several GPUs they are
    dealt out. A run that another process is running is left to it.

    Args:
        runs: of `plan_runs`.
        jobs: processes at once.
        progress: show a progress bar with the time left.
        report: gets one line for every run that ends; by default it is printed.

    Returns:
        How many runs are "finished", "skipped" (they were already), "failed", "elsewhere" and "not begun".

    Raises:
        ValueError: if `jobs` is below 1, or a run's folder holds a run with other options or config files, or a `run.json`
            that is not whole.

    Example:
        >>> execute_runs([], progress=False)
        {'finished': 0, 'skipped': 0, 'failed': 0, 'elsewhere': 0, 'not begun': 0}
    """
    if jobs < 1:
        raise ValueError(f"expected jobs of 1 or more, got {jobs}")
    check_runs(runs)
    _record_plan(runs)
    for run in runs:
        if run.is_finished and not _is_recorded(run):
            _record(run)  # its command was run by itself, or for fewer names
    waiting = [run for run in runs if not run.is_finished]
    counts = {"finished": 0, "skipped": len(runs) - len(waiting), "failed": 0, "elsewhere": 0, "not begun": 0}
    early: list[str] = []  # why runs failed that had not trained an epoch
    report = report or tqdm.write
    processes: set[subprocess.Popen] = set()
    places = list(range(jobs))  # a GPU goes with a place
    stopping = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(_run, run, jobs, places, processes, stopping): run for run in waiting}
        bar = tqdm(total=len(runs), initial=counts["skipped"], desc="runs", unit="run", disable=not progress)
        for future in as_completed(futures):
            if future.cancelled():
                counts["not begun"] += 1
                continue
            run, (outcome, line) = futures[future], future.result()
            counts[outcome] += 1
            report(f"{run_title(run.name, run.agreement)} seed {run.seed}: {line}")
            bar.update()
            if outcome == "failed" and not (run.folder / "history.jsonl").exists():
                early.append(_read_failure(run))
            alone = len(early) == counts["failed"] and not counts["finished"] + counts["skipped"] + counts["elsewhere"]
            if alone and len(early) == ALIKE and len({*early}) == 1 and sum(other.cancel() for other in futures):
                report(
                    f"the first {ALIKE} runs failed alike, before they trained: the others, which share the cause, are not begun"
                )
        bar.close()
    finally:
        stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes):
            process.terminate()
        pool.shutdown(wait=True)
    return counts


def check_runs(runs: Sequence[PlannedRun]) -> None:
    """
    See that no run's folder holds another one.

    Args:
        runs: of `plan_runs`.

    Raises:
        ValueError: a folder holds a run with other options or config files, or a `run.json` that is not whole.

    Example:
        >>> check_runs([])
    """
    for run in runs:
        _check_same(run)


def _check_same(run: PlannedRun) -> None:
    path = run.folder / "run.json"
    now = json.loads(json.dumps(dict(run.options)))
    if path.is_file():
        stored = read_run(path)
        if (files := stored.get("config_file", run.config_file)) != run.config_file:
            raise ValueError(f"{run.folder} holds a run of {files}, not of {run.config_file}: name another output_dir")
        config = json.loads(json.dumps(_config(run)))
        options = {*stored["options"], *now}
        before, now = {**stored.get("config", config), **stored["options"]}, {**config, **now}
        changed = _unlike(before, now)
        keys = [key for key in changed if key in options]
        if changed and not keys:
            raise ValueError(
                f"{run.folder} holds a run of {run.config_file} with another content, in {', '.join(changed)}: name another "
                "output_dir, or undo the change"
            )
    elif run.is_finished:  # by its command alone: there are only the values that it resolved
        before, now = read_metrics(run.folder / "metrics.json")["config"], _settings(run)
        keys = sorted(key for key in {*before} & {*now} if before[key] != now[key])
    else:
        return
    if keys:
        told = ", ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise ValueError(f"{run.folder} holds a run with other options ({told}): name another output_dir")


def _unlike(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys of different values, but those in which the same run may be called differently."""
    return sorted(key for key in {*before, *now} - {*FREE} if before.get(key) != now.get(key))


def _config(run: PlannedRun) -> dict[str, Any]:
    """What the run's config files say together, without its options."""
    files = ast.literal_eval(run.config_file) if run.config_file.startswith("[") else [run.config_file]
    return ConfigParser.load_config_files(files) if run.config_file else {}


def _settings(run: PlannedRun) -> dict[str, Any]:
    """The values of the settings that the run will record, as they are read back, but those of the machine."""
    parser = ConfigParser(_config(run))
    parser.update({**run.options, "bundle_root": run.bundle})
    values = json.loads(json.dumps(parser.get_parsed_content("settings") if "settings" in parser else {}))
    return {key: value for key, value in values.items() if key not in OF_THE_MACHINE}


def failure(status: int, lines: Sequence[str]) -> str:
    """
    Why a run ended without its figures, in one line: the last that it printed, or all of the problems that it told.

    Args:
        status: of its process; -n where signal n killed it.
        lines: what it printed last.

    Example:
        >>> failure(1, ["Traceback", "ValueError: no column 'age'"]), failure(-9, ["training: 14 %"])
        ("ValueError: no column 'age'", 'killed by signal 9 (Killed), after: training: 14 %')
    """
    last = " ".join(line.strip() for line in _last_told(lines)) or "no output"
    return last if status >= 0 else f"killed by signal {-status} ({signal.strsignal(-status)}), after: {last}"


def _last_told(lines: Sequence[str]) -> Sequence[str]:
    """The last line, or those from where several `Problems` begin."""
    begins = [number for number, line in enumerate(lines) if re.fullmatch(r"\d+ problems:", line)]
    return lines[begins[-1] if begins else -1 :]


def _read_failure(run: PlannedRun) -> str:
    error = json.loads((run.folder / "error.json").read_text(encoding="utf-8"))
    return failure(error["status"], error["lines"])


def _about(run: PlannedRun) -> dict[str, Any]:
    about = {"name": run.name, "seed": run.seed, "agreement": run.agreement, "aliases": list(run.aliases)}
    return {**about, "bundle": run.bundle, "config_file": run.config_file, "options": dict(run.options)}


def _record(run: PlannedRun) -> None:
    """Write what the run is, for the tables and for `_check_same`."""
    write_json(run.folder / "run.json", {**_about(run), "config": _config(run)})


def _record_plan(runs: Sequence[PlannedRun]) -> None:
    """Add the runs to what the comparison was to run before, so that the tables tell which are missing."""
    for folder in {run.folder.parents[1 if run.agreement is None else 2] for run in runs}:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".plan.lock", wait=True):
            planned = [*read_plan(folder), *map(_about, runs)]
            once = {(run["name"], run["agreement"], run["seed"]): run for run in planned}
            write_json(folder / "plan.json", {"runs": list(once.values())})


def _is_recorded(run: PlannedRun) -> bool:
    path = run.folder / "run.json"
    return path.is_file() and {*run.aliases} <= {*read_run(path).get("aliases", ())}


def is_running(run: PlannedRun) -> bool:
    """
    Whether a comparison, here or elsewhere, is running this one.

    Args:
        run: of `plan_runs`.

    Example:
        >>> is_running(PlannedRun("rebalance", 0, Path("no/such/folder"), {"seed": 0}, ("true",)))
        False
    """
    if not (run.folder / ".lock").is_file():
        return False
    with locked(run.folder / ".lock") as lock:
        return lock is None


def _run(
    run: PlannedRun, jobs: int, places: list[int], processes: set[subprocess.Popen], stopping: threading.Event
) -> tuple[str, str]:
    """The outcome of one run and a line about it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with locked(run.folder / ".lock") as lock:
        if lock is None:
            return "elsewhere", "another process is running it"
        if run.is_finished:  # by another process, since this one began
            return "skipped", "another process has finished it"
        (run.folder / "error.json").unlink(missing_ok=True)
        _record(run)
        place = places.pop()
        threads = max(1, available_cpus() // jobs)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if torch.cuda.device_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % torch.cuda.device_count())
        started = time.perf_counter()
        with (run.folder / "log.txt").open("w", encoding="utf-8") as log:
            # The child inherits the lock, so that a run whose parent was killed is not started a second time.
            try:
                process = subprocess.Popen(
                    run.command,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=(lock,) if lock >= 0 else (),
                )
            except OSError as error:
                log.write(f"it could not be started: {error}\n")
                status = 127  # as shells have it
            else:
                processes.add(process)
                if stopping.is_set():  # since before there was a process to end
                    process.terminate()
                status = process.wait()
                processes.discard(process)
        places.append(place)
        seconds = time.perf_counter() - started
        if status == 0 and run.is_finished:
            accuracy = read_metrics(run.folder / "metrics.json")["accuracy"]
            figures = " ".join(f"{subset} {100 * accuracy[subset]['y']:.1f}" for subset in accuracy)
            return "finished", f"y {figures} % | {seconds:.0f} s"
        if stopping.is_set():  # it did not fail: it was ended with the comparison
            return "not begun", "interrupted"
        lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        kept = lines[-max(20, len(_last_told(lines))) :]
        write_json(run.folder / "error.json", {"status": status, "lines": kept, "command": list(run.command)})
        return "failed", f"FAILED with status {status}: {failure(status, lines)} | see {run.folder}/log.txt"
