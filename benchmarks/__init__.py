"""How fast checkpoints are saved and restored, beside the other ways to do it. Run `python -m benchmarks --help`.

    schedule, growth -> a process for each measurement (measure, async_loop, index, limits) -> JSON -> report, plots

`workloads` holds what is saved, `contenders` who saves it, `targets` which figures are looked for and what they should
be. Nothing here is part of the installed package.
"""
