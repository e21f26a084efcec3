"""Fine-tuning: a job row becomes a Ray job, run by Ray Train, and ends as a published adapter or a clear reason.

`recipes` says what to run, `dataset` what on, `loop` does it, `export` proves the file, `run` is a worker's whole way;
`worker` and `job` are the processes on the cluster; `dispatcher` moves rows to `providers` and notices what died.
"""
