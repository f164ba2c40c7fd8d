"""Alternatives to ThinkML, one file per peer, each as its documentation shows it.

A peer is a function ``train(job, turns, **options)``. It trains the net of the job from the job's
weights on its data, inside its framework's own loop, and reports its progress after each epoch:
``turns.start()`` before the first epoch, ``turns.over(loss)`` after each, with the epoch's mean
loss. Both wait until the peer may continue. `race.py` runs each peer in its own process.
"""
