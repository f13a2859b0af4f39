"""The command line: measure, report, plot.

python -m benchmarks run [--short]      every figure of the targets; JSON, a table, and what was left out
python -m benchmarks growth             how cost grows, added to the same JSON
python -m benchmarks report RESULTS     the tables of a JSON, into docs/performance.md where asked
python -m benchmarks plot RESULTS       PNG files from the same
"""

from benchmarks.command import main

if __name__ == "__main__":
    main()
