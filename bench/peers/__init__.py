"""Other projects' trainers beside ours: each one's own program, as it is, on the same device and in the same session.

What is compared is *a training run's time per optimizer step*: the same model shape, micro-batch and sequence length,
no accumulation, one process, the same real tokens. Every entrant is a whole program in a process of its own, started by
its own command line with its own fastest switches, and the milliseconds are those that it reports of itself. For ours
that is `stepladder train` and not the benchmark's bare step: theirs load batches, schedule the learning rate and log
between two steps, so ours does too.

    theirs   the time they print at each step. build-nanogpt and llm.c read the clock before they fetch a batch and
             after the device is done, and leave printing out; nanoGPT reads it once a step, so everything is in it
    ours     `step_ms` of metrics.jsonl: from one step's numbers to the next one's, so everything is in it
    outside  as a check, the time between the lines of the same steps as this process sees them arrive

Their first step, which compiles, is left out, and so is a warm-up that ends by the same rule as on the ladder
(`bench.timing.warm_up`). Then so many steps are timed and the process is ended. Trials visit all entrants in balanced
random order; a trial's value is the median of its steps, and ratios are paired by trial.

Nothing of a peer is kept here: a checkout is given by the user, the few files that train are copied to a temporary
folder, and constants that their command line does not offer are replaced in that copy. If a pattern does not match
exactly once, the checkout is not of a version that the adapter knows: an error, before anything is measured.

To add a peer: one file like `nanogpt.py`, and its line in `known.PEERS`.
"""
