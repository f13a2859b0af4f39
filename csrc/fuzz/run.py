"""Runs every fuzz target that was built below a folder, and says what became of it: see `make fuzz`."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

LIMITS = ["-max_len=65536", "-rss_limit_mb=2048", "-malloc_limit_mb=64", "-timeout=20"]
MEMORY = Path("/dev/shm")


class Outcome(NamedTuple):
    target: str
    status: int
    executions: int
    findings: list[Path]


def run(folder: Path, target: str, seconds: int) -> Outcome:
    """Runs one target until the time is over or something was found. Its output goes to `<folder>/<target>.log`."""
    corpus, findings = folder / "corpus" / target, folder / "findings" / target
    for made in (corpus, findings):
        made.mkdir(parents=True, exist_ok=True)
    command = [folder / "native/fuzz" / f"fuzz_{target}", *LIMITS, f"-max_total_time={seconds}", "-print_final_stats=1"]
    command += [f"-artifact_prefix={findings}/", corpus, folder / "seeds" / target]
    log = folder / f"{target}.log"
    before = set(findings.iterdir())
    with (
        log.open("w") as output,
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch,
    ):
        ended = subprocess.run(command, stdout=output, stderr=output, env={**os.environ, "TMPDIR": scratch})
    stated = re.search(r"number_of_executed_units: *(\d+)", log.read_text(errors="replace"))
    new = sorted(set(findings.iterdir()) - before)
    return Outcome(target, ended.returncode, int(stated[1]) if stated else 0, new)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    options = parser.parse_args()
    targets = sorted(path.name.removeprefix("fuzz_") for path in options.folder.glob("native/fuzz/fuzz_*[!.a]"))
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(lambda target: run(options.folder, target, options.seconds), targets))
    for outcome in outcomes:
        failed = outcome.status != 0
        ending = f"ended with {outcome.status}, see {options.folder / outcome.target}.log" if failed else "sound"
        print(f"{outcome.target:10} {outcome.executions:12,} executions, {len(outcome.findings)} findings: {ending}")
        for finding in outcome.findings:
            print(f"{'':10} {finding}")
    return int(not outcomes or any(outcome.status != 0 for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
