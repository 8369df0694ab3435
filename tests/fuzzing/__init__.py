"""A fuzzer of all that commands read: damaged files end in one line, soon, in little memory.

`python -m fuzzing --count 10000` runs the commands on mutated copies of small valid checkpoints and
of the other files that they read. A case is a seed, a command and a few mutations; hypothesis
draws it, a forked process runs it, and the judge looks at how that ended.
"""
