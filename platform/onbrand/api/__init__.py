"""HTTP: one file a noun. Routes check who calls, hand over to `onbrand.services`, and answer; nothing else."""
