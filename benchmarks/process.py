"""Runs one measurement in a process of its own and takes its result.

Each process is forked from a server that has imported torch and done nothing else, which saves the seconds of that
import (an optimizer imports torch._dynamo). `python -m benchmarks.measure` does the same in a program of its own, to
look at it by perf or strace.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.contenders.base import NotAvailableError

_PRELOADED = ("torch", "torch._dynamo", "torch.distributed.checkpoint", "benchmarks.measure")

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}


def run_measurement(module: str, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    """What `perform` of a module of this package returns.

    `unavailable` in it says why the contender cannot take part, `failed` how it ended otherwise.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, module, request))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_seconds):
            return {"failed": f"not done after {timeout_seconds:.0f} s"}
        result: dict[str, Any] = receiver.recv()
        process.join(timeout=30)
    except EOFError:
        process.join(timeout=30)
        return {"failed": f"the process ended with status {process.exitcode}"}
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    return result


def _answer(sender: Connection, module: str, request: dict[str, Any]) -> None:
    # What the libraries print is no result, and would be in between the lines of the schedule.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        sender.send(perform_quietly(importlib.import_module(f"benchmarks.{module}").perform, request))
    except BaseException as error:
        sender.send({"failed": "".join(traceback.format_exception_only(error)).strip()})


def perform_quietly(perform: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """The result, without warnings of the libraries."""
    os.environ.update(_QUIET)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        return perform(request)
    except NotAvailableError as error:
        return {"unavailable": str(error)}


def run_alone(perform: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The main program of a module: the request as JSON is the argument, the result is printed."""
    print(json.dumps(perform_quietly(perform, json.loads(sys.argv[1]))))
