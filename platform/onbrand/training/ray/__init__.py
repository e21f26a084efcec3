"""A training as a Ray job: the driver, its workers, their communication, checkpoints and scaling.

`onbrand.training.job` is the job's command. Workers get a ticket and the internal client; they import no database.
"""
