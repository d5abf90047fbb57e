"""What all studies share: from a corpus and a model to one merged result, whatever is measured.

    corpus, lines       anything iterable -> numbered texts; a text that cannot be read is a value with a reason
    tokens              a text -> windows of token ids -> padded batches
    recording           a batch through the model, norms recorded on the way
    study               what a study is: the one thing that this package does not know
    measuring           texts -> one partial result
    partial             partial results merge; moments, tallies and correlation are what they hold
    run                 the loop: chunks of the corpus, merged in order
    executors           one way to run elsewhere: chunks on a concurrent.futures executor
    shares              the other one: independent array jobs, and their files put together
    resume, fingerprint the file that a run goes on from, and how it knows that nothing has changed

Nothing here imports a study.
"""
