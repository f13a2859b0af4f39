"""Executes functions in a process of their own: `python worker.py FILE` serves the functions of FILE.

A request is one line of JSON on standard input, `{"function": name, "arguments": {...}}`. Its answer is one line
on standard output: `{"result": ...}`, or `{"error": "Class: text", "traceback": text}` where the function raised.
Whatever the functions print goes to standard error, also from native code.
"""

import json
import os
import runpy
import sys
import traceback
from typing import Any


def answer(functions: dict[str, Any], request: str) -> dict[str, object]:
    """What a line of JSON asks for."""
    asked = json.loads(request)
    try:
        return {"result": functions[asked["function"]](**asked["arguments"])}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def serve(path: str) -> None:
    """Answers until the end of standard input."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        functions = runpy.run_path(path)
        for request in sys.stdin:
            answers.write(json.dumps(answer(functions, request)) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
