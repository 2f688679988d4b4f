"""Batch: a data set through a task on Ray Data. `sextet batch` runs it; docs/batch.md describes it.

    sources.py    the inputs: files, URLs, splits of the Hub -> rows in order, each with its place
    parts.py      rows -> parts, the units of work: so many rows of one input, in order
    scorer.py     the actors of Ray Data: a part in, its finished lines out
        local_model.py    answers with a pipeline and its scheduler in the actor
        served_model.py   answers with a running cluster, as bulk
    lines.py      answers -> JSON lines or Parquet
    ledger.py     the output: which parts are finished, what they were made from, the end
    run.py        the driver: checks, starts or joins Ray, keeps what comes back, reports progress

A part is written whole or not at all, and is known by its place in the inputs. So a run that was killed goes on with
the parts that are missing: no row is lost, none is there twice.
"""
