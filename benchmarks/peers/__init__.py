"""What a user would pick instead of ThinkML, one file a peer, each as its documentation shows it.

A peer is a function ``train(job, turns, **options)``. It trains the net of the job from the job's
weights on its data, inside its framework's own loop, and says at each epoch's border how far it is:
``turns.start()`` before the first epoch, ``turns.over(loss)`` after each, with the epoch's mean
loss. Both wait until the peer may go on. `race.py` runs each peer in a process of its own.
"""
