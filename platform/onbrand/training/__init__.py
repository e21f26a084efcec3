"""Fine-tuning: a job row becomes a Ray job, run by Ray Train, and ends as a published adapter or a clear reason.

`recipes` makes the plan, `dataset` reads the pictures, `loop` trains, `export` verifies the file, and `run` combines
them on one worker. `worker` and `job` are the processes on the cluster. `dispatcher` submits job rows to `providers`
and detects dead submissions.
"""
