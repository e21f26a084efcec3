"""Fine-tuning: a job row becomes a Ray job, run by Ray Train, and ends as a published adapter or a clear reason.

`recipes` makes the plan, `data` reads and encodes the pictures, `trainer` trains, `export` verifies the file, and `run`
combines them on one worker. `ray` has the processes on the cluster: the job's driver (`python -m onbrand.training.job`)
and its workers. `dispatch` submits job rows to providers and detects dead submissions; only it imports the database.
"""
